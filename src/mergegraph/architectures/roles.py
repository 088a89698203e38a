"""What a tensor outside the layer stack is for, by the naming habits of all families.

Order matters for stacking: what stands before the layers comes from the first slice, what stands
after them from the last. Everything that is not recognisably an input embedding comes after.
"""

from __future__ import annotations

import re

_HEADS = ("lm_head", "embed_out", "output", "score", "classifier", "cls")
_EMBEDDING = re.compile(
    r"(^|[._])(embed|embeds|embedding|embeddings|embedder|wte|wpe|tok_embeddings|word_embeddings?"
    r"|embed_tokens|embed_in|project_in|word_embeddings_layernorm)([._]|$)"
)
_TOKEN_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|tok_embeddings|word_embeddings|embed_in|embeddings|token_embedding)\.weight$"
)
_DERIVED = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|attn\.masked_bias|embeddings\.position_ids)$"
)
_CAUSAL_MASK = re.compile(r"\.(attn|attention)\.bias$")


def is_head(name: str) -> bool:
    """Whether `name` is the output projection (``lm_head.weight``, ``embed_out.weight``, …)."""
    parts = name.split(".")
    return len(parts) >= 2 and parts[-2] in _HEADS and parts[-1] == "weight"


def is_before_layers(name: str) -> bool:
    """Whether a tensor outside the layers belongs before them: embeddings and what goes with them."""
    return not is_head(name) and _EMBEDDING.search(name) is not None


def is_token_embedding(name: str) -> bool:
    """Whether `name` is the input token embedding matrix, which a tied head shares."""
    return _TOKEN_EMBEDDING.search(name) is not None


def is_derived(name: str, rank: int) -> bool:
    """Whether a tensor is a buffer that loaders recompute: inverse frequencies, causal masks."""
    return _DERIVED.search(name) is not None or (rank == 4 and _CAUSAL_MASK.search(name) is not None)
