"""An account of every input tensor, and remarks on what a plan says without effect."""

from __future__ import annotations

import pytest

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.compiler.merge import Compiled
from mergegraph.tensorspec import DType
from tests.compiler.headers import (
    TIED,
    based,
    changed,
    compiled,
    index,
    linear,
    llama,
    problems,
    stacked,
)


def notes(text: str, *models: CheckpointIndex) -> str:
    return "\n".join(compiled(text, *models).report.notes)


def accounted(result: Compiled) -> list[tuple[str, str]]:
    """Every (model, tensor) that is read or reported as dropped."""
    read = [(s.checkpoint, s.tensor) for s in result.graph.sources()]
    return sorted([*read, *((d.model, d.tensor) for d in result.report.dropped)])


# ---- accounting ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        linear("a", "b"),
        based("slerp", "a", "b"),
        based("ties", "b", "a", tail="unmatched: copy\n"),
        stacked(("a", 0, 2), ("b", 3, 4)),
        stacked(("b", 1, 2), ("a", 0, 1)),
        linear("a", "b", head="unmatched: drop\n"),
        based("ties", "a", "b", tail="unmatched: drop\n"),
    ],
)
def test_every_input_tensor_is_read_once_or_dropped_with_a_reason(text: str) -> None:
    a = changed(llama("a"), model__rotary_emb__inv_freq=(4,), extra=((2,), DType.I64))
    b = changed(llama("b", TIED), visual__gain=(3,))
    result = compiled(text, a, b)
    expected = sorted([*(("a", n) for n in a.tensors), *(("b", n) for n in b.tensors)])
    assert accounted(result) == expected
    assert all(d.reason for d in result.report.dropped)


def test_a_dropped_tensor_has_the_reason_that_applies() -> None:
    a = changed(llama("a"), model__layers__0__self_attn__rotary_emb__inv_freq=(4,))
    b = changed(llama("b"), model__layers__0__self_attn__rotary_emb__inv_freq=(4,))
    dropped = compiled(linear("a", "b"), a, b).report.dropped
    assert [(d.model, d.reason) for d in dropped] == [("b", "derived buffer")]
    stack = compiled(stacked(("a", 0, 2), ("b", 2, 4)), llama("a"), llama("b")).report.dropped
    reasons = {(d.model, d.tensor): d.reason for d in stack}
    assert reasons["b", "model.embed_tokens.weight"] == "taken from another model's slice"
    assert reasons["a", "model.norm.weight"] == "taken from another model's slice"
    assert reasons["a", "model.layers.3.input_layernorm.weight"] == "its layer is in no slice"


def test_a_tensor_that_only_some_models_have_is_listed_with_those_that_lack_it() -> None:
    a = changed(llama("a"), model__extra=(3,))
    result = compiled(linear("a", "b", "c"), a, llama("b"), llama("c"))
    assert [(p.tensor, p.missing_from) for p in result.report.partial] == [("model.extra", ("b", "c"))]


# ---- configs ---------------------------------------------------------------------------------------


def test_a_change_of_too_few_models_for_the_method_is_dropped_with_that_reason() -> None:
    a, b, base = changed(llama("a"), model__extra=(3,)), llama("b"), changed(llama("base"), model__extra=(3,))
    result = compiled(based("model_stock", "base", "a", "b"), base, a, b)
    (dropped,) = result.report.dropped
    assert (dropped.model, dropped.tensor) == ("a", "model.extra")
    assert dropped.reason == "model_stock needs 2 models besides the base, whose tensor is copied"


def test_config_keys_on_which_models_disagree_are_listed_with_every_value() -> None:
    a = llama("a", rope_theta=1e4, rope_scaling={"factor": 2})
    b = llama("b", rope_theta=5e5, rope_scaling={"factor": 4}, only_here=True)
    found = {d.key: dict(d.values) for d in compiled(linear("a", "b"), a, b).report.config_differences}
    assert found == {
        "rope_theta": {"a": "10000.0", "b": "500000.0"},
        "rope_scaling.factor": {"a": "2", "b": "4"},
        "only_here": {"a": None, "b": "true"},
    }


@pytest.mark.parametrize("key", ["torch_dtype", "transformers_version", "_name_or_path", "use_cache"])
def test_keys_that_say_nothing_of_the_model_are_left_out(key: str) -> None:
    models = llama("a", **{key: "x"}), llama("b", **{key: "y"})
    assert compiled(linear("a", "b"), *models).report.config_differences == ()


def test_integers_and_equal_floats_are_no_difference() -> None:
    models = llama("a", rope_theta=10000), llama("b", rope_theta=10000.0)
    assert compiled(linear("a", "b"), *models).report.config_differences == ()


# ---- notes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["int8_mask", "density", "normalize", "weight", "rescale", "lambda"])
def test_parameters_of_other_methods_compile_with_a_note(name: str) -> None:
    """Published configurations carry them along; mergekit ignores them, in silence."""
    plan = based("slerp", "a", "b").replace("{t: 0.5}", f"{{t: 0.5, {name}: 1}}")
    text = notes(plan, llama("a"), llama("b"))
    assert name in text
    assert "p.yml:5" in text


@pytest.mark.parametrize("name", ["epsilon", "gamma", "select_topk", "density", "t", "filter_wise"])
def test_they_do_so_below_a_model_and_in_a_slice(name: str) -> None:
    below = (
        f"merge_method: linear\nmodels:\n  - model: a\n    parameters:\n      weight: 1\n      {name}: 0.5\n"
    )
    text = notes(below, llama("a"))
    assert name in text
    assert "p.yml:6" in text
    inside = (
        "merge_method: passthrough\nslices:\n  - sources: [{model: a, layer_range: [0, 4]}]\n"
        f"    parameters:\n      {name}: 0.5\n"
    )
    text = notes(inside, llama("a"))
    assert name in text
    assert "p.yml:5" in text


@pytest.mark.parametrize("value", ["yes please", "[1, 2]", "[{filter: mlp, value: 1}, {value: 2}]", "-7"])
def test_the_value_of_a_parameter_without_effect_does_not_matter(value: str) -> None:
    plan = linear("a", tail=f"parameters: {{density: {value}}}\n")
    assert "density" in notes(plan, llama("a"))


def test_a_shared_parameter_below_a_model_compiles_with_a_note() -> None:
    plan = (
        "merge_method: ties\nbase_model: a\nmodels:\n  - model: b\n"
        "    parameters:\n      weight: 1\n      density: 0.5\n      normalize: true\n"
    )
    text = notes(plan, llama("a"), llama("b"))
    assert "normalize" in text
    assert "p.yml:8" in text


def test_a_required_shared_parameter_that_stands_only_below_a_model_is_missing() -> None:
    plan = "merge_method: slerp\nbase_model: a\nmodels:\n  - model: b\n    parameters:\n      t: 0.5\n"
    (problem,) = problems(plan, llama("a"), llama("b"))
    assert "'t'" in problem.message


@pytest.mark.parametrize("name", ["wieght", "densty", "temperature", "Weight"])
def test_names_that_no_method_has_stay_problems(name: str) -> None:
    found = problems(linear("a", tail=f"parameters: {{{name}: 1}}\n"), llama("a"))
    assert any(name in p.message and p.where == "p.yml:5" for p in found)


def test_a_plan_without_surprises_has_no_notes() -> None:
    plan = based("slerp", "a", "b").replace("0.5", "[{filter: mlp, value: 0.3}, {value: 0.5}]")
    assert notes(plan, llama("a"), llama("b")) == ""


@pytest.mark.parametrize("level", ["plan", "model"])
def test_a_filter_that_is_part_of_no_name_is_noted_with_its_line(level: str) -> None:
    setting = "weight: [{filter: mpl, value: 2}, {value: 1}]"
    plan = (
        linear("a", tail=f"parameters: {{normalize: true, {setting}}}\n")
        if level == "plan"
        else linear("a").replace("weight: 1", setting)
    )
    text = notes(plan, llama("a"))
    assert "mpl" in text
    assert "p.yml:5" in text if level == "plan" else "p.yml:4" in text


def test_every_line_of_a_repeated_idle_filter_is_noted() -> None:
    plan = """\
merge_method: linear
models:
  - model: a
    parameters:
      weight: [{filter: mpl, value: 2}, {value: 1}]
  - model: b
    parameters:
      weight: [{filter: mpl, value: 2}, {value: 1}]
"""
    text = notes(plan, llama("a"), llama("b"))
    assert "p.yml:5" in text
    assert "p.yml:8" in text


def test_a_filter_on_a_layer_that_no_slice_takes_is_noted() -> None:
    plan = stacked(("a", 0, 2)) + "parameters: {scale: [{filter: layers.3., value: 2}, {value: 1}]}\n"
    assert "layers.3." in notes(plan, llama("a"))


def test_layers_of_another_kind_than_their_place_had_are_noted() -> None:
    """Jamba, RecurrentGemma, Qwen3-MoE: the place decides the kind; no key of the config can differ.

    ::

        a: x y x y   →   y x y      where loaders expect x y x
    """
    tensors = {f"net.layers.{i}.{'even' if i % 2 == 0 else 'odd'}.w": (2, 2) for i in range(4)}
    model = index("a", tensors, {"model_type": "striped", "num_hidden_layers": 4, "period": 2})
    assert notes(stacked(("a", 0, 2), ("a", 2, 4)), model) == ""
    assert notes(stacked(("a", 0, 2), ("a", 0, 2)), model) == ""
    assert "layer" in notes(stacked(("a", 1, 4)), model)
