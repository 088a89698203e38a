"""Which input tensors go into which output tensor."""

from __future__ import annotations

import pytest

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.compiler.groups import as_slices
from mergegraph.plan.merge import parse_plan
from mergegraph.tensorspec import DType
from tests.compiler.headers import (
    LLAMA,
    TIED,
    based,
    changed,
    compiled,
    index,
    linear,
    llama,
    models_of,
    problems,
    renamed,
    sources,
    stacked,
)

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
Q = "self_attn.q_proj.weight"


# ---- stacking --------------------------------------------------------------------------------------


def test_two_halves_laid_end_to_end_are_the_model() -> None:
    """::

    a: 0 1 2 3   →   0 1 | 2 3
    """
    result = compiled(stacked(("a", 0, 2), ("a", 2, 4)), llama("a"))
    assert set(result.graph.outputs) == set(llama("a").tensors)
    assert all(sources(result, name) == [("a", name)] for name in result.graph.outputs)
    assert result.report.dropped == ()
    assert result.config == {**llama("a").config}


def test_slices_renumber_layers_and_take_the_ends_from_the_first_and_last() -> None:
    """::

    a: 0 1 2 .      b: . 1 2 3      →   a0 a1 a2 b1 b2 b3
    """
    result = compiled(stacked(("a", 0, 3), ("b", 1, 4)), llama("a"), llama("b"))
    taken = [sources(result, f"model.layers.{i}.{Q}")[0] for i in range(6)]
    assert taken == [("a", f"model.layers.{i}.{Q}") for i in range(3)] + [
        ("b", f"model.layers.{i}.{Q}") for i in range(1, 4)
    ]
    assert models_of(result, EMBEDDING) == ["a"]
    assert models_of(result, NORM) == models_of(result, HEAD) == ["b"]
    assert result.config["num_hidden_layers"] == 6
    assert f"model.layers.6.{Q}" not in result.graph.outputs


def test_one_layer_may_be_used_several_times() -> None:
    result = compiled(stacked(("a", 1, 2), ("a", 1, 2), ("a", 1, 2)), llama("a"))
    assert [sources(result, f"model.layers.{i}.{Q}") for i in range(3)] == [
        [("a", f"model.layers.1.{Q}")]
    ] * 3
    assert result.config["num_hidden_layers"] == 3


def test_every_tensor_of_a_layer_in_no_slice_is_reported_as_dropped() -> None:
    result = compiled(stacked(("a", 0, 2)), llama("a"))
    dropped = {d.tensor: d.reason for d in result.report.dropped}
    assert list(dropped) == [n for n in llama("a").tensors if ".layers.2." in n or ".layers.3." in n]
    assert set(dropped.values()) == {"its layer is in no slice"}


def test_sources_of_a_slice_may_be_offset_layers() -> None:
    plan = """\
merge_method: linear
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: 1}}
      - {model: b, layer_range: [2, 4], parameters: {weight: 1}}
"""
    result = compiled(plan, llama("a"), llama("b"))
    assert sources(result, f"model.layers.1.{Q}") == [
        ("a", f"model.layers.1.{Q}"),
        ("b", f"model.layers.3.{Q}"),
    ]


def test_the_last_norm_and_head_are_merged_from_every_source_of_the_last_slice() -> None:
    plan = """\
merge_method: linear
parameters: {weight: 1}
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [2, 4]}, {model: c, layer_range: [2, 4]}]
"""
    result = compiled(plan, llama("a"), llama("b"), llama("c"))
    assert models_of(result, EMBEDDING) == ["a"]
    assert models_of(result, NORM) == models_of(result, HEAD) == ["b", "c"]


def test_models_of_different_depth_can_be_stacked() -> None:
    deep = index("deep", type(LLAMA)(6, 8, 12, 2, 1, 10).shapes())
    result = compiled(stacked(("a", 0, 2), ("deep", 3, 6)), llama("a"), deep)
    assert sources(result, f"model.layers.4.{Q}") == [("deep", f"model.layers.5.{Q}")]
    assert result.config["num_hidden_layers"] == 5


# ---- names -----------------------------------------------------------------------------------------


def test_an_architecture_that_nobody_knows_merges_and_slices() -> None:
    """Invented names: ``zorb.glim.<i>.…``, unequal layers, a config without any known key."""
    tensors = {"zorb.embed.weight": (10, 8), "zorb.finish.gain": (8,), "zorb.beyond": (3,)}
    for i in range(3):
        tensors |= {f"zorb.glim.{i}.quux": (8, 8), f"zorb.glim.{i}.sub.0.w": (i + 1, 8)}
    models = [index(n, tensors, {"model_type": "zorb"}) for n in "ab"]
    result = compiled(linear("a", "b"), *models)
    assert set(result.graph.outputs) == set(tensors)
    assert all(models_of(result, name) == ["a", "b"] for name in tensors)
    stack = compiled(stacked(("a", 0, 2), ("b", 1, 3)), *models)
    assert sources(stack, "zorb.glim.3.sub.0.w") == [("b", "zorb.glim.2.sub.0.w")]
    assert models_of(stack, "zorb.embed.weight") == ["a"]
    assert models_of(stack, "zorb.finish.gain") == ["b"]


def test_tensors_without_any_layer_merge_too() -> None:
    models = [index(n, {"w": (4, 4), "net.bias": (4,)}, {}) for n in "ab"]
    result = compiled(linear("a", "b"), *models)
    assert set(result.graph.outputs) == {"w", "net.bias"}
    assert result.config == {}


@pytest.mark.parametrize("order", [("with", "without"), ("without", "with")])
def test_gpt2_with_and_without_its_prefix_are_one_model(order: tuple[str, str]) -> None:
    shapes = {"transformer.wte.weight": (10, 8), "transformer.ln_f.weight": (8,)}
    shapes |= {f"transformer.h.{i}.attn.c_attn.weight": (8, 24) for i in range(3)}
    prefixed = index("with", shapes, {"n_layer": 3, "tie_word_embeddings": True})
    bare = renamed(index("without", shapes, {"n_layer": 3}), "transformer.", "")
    result = compiled(linear(*order), prefixed, bare)
    donor = prefixed if order[0] == "with" else bare
    assert set(result.graph.outputs) == set(donor.tensors)
    assert all(models_of(result, name) == list(order) for name in result.graph.outputs)
    assert result.report.partial == ()
    assert result.report.dropped == ()


def test_gpt2_without_prefix_finds_the_head_of_an_untied_one() -> None:
    shapes = {"transformer.wte.weight": (10, 8), "lm_head.weight": (10, 8)}
    shapes |= {f"transformer.h.{i}.mlp.weight": (8, 8) for i in range(3)}
    whole = index("whole", shapes, {"n_layer": 3, "tie_word_embeddings": False})
    body = {n.removeprefix("transformer."): s for n, s in shapes.items() if n != "lm_head.weight"}
    bare = index("bare", body, {"n_layer": 3})
    result = compiled(linear("whole", "bare"), whole, bare)
    assert sources(result, "lm_head.weight") == [("whole", "lm_head.weight"), ("bare", "wte.weight")]
    assert result.report.partial == ()


def test_filters_see_the_name_in_the_donors_spelling() -> None:
    shapes = {"transformer.wte.weight": (10, 8)}
    shapes |= {f"transformer.h.{i}.mlp.weight": (8, 8) for i in range(3)}
    models = index("a", shapes, {"n_layer": 3}), renamed(index("b", shapes, {}), "transformer.", "")
    plan = """\
merge_method: linear
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: [{filter: transformer.h.1, value: 3}, {value: 1}]}}
"""
    result = compiled(plan, *models)
    weights = {
        tuple(values["weight"] for _, values in found.each): found.tensors
        for found in result.report.parameters
    }
    assert weights[1.0, 3.0] == ("transformer.h.1.mlp.weight",)


# ---- tied heads ------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, None])
@pytest.mark.parametrize("second", [True, None])
def test_two_tied_models_give_a_tied_one(first: bool | None, second: bool | None) -> None:
    models = [llama(n, TIED, tie_word_embeddings=tie) for n, tie in (("a", first), ("b", second))]
    result = compiled(linear("a", "b"), *models)
    assert HEAD not in result.graph.outputs
    assert result.config.get("tie_word_embeddings") is first


@pytest.mark.parametrize("tie", [True, None])
@pytest.mark.parametrize("tied_first", [True, False])
def test_a_tied_and_an_untied_model_give_an_untied_one(tie: bool | None, tied_first: bool) -> None:
    """The tied model's head is its embedding, whether or not its config says so."""
    tied, untied = llama("tied", TIED, tie_word_embeddings=tie), llama("untied")
    order = ("tied", "untied") if tied_first else ("untied", "tied")
    result = compiled(linear(*order), tied, untied)
    expected = {"tied": ("tied", EMBEDDING), "untied": ("untied", HEAD)}
    assert sources(result, HEAD) == [expected[name] for name in order]
    assert result.config["tie_word_embeddings"] is False
    assert result.report.partial == ()


def test_a_missing_head_whose_config_rules_tying_out_is_really_missing() -> None:
    broken = changed(llama("a"), lm_head__weight=None)
    result = compiled(linear("a", "b"), broken, llama("b"))
    assert models_of(result, HEAD) == ["b"]
    assert [(p.tensor, p.missing_from) for p in result.report.partial] == [(HEAD, ("a",))]
    (problem,) = problems(based("ties", "a", "b"), broken, llama("b"))
    assert HEAD in problem.message


def test_two_untied_models_whose_configs_call_them_tied_keep_their_heads() -> None:
    """Some exports hold a head of their own and a stale flag, with which loaders would ignore it."""
    models = [llama(n, tie_word_embeddings=True) for n in "ab"]
    result = compiled(linear("a", "b"), *models)
    assert models_of(result, HEAD) == ["a", "b"]


@pytest.mark.parametrize("method", ["slerp", "task_arithmetic", "ties"])
@pytest.mark.parametrize("base_tied", [True, False])
def test_heads_follow_the_base_model_under_every_method(method: str, base_tied: bool) -> None:
    base, other = llama("base", TIED if base_tied else LLAMA), llama("m", LLAMA if base_tied else TIED)
    result = compiled(based(method, "base", "m"), base, other)
    assert sorted(models_of(result, HEAD)) == ["base", "m"]
    assert result.config["tie_word_embeddings"] is False


def test_slices_of_a_tied_and_an_untied_model_give_a_head_to_load() -> None:
    """The head comes from the last slice; a tied one there is a copy of its embedding."""
    tied, untied = llama("tied", TIED), llama("untied")
    result = compiled(stacked(("untied", 0, 2), ("tied", 2, 4)), tied, untied)
    assert sources(result, HEAD) == [("tied", EMBEDDING)]
    assert models_of(result, EMBEDDING) == ["untied"]
    assert result.config["tie_word_embeddings"] is False
    other = compiled(stacked(("tied", 0, 2), ("untied", 2, 4)), tied, untied)
    assert sources(other, HEAD) == [("untied", HEAD)]
    assert other.config["tie_word_embeddings"] is False


def test_slices_of_two_tied_models_keep_the_head_that_fits_the_last_layers() -> None:
    """Each model is tied to an embedding of its own; only the first one's is at the input."""
    result = compiled(stacked(("a", 0, 2), ("b", 2, 4)), llama("a", TIED), llama("b", TIED))
    if HEAD in result.graph.outputs:
        assert sources(result, HEAD) == [("b", EMBEDDING)]
        assert result.config["tie_word_embeddings"] is False
    else:
        assert result.config["tie_word_embeddings"] is True
        assert any(d.tensor == EMBEDDING and d.model == "b" for d in result.report.dropped)


# ---- several stacks --------------------------------------------------------------------------------


def vlm(name: str, vision_layers: int = 6, tower: str = "vision_tower") -> CheckpointIndex:
    """A language model of 4 layers behind a tower of other layers."""
    language = {f"language_model.{n}": s for n, s in LLAMA.shapes().items()}
    eyes = {f"{tower}.embed.patch.weight": (8, 3), f"{tower}.post_norm.weight": (8,)}
    eyes |= {f"{tower}.layers.{i}.w": (8, 8) for i in range(vision_layers)}
    config = {"model_type": "vlm", "text_config": LLAMA.config("F32"), "vision_config": {"depth": 6}}
    return index(name, {**eyes, "projector.weight": (8, 8), **language}, config)


@pytest.mark.parametrize("count", [2, 4, 6])
@pytest.mark.parametrize("tower", ["vision_tower", "audio_tower", "encoder", "model.vision"])
def test_the_language_model_is_the_stack_that_is_sliced(count: int, tower: str) -> None:
    """Also where a tower before it in the alphabet is as deep, as in Qwen2-Audio (32 and 32 layers)."""
    model = vlm("a", count, tower)
    result = compiled(stacked(("a", 0, 1), ("a", 3, 4)), model)
    assert sources(result, f"language_model.model.layers.1.{Q}") == [
        ("a", f"language_model.model.layers.3.{Q}")
    ]
    assert f"{tower}.layers.{count - 1}.w" in result.graph.outputs
    assert result.config["text_config"]["num_hidden_layers"] == 2
    assert result.config["vision_config"] == {"depth": 6}


def test_a_tower_beside_the_layers_comes_whole_from_one_model() -> None:
    """Half a vision tower of one model in front of the other half of another would see nothing."""
    result = compiled(stacked(("a", 0, 2), ("b", 2, 4)), vlm("a"), vlm("b"))
    tower = [name for name in result.graph.outputs if name.startswith("vision_tower.")]
    assert len({models_of(result, name)[0] for name in tower}) == 1


def test_layers_of_a_tower_have_a_gradient_of_their_own() -> None:
    plan = """\
merge_method: slerp
base_model: a
models: [{model: b}]
parameters: {t: [0, 1]}
"""
    result = compiled(plan, vlm("a"), vlm("b"))
    at = {n: a.shared["t"] for a in result.report.parameters for n in a.tensors}
    assert at["vision_tower.layers.0.w"] == 0.0
    assert at["vision_tower.layers.5.w"] == 1.0
    assert at[f"language_model.model.layers.3.{Q}"] == 1.0
    assert at["projector.weight"] == at["language_model.lm_head.weight"] == 0.0


# ---- experts ---------------------------------------------------------------------------------------


def test_experts_are_ordinary_tensors_of_their_layer() -> None:
    shapes = dict(LLAMA.shapes())
    for i in range(4):
        shapes |= {f"model.layers.{i}.mlp.experts.{e}.w1.weight": (12, 8) for e in range(3)}
        shapes[f"model.layers.{i}.mlp.gate.weight"] = (3, 8)
    models = [index(n, shapes) for n in "ab"]
    merged = compiled(linear("a", "b"), *models)
    assert set(merged.graph.outputs) == set(shapes)
    stack = compiled(stacked(("a", 0, 1), ("b", 3, 4)), *models)
    assert sources(stack, "model.layers.1.mlp.experts.2.w1.weight") == [
        ("b", "model.layers.3.mlp.experts.2.w1.weight")
    ]


def test_layers_may_differ_in_what_they_hold() -> None:
    """A dense first layer, a layer without attention: pruned and hybrid models."""
    shapes = dict(LLAMA.shapes())
    del shapes[f"model.layers.2.{Q}"]
    shapes["model.layers.0.mlp.dense.weight"] = (5, 5)
    shapes["model.layers.3.mlp.up_proj.weight"] = (7, 8)
    models = [index(n, shapes) for n in "ab"]
    assert set(compiled(linear("a", "b"), *models).graph.outputs) == set(shapes)
    stack = compiled(stacked(("a", 0, 1), ("b", 2, 4)), *models)
    assert "model.layers.0.mlp.dense.weight" in stack.graph.outputs
    assert f"model.layers.1.{Q}" not in stack.graph.outputs
    assert stack.graph.outputs["model.layers.2.mlp.up_proj.weight"].spec.shape == (7, 8)


# ---- plan to slices --------------------------------------------------------------------------------


def test_a_base_that_is_not_listed_is_the_last_source() -> None:
    plan = parse_plan(based("slerp", "base", "m"), "p.yml")
    (part,) = as_slices(plan)
    assert [str(s.model) for s in part.sources] == ["m", "base"]
    assert part.sources[1].layer_range is None


def test_dtypes_of_inputs_do_not_change_what_belongs_together() -> None:
    wide = index("b", {n: (s, DType.BF16) for n, s in LLAMA.shapes().items()})
    result = compiled(linear("a", "b"), llama("a"), wide)
    assert result.graph.outputs[NORM].spec.dtype is DType.F32
    assert models_of(result, NORM) == ["a", "b"]
