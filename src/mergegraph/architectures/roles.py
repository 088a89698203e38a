"""What a tensor outside the layer stack is for, by the naming habits of all families.

Order matters for stacking: what stands before the layers comes from the first slice, what stands
after them from the last. Everything that is not recognisably an input embedding comes after.
"""

from __future__ import annotations

import re

# Endings of whole steps: every tensor of a model is asked, and comparing ends is quicker than searching.
_HEADS = tuple(
    f".{head}.weight"
    for head in (
        *("lm_head", "embed_out", "output", "output_projection", "output_layer", "lm_head.decoder"),
        "cls.predictions.decoder",
    )
)
# Components that models put beside their body, not inside it.
_OUTPUT_SIDE = re.compile(
    r"(lm_head|embed_out|output|output_projection|output_layer|final_logits_bias|head|cls|score"
    r"|classifier|qa_outputs|v_head|value_head|reward_head)(\.|$)"
)
_EMBEDDING = re.compile(
    r"(^|[._])(embed|embeds|embedding|embeddings|embedder|wte|wpe|tok_embeddings|word_embeddings?"
    r"|embed_tokens|embed_in|project_in|word_embeddings_layernorm)([._]|$)|(^|\.)shared\.weight$"
)
_NORM_AFTER = re.compile(r"(^|\.)embedding_norm\.")  # LFM2 calls its last norm after the tied embedding
_TOKEN_EMBEDDING = re.compile(
    r"(^|\.)(embed_tokens|wte|tok_embeddings|word_embeddings|embed_in|embeddings|token_embedding|shared)"
    r"\.weight$"
)
_DERIVED = (
    *(f".rotary_emb.{name}" for name in ("inv_freq", "cos_cached", "sin_cached")),
    *(f".rotary_pos_emb.{name}" for name in ("inv_freq", "cos_cached", "sin_cached")),
    *(".attn.masked_bias", ".attention.masked_bias", ".embeddings.position_ids"),
)
_CAUSAL_MASKS = (".attn.bias", ".attention.bias")


def is_head(name: str) -> bool:
    """Whether `name` is the projection onto the vocabulary (``lm_head.weight``), which may be tied."""
    return f".{name}".endswith(_HEADS) or name == "head.weight"


def is_output_side(name: str) -> bool:
    """Whether `name` belongs to what models put after their body: a head of any kind, tied or not."""
    return _OUTPUT_SIDE.match(name) is not None or is_head(name)


def is_before_layers(name: str) -> bool:
    """Whether a tensor outside the layers belongs before them: embeddings and what goes with them."""
    if is_output_side(name) or _NORM_AFTER.search(name) is not None:
        return False
    return _EMBEDDING.search(name) is not None


def is_token_embedding(name: str) -> bool:
    """Whether `name` is the input token embedding matrix, which a tied head shares."""
    return _TOKEN_EMBEDDING.search(name) is not None


def is_derived(name: str, rank: int) -> bool:
    """Whether a tensor is a buffer that loaders recompute: inverse frequencies, causal masks."""
    return f".{name}".endswith(_DERIVED) or (rank == 4 and name.endswith(_CAUSAL_MASKS))


def is_balance(name: str) -> bool:
    """Whether `name` is what balances the load of experts: loaders keep it in float32, whatever the dtype."""
    return name.endswith(("e_score_correction_bias", ".expert_bias"))
