"""Precedence, positions and names: what the parameters of each output tensor are."""

from __future__ import annotations

from typing import Any

import pytest

from mergegraph.compiler.inputs import Input
from mergegraph.compiler.merge import Compiled, settings_of
from mergegraph.methods import get_method
from mergegraph.plan.merge import parse_plan
from mergegraph.testing import Llama
from tests.compiler.headers import compiled, llama, problems, renamed

Q = "self_attn.q_proj.weight"
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


def shared(result: Compiled, name: str) -> dict[str, Any]:
    return {n: a.shared[name] for a in result.report.parameters for n in a.tensors}


def each(result: Compiled, name: str) -> dict[str, dict[str, Any]]:
    return {n: {m: v[name] for m, v in a.each} for a in result.report.parameters for n in a.tensors}


def test_the_most_specific_level_wins_for_each_model() -> None:
    plan = """\
merge_method: linear
parameters: {weight: 1}
slices:
  - sources:
      - {model: a, layer_range: [0, 2], parameters: {weight: 3}}
      - {model: b, layer_range: [0, 2]}
    parameters: {weight: 2}
  - sources:
      - {model: a, layer_range: [2, 4]}
      - {model: b, layer_range: [2, 4], parameters: {weight: [{filter: mlp, value: 5}]}}
"""
    at = each(compiled(plan, llama("a"), llama("b")), "weight")
    assert at[f"model.layers.0.{Q}"] == {"a": 3.0, "b": 2.0}
    assert at[f"model.layers.2.{Q}"] == {"a": 1.0, "b": 1.0}
    assert at["model.layers.3.mlp.up_proj.weight"] == {"a": 1.0, "b": 5.0}
    assert at[EMBEDDING] == {"a": 3.0, "b": 2.0}
    assert at[NORM] == at[HEAD] == {"a": 1.0, "b": 1.0}


def test_a_gradient_runs_over_each_slice_and_starts_outside_layers() -> None:
    plan = """\
merge_method: slerp
base_model: a
parameters: {t: [0, 1]}
slices:
  - sources: [{model: a, layer_range: [0, 3]}, {model: b, layer_range: [0, 3]}]
  - sources: [{model: a, layer_range: [3, 4]}, {model: b, layer_range: [3, 4]}]
"""
    at = shared(compiled(plan, llama("a"), llama("b")), "t")
    assert [at[f"model.layers.{i}.{Q}"] for i in range(4)] == [0.0, 0.5, 1.0, 1.0]
    assert at[EMBEDDING] == at[NORM] == at[HEAD] == 0.0


def test_models_share_one_slice_over_all_layers() -> None:
    plan = "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: [0, 3]}\n"
    at = shared(compiled(plan, llama("a"), llama("b")), "t")
    assert [at[f"model.layers.{i}.{Q}"] for i in range(4)] == [0.0, 1.0, 2.0, 3.0]


def test_shared_filters_see_output_names_and_per_model_filters_the_models_own() -> None:
    """::

    b: . . 2 3   →   output layers 0 and 1
    """
    plan = """\
merge_method: linear
slices:
  - sources:
      - {model: b, layer_range: [2, 4], parameters: {weight: [{filter: layers.2., value: 7}, {value: 1}]}}
    parameters:
      normalize: [{filter: layers.0., value: false}, {value: true}]
"""
    result = compiled(plan, llama("b"))
    assert each(result, "weight")[f"model.layers.0.{Q}"] == {"b": 7.0}
    assert shared(result, "normalize")[f"model.layers.0.{Q}"] is False
    assert shared(result, "normalize")[f"model.layers.1.{Q}"] is True


def test_a_filter_is_a_substring_so_layer_1_is_also_layer_10() -> None:
    plan = """\
merge_method: passthrough
models:
  - model: a
    parameters: {scale: [{filter: layers.1, value: 2}, {value: 1}]}
"""
    deep = llama("a", Llama(12, 8, 12, 2, 1, 10))
    at = each(compiled(plan, deep), "scale")
    assert [i for i in range(12) if at[f"model.layers.{i}.{Q}"] == {"a": 2.0}] == [1, 10, 11]


def test_a_required_parameter_that_no_filter_gives_names_tensor_and_model() -> None:
    plan = """\
merge_method: linear
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: [{filter: model, value: 1}]}}
"""
    (problem,) = problems(plan, llama("a"), llama("b"))
    assert "lm_head.weight" in problem.message
    assert "'weight' for b" in problem.message


def test_that_problem_stands_at_the_models_own_line() -> None:
    plan = "merge_method: linear\nmodels:\n  - {model: a, parameters: {weight: 1}}\n"
    plan += "  - {model: b, parameters: {weight: [{filter: model, value: 1}]}}\n"
    (problem,) = problems(plan, llama("a"), llama("b"))
    assert problem.where == "p.yml:4"


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_settings_of_a_tensor_carry_the_lines_they_come_from(names: tuple[str, str]) -> None:
    text = f"""\
merge_method: linear
models:
  - {{model: {names[0]}, parameters: {{weight: 1}}}}
  - model: {names[1]}
    parameters:
      weight:
        - filter: mlp
          value: 2
        - value: 3
"""
    plan = parse_plan(text, "p.yml")
    inputs = {ref: Input(ref, str(ref), llama(str(ref))) for ref in plan.referenced_models()}
    found = settings_of(plan, get_method("linear"), inputs, "model.layers.0.mlp.up_proj.weight")
    assert [(s.name, s.model, s.value, str(s.origin or "default")) for s in found] == [
        ("normalize", None, True, "default"),
        ("weight", names[0], 1.0, "p.yml:3"),
        ("weight", names[1], 2.0, "p.yml:7"),
    ]
    assert settings_of(plan, get_method("linear"), inputs, "no.such.tensor") == []


def test_values_are_shared_by_equal_tensors_only() -> None:
    """A cache of resolved values must not mix up models that set nothing of their own."""
    plan = """\
merge_method: linear
parameters:
  weight: [{filter: transformer.h.1., value: 2}, {value: 1}]
models: [{model: a}, {model: b}]
"""
    b = renamed(llama("b"), "model.layers", "transformer.h")
    a = renamed(llama("a"), "model.layers", "transformer.h")
    at = each(compiled(plan, a, b), "weight")
    assert at[f"transformer.h.1.{Q}"] == {"a": 2.0, "b": 2.0}
    assert at[f"transformer.h.2.{Q}"] == {"a": 1.0, "b": 1.0}
