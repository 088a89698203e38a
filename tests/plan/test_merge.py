"""Merge plans: what is accepted, what it becomes, and every way to be refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from mergegraph.errors import PlanError
from mergegraph.graph.node import Origin
from mergegraph.plan.merge import MergePlan, RawValue, parse_plan
from mergegraph.plan.values import ModelRef
from mergegraph.tensorspec import DType

FULL = """\
# a remark
merge_method: ties
base_model: org/base@main
dtype: float32
out_dtype: torch.bfloat16
models:
  - model: org/a
    parameters:
      weight: 0.5
      density: [0.2, 0.8]
  - model: {model: org/b, lora: org/adapter}
parameters:
  normalize: true
  weight:
    - filter: mlp
      value: 1
    - value: 2
tokenizer: {source: base, tokens: {"<x>": {source: org/a, force: true}}}
chat_template: chatml
seed: 7
unmatched: copy
"""

SLICED = """\
merge_method: slerp
slices:
  - sources:
      - model: a
        layer_range: [0, 4]
      - model: b
        layer_range: [2, 6]
        parameters: {x: 1}
    base_model: a
    parameters:
      t: 0.5
    residual_weight: 1.0
  - sources: [{model: a, layer_range: [4, 6]}, {model: b, layer_range: [6, 8]}]
base_model: b
"""


def refusal(text: str) -> list[tuple[int, str]]:
    """Return (line, text) of each problem; each must have a place and a hint."""
    with pytest.raises(PlanError) as caught:
        parse_plan(text, "p.yml")
    problems = caught.value.problems
    assert all(p.where and p.hint for p in problems)
    return [(int((p.where or "").removeprefix("p.yml:")), str(p)) for p in problems]


def plan_with(*lines: str) -> str:
    return "\n".join(["merge_method: linear", "models:", "  - model: a", *lines, ""])


def names(plan: MergePlan) -> list[str]:
    return [str(model) for model in plan.referenced_models()]


def test_a_plan_over_models_is_read_completely() -> None:
    plan = parse_plan(FULL, "full.yml")
    assert (plan.method, plan.method_origin) == ("ties", Origin("full.yml", 2))
    assert (plan.base_model, plan.base_origin) == (ModelRef("org/base", "main"), Origin("full.yml", 3))
    assert (plan.dtype, plan.out_dtype) == (DType.F32, DType.BF16)
    assert [m.model for m in plan.models] == [ModelRef("org/a"), ModelRef("org/b", None, "org/adapter")]
    assert [m.origin.line for m in plan.models] == [7, 11]
    assert plan.models[0].parameters["density"].conditions[0].value == (0.2, 0.8)
    assert plan.models[0].parameters["density"].origin.line == 10
    assert [c.filter for c in plan.parameters["weight"].conditions] == ["mlp", None]
    tokenizer = {"source": "base", "tokens": {"<x>": {"source": "org/a", "force": True}}}
    assert plan.tokenizer == RawValue(tokenizer, Origin("full.yml", 18))
    assert plan.chat_template == RawValue("chatml", Origin("full.yml", 19))
    assert (plan.seed, plan.unmatched, plan.slices, plan.notes) == (7, "copy", (), ())
    assert (plan.text, plan.file) == (FULL, "full.yml")


def test_a_plan_over_slices_is_read_completely() -> None:
    plan = parse_plan(SLICED, "p.yml")
    first, second = plan.slices
    assert [s.layer_range for s in first.sources] == [(0, 4), (2, 6)]
    assert (first.base_model, second.base_model) == (ModelRef("a"), None)
    assert first.parameters["t"].conditions[0].value == 0.5
    assert first.sources[1].parameters["x"].origin.line == 8
    assert (first.origin.line, second.origin.line) == (3, 13)
    assert [str(s.model) for s in plan.sources()] == ["a", "b", "a", "b"]


def test_keys_without_effect_are_noted() -> None:
    (note,) = parse_plan(SLICED, "p.yml").notes
    assert note.startswith("p.yml:12: residual_weight has no effect")


def test_what_is_not_given_is_none_or_empty() -> None:
    plan = parse_plan(plan_with(), "p.yml")
    assert (plan.base_model, plan.base_origin, plan.dtype, plan.out_dtype, plan.seed) == (None,) * 5
    assert (plan.tokenizer_source, plan.tokenizer, plan.chat_template) == (None,) * 3
    assert (plan.parameters, plan.models[0].parameters, plan.unmatched) == ({}, {}, "error")


def test_null_means_not_given_where_a_key_is_optional() -> None:
    keys = ("base_model", "dtype", "out_dtype", "tokenizer_source", "tokenizer", "chat_template")
    more = ("parameters", "slices", "modules", "seed", "unmatched")
    text = plan_with("    parameters:", *(f"{key}:" for key in keys + more))
    assert parse_plan(text, "p.yml").models == parse_plan(plan_with(), "p.yml").models


def test_a_plan_cannot_be_changed() -> None:
    plan = parse_plan(FULL, "p.yml")
    with pytest.raises(FrozenInstanceError):
        plan.method = "slerp"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "order"),
    [
        ("merge_method: x\nmodels: [{model: b}, {model: a}]\nbase_model: a", ["b", "a"]),
        ("merge_method: x\nbase_model: a\nmodels:\n- model: b\n- model: a", ["a", "b"]),
        ("merge_method: x\nbase_model: c\nmodels:\n- model: b\n- model: a", ["b", "a", "c"]),
        ("merge_method: x\nmodels: [{model: b}, {model: a}]\nbase_model: c", ["b", "a", "c"]),
        (SLICED, ["a", "b"]),
        (SLICED.replace("base_model: a", "base_model: z"), ["a", "b", "z"]),
    ],
)
def test_models_are_referenced_in_file_order_and_an_unlisted_base_comes_last(
    text: str, order: list[str]
) -> None:
    assert names(parse_plan(text, "p.yml")) == order


def test_one_model_in_several_slices_is_one_reference() -> None:
    text = "merge_method: passthrough\nslices:\n" + "".join(
        f"- sources: [{{model: a, layer_range: [{i}, {i + 2}]}}]\n" for i in range(3)
    )
    assert names(parse_plan(text, "p.yml")) == ["a"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("paramters: {}", "did you mean 'parameters'?"),
        ("merge_methods: x", "did you mean 'merge_method'?"),
        ("bogus: 1", "the keys are merge_method, models"),
        ("name: stage", "a merge plan has no key 'name'"),
        ("weight: 1", "write it below 'parameters:'"),
        ("normalise: true", "did you mean 'normalize'? Parameters are written below 'parameters:'"),
        ("parameters: [weight]", "without dashes"),
        ("parameters: 3", "parameters must be a mapping"),
        ("dtype: bf16", "did you mean 'bfloat16'?"),
        ("out_dtype: 16", "out_dtype must be a string"),
        ("base_model: [a]", "not a list"),
        ("base_model: 7", "not an integer"),
        ("tokenizer_source: 3", "tokenizer_source must be union, base or a model"),
        ("tokenizer: union", "tokenizer must be a mapping"),
        ("tokenizer: {sorce: base}", "did you mean 'source'?"),
        ("tokenizer: {tokens: [a]}", "tokens must be a mapping"),
        ("tokenizer: {tokens: {x: base}}", "the token 'x' must be a mapping"),
        ("tokenizer: {tokens: {x: {froce: true}}}", "did you mean 'force'?"),
        ("chat_template: {a: b}", "chat_template must be a string"),
        ("seed: -1", "seed must be an integer"),
        ("seed: true", "seed must be an integer"),
        ("seed: 1.5", "seed must be an integer"),
        ("unmatched: drp", "did you mean 'drop'?"),
        ("unmatched: 1", "unmatched must be one of error, copy, drop"),
        ("modules: {text: {}}", "'modules' is not supported by this version"),
        ("slices: [{sources: [{model: a, layer_range: [0, 1]}]}]", "cannot both be given"),
        ("bogus: 1", "p.yml:4: "),
    ],
)
def test_a_wrong_top_level_key_is_a_problem_at_its_line(line: str, said: str) -> None:
    ((at, text),) = refusal(plan_with(line))
    assert at == 4
    assert said in text


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("models:\n- model: a\n", 1, "merge_method is missing"),
        ("models:\n- model: a\nmerge_method:\n", 3, "merge_method must be the name"),
        ("models:\n- model: a\nmerge_method: [x]\n", 3, "merge_method must be the name"),
        ("merge_method: x\n", 1, "the plan merges nothing"),
        ("merge_method: x\nmodels: []\n", 2, "models is empty"),
        ("merge_method: x\nslices: []\n", 2, "slices is empty"),
        ("merge_method: x\nmodels: {a: {}}\n", 2, "models must be a list, not a mapping"),
        ("merge_method: x\nmodels: a\n", 2, "models must be a list, not a string"),
        ("merge_method: x\nmodels:\n- a\n", 3, "a model must be a mapping, not a string"),
        ("merge_method: x\nmodels:\n- parameters: {}\n", 3, "a model needs the key 'model'"),
        ("merge_method: x\nmodels:\n- model:\n", 3, "not nothing"),
        (
            "merge_method: x\nmodels:\n- model: a\n- model: b\n- model: a\n",
            5,
            "twice in models (first on line 3)",
        ),
        ("merge_method: x\nmodels:\n- model: a\n  weight: 1\n", 4, "write it below 'parameters:'"),
        ("merge_method: x\nmodels:\n- model: a\n  wieght: 1\n", 4, "did you mean 'weight'? Parameters are"),
        ("merge_method: x\nmodels:\n- model: a\n  layer_range: [0, 1]\n", 4, "has no key 'layer_range'"),
        ("merge_method: x\nmodels:\n- model: a\n  parameters:\n    w:\n", 5, "w has no value"),
        ("- 1\n", 1, "a plan must be a mapping, not a list"),
        ("just text\n", 1, "a plan must be a mapping, not a string"),
        ("merge_method: x\nslices:\n- sorces: []\n  sources: []\n", 3, "did you mean 'sources'?"),
        ("tokenizer_source: base\nmerge_method: x\ntokenizer: {}\nmodels: [{model: a}]\n", 3, "cannot both"),
    ],
)
def test_a_plan_with_a_wrong_shape_is_a_problem_at_its_line(text: str, line: int, said: str) -> None:
    assert any(at == line and said in problem for at, problem in refusal(text))


@pytest.mark.parametrize(
    ("body", "line", "said"),
    [
        ("- parameters: {}\n", 3, "a slice needs the key 'sources'"),
        ("- sources:\n", 3, "sources must be a list, not nothing"),
        ("- sources: []\n", 3, "sources is empty"),
        ("- [a]\n", 3, "a slice must be a mapping, not a list"),
        ("- sources:\n  - model: a\n", 4, "needs the key 'layer_range'"),
        ("- sources:\n  - layer_range: [0, 1]\n", 4, "a source needs the key 'model'"),
        ("- sources:\n  - model: a\n    layer_range: [3, 1]\n", 5, "reversed"),
        ("- sources:\n  - model: a\n    layer_range: [-2, 1]\n", 5, "negative"),
        ("- sources:\n  - model: a\n    layer_range: [2, 2]\n", 5, "empty"),
        ("- sources:\n  - model: a\n    layer_range: 3\n", 5, "two integers"),
        ("- sources:\n  - model: a\n    layer_range:\n", 5, "two integers"),
        ("- sources: [{model: a, layer_range: [0, 1]}]\n  weight: 1\n", 4, "write it below 'parameters:'"),
        ("- sources: [{model: a, layer_range: [0, 1]}]\n  dtype: x\n", 4, "a slice has no key 'dtype'"),
        (
            "- sources:\n  - {model: a, layer_range: [0, 2]}\n  - {model: b, layer_range: [0, 3]}\n",
            5,
            "[0, 3] is 3 layers, [0, 2] is 2",
        ),
        (
            "- sources:\n  - {model: a, layer_range: [0, 2]}\n  - {model: a, layer_range: [2, 4]}\n",
            5,
            "twice in a slice (first on line 4)",
        ),
    ],
)
def test_a_wrong_slice_is_a_problem_at_its_line(body: str, line: int, said: str) -> None:
    ((at, problem),) = refusal(f"merge_method: x\nslices:\n{body}")
    assert at == line
    assert said in problem


def test_all_problems_are_reported_at_once_in_line_order() -> None:
    text = """\
dtype: bf16
models:
  - model: a
    weight: 1
  - mdel: b
slices: []
paramters: {}
parameters:
  t:
  t: 2
unmatched: never
"""
    lines = [at for at, _ in refusal(text)]
    assert lines == [1, 1, 4, 5, 5, 6, 6, 7, 9, 10, 11]


@pytest.mark.parametrize("key", ["experts: []", "gate_mode: hidden"])
def test_a_moe_plan_is_recognised_and_nothing_else_said(key: str) -> None:
    ((line, problem),) = refusal(f"base_model: a\nexperts_per_token: 2\n{key}\n")
    assert line == 3
    assert "mixture of experts" in problem
    assert "only a merge plan can stand here" in problem


def test_several_documents_are_recognised() -> None:
    ((line, problem),) = refusal(f"{plan_with()}---\n{plan_with()}")
    assert line == 4
    assert "more than one YAML document" in problem


def test_a_wrong_value_behind_several_aliases_is_reported_once() -> None:
    text = "merge_method: x\nmodels:\n- model: a\n  parameters: &p\n    w:\n- model: b\n  parameters: *p\n"
    assert [line for line, _ in refusal(text)] == [5]
