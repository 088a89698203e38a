"""Checkpoints as the compiler sees them: stacks, prefixes, tied heads."""

from __future__ import annotations

from typing import Any

import pytest

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.compiler.inputs import Input, Logical, align_prefix, layer_counts
from mergegraph.plan.values import ModelRef
from tests.compiler.headers import LLAMA, TIED, Tensors, index, llama


def made(tensors: Tensors, config: dict[str, Any] | None = None, prefix: tuple[str, str] = ("", "")) -> Input:
    return Input(ModelRef("m"), "m", index("m", tensors, config or {}), prefix)


def layers(prefix: str, count: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{i}.w": (2, 2) for i in range(count)}


# ---- the stack -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    ["num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"],
)
def test_the_stack_is_the_one_whose_length_the_config_states(key: str) -> None:
    model = made({**layers("long", 9), **layers("short", 3)}, {key: 3})
    assert model.stack is not None
    assert (model.stack.prefix, model.layers) == ("short", 3)


@pytest.mark.parametrize("part", ["text_config", "llm_config", "language_config"])
def test_a_nested_config_states_it_as_well(part: str) -> None:
    model = made({**layers("long", 9), **layers("short", 3)}, {part: {"num_hidden_layers": 3}})
    assert model.layers == 3


def test_without_a_statement_the_longest_stack_is_sliced() -> None:
    assert made({**layers("a", 3), **layers("b", 5), **layers("c", 2)}).layers == 5


def test_a_checkpoint_without_layers_has_no_stack() -> None:
    model = made({"w": (2,), "b.weight": (2,)})
    assert model.stack is None
    assert model.layers == 0
    assert model.by_layer == ()
    assert list(model.outside) == ["b.weight", "w"]


def test_of_two_equal_stacks_the_one_beside_the_token_embedding_is_sliced() -> None:
    """As in InternVL2-1B and Qwen2-Audio, where tower and language model are equally deep."""
    tensors = {**layers("audio.layers", 4), **layers("text.layers", 4), "text.embed_tokens.weight": (9, 2)}
    model = made(tensors, {"text_config": {"num_hidden_layers": 4}})
    assert model.stack is not None
    assert model.stack.prefix == "text.layers"


@pytest.mark.parametrize("count", [True, "4", None, 4.0, [4]])
def test_a_count_that_is_no_integer_is_no_count(count: Any) -> None:
    assert list(layer_counts({"num_hidden_layers": count})) == []


def test_hostile_configs_are_no_obstacle() -> None:
    config: dict[str, Any] = {"text_config": {"text_config": {"num_layers": 2}}, "llm_config": 3}
    assert [(path, n) for path, n in layer_counts(config)] == [
        (("text_config", "text_config", "num_layers"), 2)
    ]


# ---- prefixes --------------------------------------------------------------------------------------


def names(prefix: str, *extra: str) -> dict[str, None]:
    body = ["wte.weight", "ln_f.weight", *(f"h.{i}.mlp.weight" for i in range(3))]
    return {**{prefix + n: None for n in body}, **dict.fromkeys(extra)}


def test_equal_names_need_no_prefix() -> None:
    assert align_prefix(names("transformer."), names("transformer.")) == ("", "")
    assert align_prefix({}, names("transformer.")) == ("", "")
    assert align_prefix(names("transformer."), {}) == ("", "")


def test_a_prefix_is_removed_or_added_to_meet_the_donor() -> None:
    assert align_prefix(names("transformer."), names("")) == ("transformer.", "")
    assert align_prefix(names(""), names("transformer.")) == ("", "transformer.")


def test_a_head_does_not_hinder_it() -> None:
    assert align_prefix(names("transformer.", "lm_head.weight"), names("")) == ("transformer.", "")
    assert align_prefix(names(""), names("transformer.", "lm_head.weight")) == ("", "transformer.")


def test_models_with_little_in_common_keep_their_names() -> None:
    other = {f"net.{i}.w": None for i in range(9)}
    assert align_prefix(names("transformer."), other) == ("", "")


def test_a_renamed_model_keeps_its_own_names_for_reading() -> None:
    model = made({"transformer.h.0.w": (2,), "lm_head.weight": (3, 2)}, prefix=("transformer.", ""))
    assert {n: place.tensor for n, place in model.tensors.items()} == {
        "h.0.w": "transformer.h.0.w",
        "lm_head.weight": "lm_head.weight",
    }


def test_two_tensors_are_never_renamed_to_one() -> None:
    """``transformer.x`` and ``x`` in one checkpoint are two tensors, and stay two."""
    tensors = {"transformer.h.0.w": (2,), "transformer.h.1.w": (2,), "transformer.h.2.w": (2,), "h.2.w": (2,)}
    donor = {"h.0.w": None, "h.1.w": None, "h.2.w": None}
    model = made(tensors, prefix=align_prefix(tensors, donor))
    assert len(model.tensors) == len(tensors)


def test_a_head_below_the_prefix_is_found_in_both_spellings() -> None:
    """``language_model.lm_head`` and ``lm_head``: the whole model may be wrapped, head and all."""
    wrapped = {f"language_model.{n}": s for n, s in LLAMA.shapes().items()}
    model = made(wrapped, prefix=align_prefix(wrapped, LLAMA.shapes()))
    assert set(model.tensors) == set(LLAMA.shapes())
    inner = made(LLAMA.shapes(), prefix=align_prefix(LLAMA.shapes(), wrapped))
    assert set(inner.tensors) == set(wrapped)


# ---- tied heads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tie", [True, None])
def test_a_missing_head_is_the_embedding(tie: bool | None) -> None:
    model = Input(ModelRef("m"), "m", llama("m", TIED, tie_word_embeddings=tie))
    found = model.find("lm_head.weight")
    assert found is not None
    assert found.tensor == "model.embed_tokens.weight"


def test_a_config_may_rule_out_that_a_head_is_tied() -> None:
    model = Input(ModelRef("m"), "m", llama("m", TIED, tie_word_embeddings=False))
    assert model.find("lm_head.weight") is None


def test_a_nested_config_rules_it_out_too() -> None:
    """Models that wrap a language model may state it there alone."""
    config = {"text_config": {"tie_word_embeddings": False}}
    model = Input(ModelRef("m"), "m", index("m", TIED.shapes(), config))
    assert model.find("lm_head.weight") is None


def test_only_heads_are_looked_for_elsewhere() -> None:
    model = Input(ModelRef("m"), "m", llama("m", TIED))
    assert model.find("model.norm.bias") is None


# ---- what stands where -----------------------------------------------------------------------------


def test_whole_towers_and_what_connects_them_stand_before_the_layers() -> None:
    """::

    vision.blocks.0 …   vision.norm   projector   model.layers.0 …   model.norm   lm_head   score
    └──────────────── at the input ───────────┘
    """
    body = {**layers("model.layers", 3), **layers("vision.blocks", 2), "model.embed_tokens.weight": (9, 2)}
    rest = ("vision.norm.w", "projector.w", "model.norm.w", "lm_head.weight", "score.weight")
    model = made({**body, **dict.fromkeys(rest, (2,))}, {"num_hidden_layers": 3})
    expected = {n for n in model.tensors if n.startswith(("vision.", "projector.", "model.embed"))}
    assert set(model.at_input) == expected


def test_a_second_stack_beside_the_layers_moves_nothing_else() -> None:
    model = made(
        {**layers("model.layers", 3), **layers("model.mtp", 2), "model.norm.w": (2,), "model.w": (2,)},
        {"num_hidden_layers": 3},
    )
    assert all(name.startswith("model.mtp.") for name in model.at_input)
    assert len(model.at_input) == 2


@pytest.mark.parametrize(
    ("stacks", "both"),
    [
        (("encoder.block", "decoder.block"), True),
        (("model.encoder.layers", "model.decoder.layers"), True),
        (("language_model.model.decoder.layers", "vision_model.encoder.layers"), False),
        (("encoder.layers", "language_model.layers"), False),
        (("model.decoder.layers",), False),
    ],
)
def test_an_encoder_belongs_to_a_decoder_if_it_stands_beside_it(stacks: tuple[str, ...], both: bool) -> None:
    """T5, BART; BLIP-2 with OPT, a vision tower, OPT."""
    model = made({n: s for prefix in stacks for n, s in layers(prefix, 2).items()})
    assert model.encodes_and_decodes is both


def test_hostile_names_do_not_make_alignment_slow() -> None:
    """Quadratic time would be minutes here."""
    mine, other = ({f"{who}{i}.w": None for i in range(20_000)} for who in "ab")
    assert align_prefix(mine, other) == ("", "")


# ---- what fine-tunes share -------------------------------------------------------------------------


def test_inputs_of_one_header_share_its_logical_tensors_but_not_with_another_prefix() -> None:
    """Each still has the layers that its own config states."""
    tensors = index("m", {**layers("long", 9), **layers("short", 3)}, {}).tensors
    known: dict[object, tuple[object, Logical]] = {}

    def model(config: dict[str, Any], prefix: tuple[str, str] = ("", "")) -> Input:
        of = CheckpointIndex("m", "/m", tensors, {}, config)
        return Input(ModelRef("m"), "m", of, prefix, known=known)

    deep, flat = model({"num_hidden_layers": 9}), model({"num_hidden_layers": 3})
    assert deep.tensors is flat.tensors
    assert (deep.layers, flat.layers) == (9, 3)
    assert list(flat.outside) == [f"long.{i}.w" for i in range(9)]
    assert list(deep.outside) == [f"short.{i}.w" for i in range(3)]
    assert next(iter(model({}, ("", "body.")).tensors)) == "body.long.0.w"
    counted = model({"ffn_config": {"moe_num_experts": 2}})
    assert counted.tensors is not deep.tensors
