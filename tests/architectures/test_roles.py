"""What names alone tell, checked on the tensor names of real families.

::

    embed_tokens ─ before      layers.0 … layers.3      norm, lm_head ─ after
"""

from __future__ import annotations

import pytest

from mergegraph.architectures.roles import is_before_layers, is_derived, is_head, is_token_embedding
from mergegraph.compiler.inputs import Input, layer_counts
from mergegraph.plan.values import ModelRef
from tests.architectures.families import ALL, CAUSAL, family
from tests.compiler.headers import index

STACKS = {
    "gpt2": "transformer.h",
    "gpt_neo": "transformer.h",
    "falcon": "transformer.h",
    "bloom": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    "mpt": "transformer.blocks",
    "mamba": "backbone.layers",
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "bart": "model.decoder.layers",
    "whisper": "model.decoder.layers",
    "t5": "decoder.block",
    "llava": "model.language_model.layers",
    "gemma3": "model.language_model.layers",
    "qwen2_5_vl": "model.language_model.layers",
}
# Names that say "embedding" and are not at the input, or are there and do not say it.
NORMS_AFTER = {"model.embedding_norm.weight"}


def model(name: str) -> Input:
    made = family(name)
    return Input(ModelRef(name), name, index(name, made.shapes, made.config))


@pytest.mark.parametrize("name", [f for f in ALL if f not in ("t5", "bart", "whisper")])
def test_the_decoder_layers_of_a_real_family_are_found(name: str) -> None:
    stack = model(name).stack
    assert stack is not None
    assert (stack.prefix, stack.count) == (STACKS.get(name, "model.layers"), 4)


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_of_an_encoder_and_an_equally_long_decoder_the_decoder_is_sliced(name: str) -> None:
    """``num_hidden_layers`` of such configs, where there is one, counts the encoder."""
    stack = model(name).stack
    assert stack is not None
    assert stack.prefix == STACKS[name]


@pytest.mark.parametrize("name", ALL)
def test_the_config_of_a_real_family_states_the_number_of_its_decoder_layers(name: str) -> None:
    assert model(name).layers in [count for _, count in layer_counts(family(name).config)]


@pytest.mark.parametrize("name", list(CAUSAL))
def test_embeddings_come_before_the_layers_and_norms_and_heads_after(name: str) -> None:
    outside = list(model(name).outside)
    before = [n for n in outside if is_before_layers(n)]
    after = [n for n in outside if not is_before_layers(n)]
    at_input = ("embed", "wte", "wpe", "project_in")
    expected = [n for n in outside if any(word in n for word in at_input) and n not in NORMS_AFTER]
    assert before == expected
    assert before
    assert all("norm" in n or "ln_f" in n or "project_out" in n or "lm_head" in n for n in after)


@pytest.mark.parametrize("name", [f for f in ALL if f not in ("t5", "bart")])
def test_the_token_embedding_is_recognised(name: str) -> None:
    found = [n for n in model(name).outside if is_token_embedding(n)]
    assert len(found) == 1
    assert len(family(name).shapes[found[0]]) == 2


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_an_embedding_that_encoder_and_decoder_share_stands_before_the_layers(name: str) -> None:
    shared = next(n for n in family(name).shapes if n.endswith("shared.weight"))
    assert is_before_layers(shared)
    assert is_token_embedding(shared)


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.weight",
        "language_model.lm_head.weight",
        "model.lm_head.weight",
        "embed_out.weight",
        "output.weight",
        "lm_head.decoder.weight",
        "cls.predictions.decoder.weight",
        "head.weight",
        "output_projection.weight",
        "transformer.output_layer.weight",
    ],
)
def test_output_projections_of_many_families_are_heads(name: str) -> None:
    """Llama, LLaVA, GPT-NeoX, InternLM2, RoBERTa, BERT, RWKV, BioGPT, ChatGLM."""
    assert is_head(name)
    assert not is_before_layers(name)


@pytest.mark.parametrize(
    "name",
    [
        "lm_head.bias",
        "lm_head.dense.weight",
        "model.norm.weight",
        "model.layers.0.attention.output.dense.weight",
        "model.embed_tokens.weight",
        "headless.weight",
        "lm_head",
    ],
)
def test_other_tensors_are_no_heads(name: str) -> None:
    assert not is_head(name)


@pytest.mark.parametrize("name", ["score.weight", "classifier.weight"])
def test_a_classifier_is_never_the_transposed_token_embedding(name: str) -> None:
    """It has a row per label, not per token: where it is missing, no embedding can stand in for it."""
    body = {"model.embed_tokens.weight": (10, 8), "model.layers.0.w": (8, 8)}
    plain = Input(ModelRef("a"), "a", index("a", body, {"tie_word_embeddings": True}))
    assert plain.find(name) is None


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", 1),
        ("model.rotary_emb.inv_freq", 1),
        ("transformer.h.0.attn.bias", 4),
        ("transformer.h.0.attn.masked_bias", 0),
        ("gpt_neox.layers.0.attention.bias", 4),
        ("gpt_neox.layers.0.attention.masked_bias", 0),
        ("gpt_neox.layers.0.attention.rotary_emb.inv_freq", 1),
        ("transformer.h.3.attn.attention.bias", 4),
        ("transformer.h.3.attn.attention.masked_bias", 0),
        ("bert.embeddings.position_ids", 2),
        ("model.vision_tower.vision_model.embeddings.position_ids", 2),
        ("transformer.rotary_pos_emb.inv_freq", 1),
    ],
)
def test_buffers_that_loaders_recompute_are_recognised(name: str, rank: int) -> None:
    """Llama, GPT-2, GPT-NeoX and Pythia, GPT-Neo, BERT, CLIP, ChatGLM: as their hub files hold them."""
    assert is_derived(name, rank)


@pytest.mark.parametrize(
    ("name", "rank"),
    [
        ("transformer.h.0.attn.c_attn.bias", 1),
        ("transformer.h.0.attn.bias", 1),
        ("model.layers.0.self_attn.q_proj.bias", 1),
        ("model.layers.0.attention.bias", 2),
    ],
)
def test_learned_biases_are_no_buffers(name: str, rank: int) -> None:
    assert not is_derived(name, rank)
