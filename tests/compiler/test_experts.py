"""Checkpoints as logical tensors: what is called what, and how outputs are put together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.compiler.experts import logical, spelling_for
from mergegraph.compiler.inputs import Input, align_prefix
from mergegraph.compiler.merge import Compiled, compile_merge
from mergegraph.errors import PlanError
from mergegraph.methods import get_method
from mergegraph.plan.merge import parse_plan
from mergegraph.plan.values import ExpertLayout, ModelRef
from mergegraph.tensorspec import DType
from tests.compiler.headers import Tensors, based, index, linear, stacked

LAYERS, E, H, INNER = 2, 3, 8, 6
GATED = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
NUMBERED = ("w1.weight", "w3.weight", "w2.weight")
Shapes = dict[str, Any]


def separate(block: str, roles: tuple[str, ...], experts: int = E) -> Shapes:
    """The experts of a layer, a tensor for each matrix."""
    shapes = ((INNER, H), (INNER, H), (H, INNER))
    return {
        f"{block}experts.{e}.{role}": shape
        for e in range(experts)
        for role, shape in zip(roles, shapes, strict=True)
    }


def together(block: str, experts: int = E) -> Shapes:
    """The experts of a layer, stacked."""
    return {
        f"{block}experts.gate_up_proj": (experts, 2 * INNER, H),
        f"{block}experts.down_proj": (experts, H, INNER),
    }


def model(
    name: str,
    layer: Shapes,
    kind: str,
    *,
    prefix: str = "model.layers",
    dense: Shapes | None = None,
    **config: Any,
) -> CheckpointIndex:
    """Layers of one kind; a dense first one if given."""
    held: dict[str, Any] = {"model.embed_tokens.weight": (10, H), "lm_head.weight": (10, H)}
    for i in range(LAYERS):
        inside = dense if dense is not None and i == 0 else layer
        held |= {f"{prefix}.{i}.{n}": shape for n, shape in {"norm.weight": (H,), **inside}.items()}
    return index(name, held, {"model_type": kind, "num_hidden_layers": LAYERS} | config)


def inputs_of(text: str, *models: CheckpointIndex) -> dict[Any, Input]:
    plan = parse_plan(text, "p.yml")
    known = {m.name: m for m in models}
    opened = {ref: known[str(ref)] for ref in plan.referenced_models()}
    donor = opened[plan.base_model or plan.referenced_models()[0]]
    spelling = spelling_for([(i.tensors, i.config) for i in (donor, *opened.values())])
    wanted = Input(ModelRef(""), "", donor, spelling=spelling).tensors
    inputs = {}
    for ref, i in opened.items():
        own = Input(ref, i.name, i, spelling=spelling)
        inputs[ref] = replace(own, prefix=align_prefix(own.tensors, wanted))
    return inputs


def compiled(text: str, *models: CheckpointIndex, layout: ExpertLayout | None = None) -> Compiled:
    plan = parse_plan(text, "p.yml")
    return compile_merge(plan, get_method(plan.method), inputs_of(text, *models), 3, layout)


def merged(*models: CheckpointIndex, layout: ExpertLayout | None = None) -> Compiled:
    return compiled(linear(*(m.name for m in models)), *models, layout=layout)


def suffixes(result: Compiled, layer: int = 1, prefix: str = "model.layers") -> set[str]:
    start = f"{prefix}.{layer}."
    return {n.removeprefix(start) for n in result.graph.outputs if n.startswith(start)}


def complete(result: Compiled) -> None:
    assert result.report.partial == () and result.report.dropped == ()
    for name, output in result.graph.outputs.items():
        assert sum(part.expression.spec.numel for part in output.parts) == output.spec.numel, name


def with_router(layer: Shapes, *names: str) -> Shapes:
    return {name: (E, H) if name.endswith("weight") else (E,) for name in names} | layer


MIXTRAL = with_router(separate("block_sparse_moe.", NUMBERED), "block_sparse_moe.gate.weight")
MIXTRAL_STACKED = with_router(together("mlp."), "mlp.gate.weight")
MIXTRAL_OTHER = with_router(separate("mlp.", NUMBERED), "mlp.gate.weight")
QWEN = with_router(separate("mlp.", GATED), "mlp.gate.weight")
QWEN_STACKED = with_router(together("mlp."), "mlp.gate.weight")
ONE = {"norm.weight"}


# ---- families in two layouts -----------------------------------------------------------------------

# The names that loaders write beside the one layout and beside the other.
FAMILIES: dict[str, tuple[Shapes, Shapes]] = {
    "mixtral": (MIXTRAL, MIXTRAL_STACKED),
    "qwen3_moe": (QWEN, QWEN_STACKED),
    "deepseek_v3": (
        with_router(separate("mlp.", GATED), "mlp.gate.weight", "mlp.gate.e_score_correction_bias"),
        with_router(together("mlp."), "mlp.gate.weight", "mlp.gate.e_score_correction_bias"),
    ),
    "minimax_m2": (
        with_router(
            separate("block_sparse_moe.", NUMBERED),
            "block_sparse_moe.gate.weight",
            "block_sparse_moe.e_score_correction_bias",
        ),
        with_router(together("mlp."), "mlp.gate.weight", "mlp.e_score_correction_bias"),
    ),
    "lfm2_moe": (
        with_router(
            separate("feed_forward.", NUMBERED), "feed_forward.gate.weight", "feed_forward.expert_bias"
        ),
        with_router(together("feed_forward."), "feed_forward.gate.weight", "feed_forward.expert_bias"),
    ),
    "phimoe": (MIXTRAL, with_router(together("mlp."), "mlp.router.weight")),
    "exaone_moe": (
        with_router(separate("mlp.", GATED), "mlp.gate.weight", "mlp.e_score_correction_bias"),
        with_router(together("mlp."), "mlp.gate.weight", "mlp.gate.e_score_correction_bias"),
    ),
    "ernie4_5_moe": (
        with_router(separate("mlp.", GATED), "mlp.gate.weight", "mlp.moe_statics.e_score_correction_bias"),
        with_router(together("mlp."), "mlp.gate.weight", "mlp.gate.moe_statics.e_score_correction_bias"),
    ),
    "granitemoe": (
        {
            "block_sparse_moe.router.layer.weight": (E, H),
            "block_sparse_moe.input_linear.weight": (E, 2 * INNER, H),
            "block_sparse_moe.output_linear.weight": (E, H, INNER),
        },
        with_router(together("block_sparse_moe."), "block_sparse_moe.router.weight"),
    ),
    "kimi_linear": (
        MIXTRAL | {"block_sparse_moe.shared_experts.up_proj.weight": (INNER, H)},
        MIXTRAL_STACKED | {"mlp.shared_experts.up_proj.weight": (INNER, H)},
    ),
    "nemotron_h": (
        {n.replace("mlp", "mixer"): s for n, s in QWEN.items() if "gate_proj" not in n},
        {
            "mixer.gate.weight": (E, H),
            "mixer.experts.up_proj": (E, INNER, H),
            "mixer.experts.down_proj": (E, H, INNER),
        },
    ),
}


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("swapped", [False, True])
def test_both_layouts_of_a_family_have_the_same_logical_tensors(kind: str, swapped: bool) -> None:
    own, other = FAMILIES[kind]
    models = [model("a", own, kind), model("b", other, kind)]
    result = merged(*(models[::-1] if swapped else models))
    complete(result)
    if kind != "granitemoe":  # whose two layouts are both stacked
        assert suffixes(result) == ONE | own.keys()


@pytest.mark.parametrize("kind", FAMILIES)
def test_models_that_agree_are_written_as_they_are_stored(kind: str) -> None:
    for layer in FAMILIES[kind]:
        result = merged(model("a", layer, kind), model("b", layer, kind))
        complete(result)
        assert suffixes(result) == ONE | layer.keys()


@pytest.mark.parametrize("kind", [k for k in FAMILIES if k != "granitemoe"])
@pytest.mark.parametrize("stored", [(0, 0), (0, 1), (1, 1)])
def test_either_layout_can_be_asked_for(kind: str, stored: tuple[int, int]) -> None:
    models = [model(name, FAMILIES[kind][which], kind) for name, which in zip("ab", stored, strict=True)]
    for layout, wanted in zip(("per-expert", "stacked"), FAMILIES[kind], strict=True):
        result = merged(*models, layout=layout)  # type: ignore[arg-type]
        complete(result)
        assert suffixes(result) == ONE | wanted.keys()


def test_a_third_spelling_of_separate_experts_is_the_donors() -> None:
    for a, b in ((MIXTRAL, MIXTRAL_OTHER), (MIXTRAL_OTHER, MIXTRAL), (MIXTRAL_OTHER, MIXTRAL_STACKED)):
        result = merged(model("a", a, "mixtral"), model("b", b, "mixtral"))
        complete(result)
        assert suffixes(result) == ONE | a.keys()


# ---- stacks that have no other form ----------------------------------------------------------------

ONLY: dict[str, tuple[Shapes, int, dict[str, Any]]] = {
    "llama4_text": (
        {
            "feed_forward.experts.gate_up_proj": (E, H, 2 * INNER),
            "feed_forward.experts.down_proj": (E, INNER, H),
            "feed_forward.router.weight": (E, H),
        },
        3 * E + 1,
        {},
    ),
    "aria_text": (
        {
            "mlp.experts.fc1.weight": (E, H, 2 * INNER),
            "mlp.experts.fc2.weight": (E, INNER, H),
            "mlp.router.weight": (E, H),
        },
        3 * E + 1,
        {},
    ),
    "gpt_oss": (
        {
            "mlp.experts.gate_up_proj": (E, H, 2 * INNER),
            "mlp.experts.gate_up_proj_bias": (E, 2 * INNER),
            "mlp.experts.down_proj": (E, INNER, H),
            "mlp.experts.down_proj_bias": (E, H),
            "mlp.router.weight": (E, H),
            "mlp.router.bias": (E,),
        },
        4 * E + 2,
        {},
    ),
    "dbrx": (
        {
            **{f"ffn.experts.mlp.{role}": (E * INNER, H) for role in ("w1", "v1", "w2")},
            "ffn.router.layer.weight": (E, H),
        },
        3 * E + 1,
        {"ffn_config": {"moe_num_experts": E}},
    ),
    "jetmoe": (
        {
            "mlp.input_linear.weight": (E, 2 * INNER, H),
            "mlp.output_linear.weight": (E, H, INNER),
            "mlp.bias": (H,),
            "self_attention.experts.input_linear.weight": (E, 4, H),
            "self_attention.experts.output_linear.weight": (E, H, 4),
        },
        5 * E + 1,
        {},
    ),
    "granitemoeshared": (
        {
            "block_sparse_moe.input_linear.weight": (E, 2 * INNER, H),
            "block_sparse_moe.output_linear.weight": (E, H, INNER),
            "shared_mlp.input_linear.weight": (2 * INNER, H),
            "shared_mlp.output_linear.weight": (H, INNER),
        },
        3 * E + 2,
        {},
    ),
    "gemma4_text": (
        together("")
        | {"mlp.gate_proj.weight": (INNER, H), "router.proj.weight": (E, H), "router.scale": (H,)},
        3 * E + 3,
        {},
    ),
}


@pytest.mark.parametrize("kind", ONLY)
@pytest.mark.parametrize("layout", [None, "stacked"])
def test_experts_of_every_stacked_family_are_merged_one_by_one(
    kind: str, layout: ExpertLayout | None
) -> None:
    layer, count, config = ONLY[kind]
    models = [model(name, layer, kind, **config) for name in "ab"]
    (first, _) = inputs_of(linear("a", "b"), *models).values()
    assert len([n for n in first.tensors if "layers.1." in n]) == count + 1
    result = merged(*models, layout=layout)
    complete(result)
    assert suffixes(result) == ONE | layer.keys()
    for name, shape in layer.items():
        assert result.graph.outputs[f"model.layers.1.{name}"].spec.shape == shape


@pytest.mark.parametrize("kind", [k for k in ONLY if k != "gemma4_text"])
def test_no_other_layout_is_made_up(kind: str) -> None:
    layer, _, config = ONLY[kind]
    result = merged(*(model(name, layer, kind, **config) for name in "ab"), layout="per-expert")
    assert suffixes(result) == ONE | layer.keys()


@pytest.mark.parametrize("kind", ONLY)
def test_stacks_that_are_only_copied_are_one_load_each(kind: str) -> None:
    layer, _, config = ONLY[kind]
    result = compiled(stacked(("a", 0, LAYERS)), model("a", layer, kind, **config))
    complete(result)
    for output in result.graph.outputs.values():
        (part,) = output.parts
        assert part.place is None and [s.view for s in part.sources] == [None]


def test_quantised_stacks_are_left_whole() -> None:
    """gpt_oss as it is published: packed blocks and their scales, unpacked biases."""
    layer: dict[str, Any] = {
        "mlp.experts.gate_up_proj_blocks": ((E, 2 * INNER, 4, 16), DType.U8),
        "mlp.experts.gate_up_proj_scales": ((E, 2 * INNER, 4), DType.U8),
        "mlp.experts.gate_up_proj_bias": ((E, 2 * INNER), DType.BF16),
        "mlp.experts.down_proj_blocks": ((E, H, 4, 16), DType.U8),
        "mlp.experts.down_proj_bias": ((E, H), DType.BF16),
    }
    (only,) = inputs_of(stacked(("a", 0, LAYERS)), model("a", layer, "gpt_oss")).values()
    assert {n for n in only.tensors if "layers.1" in n} == {f"model.layers.1.{n}" for n in ONE | layer.keys()}
    assert all(place.view is None for place in only.tensors.values())


# ---- what stands beside experts --------------------------------------------------------------------


def test_dense_layers_before_keep_their_names() -> None:
    dense = {f"mlp.{role}": (INNER, H) for role in GATED[:2]} | {"mlp.down_proj.weight": (H, INNER)}
    own, other = FAMILIES["deepseek_v3"]
    models = model("a", own, "deepseek_v3", dense=dense), model("b", other, "deepseek_v3", dense=dense)
    for layout, wanted in ((None, own), ("per-expert", own), ("stacked", other)):
        result = merged(*models, layout=layout)  # type: ignore[arg-type]
        complete(result)
        assert suffixes(result, 0) == ONE | dense.keys()
        assert suffixes(result, 1) == ONE | wanted.keys()


def test_a_dense_mlp_beside_mixtral_experts_keeps_its_name() -> None:
    """A layer without experts has no block to be brought in line."""
    dense = {"mlp.gate_proj.weight": (INNER, H), "mlp.down_proj.weight": (H, INNER)}
    models = model("a", MIXTRAL, "mixtral", dense=dense), model("b", MIXTRAL_STACKED, "mixtral", dense=dense)
    result = merged(*models)
    complete(result)
    assert suffixes(result, 0) == ONE | dense.keys()


@pytest.mark.parametrize(
    "shared", ["mlp.shared_expert.gate_proj.weight", "mlp.shared_experts.up_proj.weight"]
)
def test_shared_experts_keep_their_names(shared: str) -> None:
    own, other = QWEN | {shared: (INNER, H)}, QWEN_STACKED | {shared: (INNER, H)}
    models = model("a", own, "qwen2_moe"), model("b", other, "qwen2_moe")
    for layout in (None, "per-expert", "stacked"):
        result = merged(*models, layout=layout)  # type: ignore[arg-type]
        complete(result)
        assert shared in suffixes(result)


def test_a_language_model_inside_another_model_is_recognised() -> None:
    prefix = "model.language_model.layers"
    tower = {f"model.visual.blocks.{i}.mlp.gate.weight": (4, 4) for i in range(5)}
    found = []
    for name, layer in (("a", QWEN), ("b", QWEN_STACKED)):
        plain = model(name, layer, "qwen3_5_moe", prefix=prefix)
        held: dict[str, Any] = {n: e.spec.shape for n, e in plain.tensors.items()}
        config = {"model_type": "qwen3_5_moe", "text_config": {"num_hidden_layers": LAYERS}}
        found.append(index(name, held | tower, config))
    result = merged(*found)
    complete(result)
    assert suffixes(result, prefix=prefix) == ONE | QWEN.keys()
    assert set(tower) <= set(result.graph.outputs)
    both = merged(
        *(index(n, {k: e.spec.shape for k, e in found[1].tensors.items()}, found[1].config) for n in "ab")
    )
    assert suffixes(both, prefix=prefix) == ONE | QWEN_STACKED.keys()


def test_experts_of_text_and_of_images_in_one_layer_are_all_kept() -> None:
    layer = {
        name.replace("mlp.", f"mlp.{kind}_moe."): shape
        for kind in ("text", "vision")
        for name, shape in QWEN_STACKED.items()
    }
    result = merged(model("a", layer, "ernie4_5_vl_moe"), model("b", layer, "ernie4_5_vl_moe"))
    complete(result)
    assert suffixes(result) == ONE | layer.keys()
    apart = {
        name.replace("mlp.", f"mlp.{kind}_moe."): shape
        for kind in ("text", "vision")
        for name, shape in QWEN.items()
    }
    result = merged(model("a", apart, "ernie4_5_vl_moe"), model("b", layer, "ernie4_5_vl_moe"))
    complete(result)
    assert suffixes(result) == ONE | apart.keys()


def test_a_body_saved_alone_merges_with_a_whole_model_in_the_other_layout() -> None:
    whole = model("a", MIXTRAL, "mixtral")
    body = model("b", MIXTRAL_STACKED, "mixtral")
    bare = index(
        "b",
        {n.removeprefix("model."): e.spec.shape for n, e in body.tensors.items() if n != "lm_head.weight"},
        body.config,
    )
    result = merged(whole, bare)
    assert not result.report.partial, "its missing head is its embedding"
    assert suffixes(result) == ONE | MIXTRAL.keys()


def test_numbers_before_the_layers_do_not_mix_experts_up() -> None:
    """Layers inside numbered towers: only the first number is a layer's."""
    layer = {f"blocks.{i}.{n}": s for i in range(2) for n, s in QWEN_STACKED.items()}
    result = merged(model("a", layer, "new"), model("b", layer, "new"))
    complete(result)
    assert suffixes(result) == ONE | layer.keys()


# ---- layers that differ ----------------------------------------------------------------------------


@pytest.mark.parametrize("experts", [(2, 4), (4, 2)])
def test_layers_may_have_different_numbers_of_experts(experts: tuple[int, int]) -> None:
    def held(name: str) -> CheckpointIndex:
        first, second = (together("mlp.", count) for count in experts)
        return model(name, second, "qwen3_moe", dense=first)

    result = merged(held("a"), held("b"))
    complete(result)
    for layer, count in enumerate(experts):
        assert suffixes(result, layer) == ONE | together("mlp.").keys()
        shape = result.graph.outputs[f"model.layers.{layer}.mlp.experts.gate_up_proj"].spec.shape
        assert shape == (count, 2 * INNER, H)


@pytest.mark.parametrize("first", ["a", "b"])
def test_layers_of_models_with_different_numbers_of_experts_keep_all_of_theirs(first: str) -> None:
    """Passed through side by side: each layer is as its model stores it."""
    models = {
        "a": model("a", QWEN_STACKED, "qwen3_moe"),
        "b": model("b", {"mlp.gate.weight": (5, H)} | together("mlp.", 5), "qwen3_moe"),
    }
    order = [first, "b" if first == "a" else "a"]
    result = compiled(stacked((order[0], 0, 1), (order[1], 1, 2)), *models.values())
    for layer, name in enumerate(order):
        assert suffixes(result, layer) == ONE | QWEN_STACKED.keys()
        shape = result.graph.outputs[f"model.layers.{layer}.mlp.experts.down_proj"].spec.shape
        assert shape == (3 if name == "a" else 5, H, INNER)


@pytest.mark.parametrize("again", [QWEN_STACKED, MIXTRAL_OTHER], ids=["stacked", "other names"])
def test_experts_that_a_checkpoint_holds_twice_are_not_left_out_in_silence(again: Shapes) -> None:
    twice = model("a", QWEN | again, "qwen3_moe")
    try:
        result = merged(twice, model("b", QWEN, "qwen3_moe"))
    except PlanError:
        return
    parts = [part for output in result.graph.outputs.values() for part in output.parts]
    known = {s.tensor for part in parts for s in part.sources if s.checkpoint == "a"}
    known |= {d.tensor.split("[")[0] for d in result.report.dropped}
    assert set(twice.tensors) <= known


def test_stacks_in_different_forms_under_one_name_are_refused() -> None:
    """Rows and columns have the same names: nothing may be merged from one model alone unnoticed."""
    rows = model("a", together("mlp."), "qwen3_vl_moe")
    columns = {"mlp.experts.gate_up_proj": (E, H, 2 * INNER), "mlp.experts.down_proj": (E, INNER, H)}
    with pytest.raises(PlanError, match="b and a hold experts differently"):
        merged(rows, model("b", columns, "qwen3_vl_moe"))


def test_an_incomplete_layer_is_not_half_stacked() -> None:
    def held(name: str, without: str | None) -> CheckpointIndex:
        layer = {n: s for n, s in MIXTRAL.items() if n != without}
        return model(name, layer, "mixtral")

    gap = "block_sparse_moe.experts.1.w1.weight"
    plan = based("ties", "a", "b", tail="unmatched: drop\n")
    result = compiled(plan, held("a", gap), held("b", None), layout="stacked")
    found = suffixes(result)
    assert not any("gate_up_proj" in n for n in found)
    assert "mlp.experts.down_proj" not in found, "down alone is in a form that nothing loads"


# ---- rules of one checkpoint -----------------------------------------------------------------------


def entries(tensors: Tensors) -> Mapping[str, Any]:
    return {n: (n, e) for n, e in index("m", tensors).tensors.items()}


def test_without_experts_nothing_is_renamed() -> None:
    held = entries({"model.layers.0.mlp.gate_proj.weight": (4, 4), "x": (2,)})
    places, form = logical(held, None, {})
    assert list(places) == list(held)
    assert not form.kinds and not form.stored and not form.separate and not form.stacked


def test_the_spelling_is_that_of_the_first_model_with_separate_experts() -> None:
    def named(layer: Shapes) -> list[str]:
        return [f"model.layers.0.{n}" for n in layer]

    config = {"model_type": "mixtral"}
    for models in ([MIXTRAL_STACKED, MIXTRAL], [MIXTRAL, MIXTRAL_STACKED], [MIXTRAL_STACKED], [MIXTRAL]):
        found = spelling_for([(named(layer), config) for layer in models])
        assert found is not None
        assert (found.block, found.stacked) == ("block_sparse_moe.", "mlp.")
    unknown = spelling_for([(named(MIXTRAL_STACKED), {"model_type": "never heard of"})])
    assert unknown is not None and unknown.name(2, 2) == "mlp.experts.2.down_proj.weight"
    assert spelling_for([(["model.layers.0.mlp.gate_proj.weight"], {})]) is None
    assert spelling_for([(named(MIXTRAL_STACKED), {"model_type": ["a", "list"]})]) is not None
