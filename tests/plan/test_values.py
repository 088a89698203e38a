"""Model references, settings, dtypes and layer ranges."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergegraph.errors import PlanError
from mergegraph.graph.node import Origin
from mergegraph.plan.source import Entry, Problems, load_yaml
from mergegraph.plan.values import (
    Condition,
    ModelRef,
    Setting,
    parse_model_ref,
    read_dtype,
    read_layer_range,
    read_model_ref,
    read_parameters,
)
from mergegraph.tensorspec import DType


def entry(text: str, problems: Problems) -> Entry:
    root = load_yaml(text, "p.yml", problems)
    assert root.entries is not None
    return next(iter(root.entries.values()))


def setting(text: str) -> Setting:
    problems = Problems()
    read = read_parameters(entry(f"parameters:\n  x: {text}\n", problems), problems)
    problems.raise_if_any()
    return read["x"]


def values(text: str) -> list[tuple[str | None, Any]]:
    return [(c.filter, c.value) for c in setting(text).conditions]


def refused(text: str) -> str:
    with pytest.raises(PlanError) as caught:
        setting(text)
    (problem,) = caught.value.problems
    assert problem.where is not None
    assert problem.hint
    return problem.message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/model", ModelRef("org/model")),
        ("org/model@v1", ModelRef("org/model", "v1")),
        ("org/model+org/lora", ModelRef("org/model", None, "org/lora")),
        ("org/model@v1+org/lora@v2", ModelRef("org/model", "v1", "org/lora@v2")),
        ("/data/my model", ModelRef("/data/my model")),
    ],
)
def test_a_reference_string_is_split_into_its_parts(text: str, expected: ModelRef) -> None:
    assert parse_model_ref(text) == expected
    assert str(parse_model_ref(text)) == text


@pytest.mark.parametrize(
    "text", ["a+b+c", "a@b@c", "a+b@c@d", "@scope/x", "dir+", "a@", "+b", "a+@v", "a@+b"]
)
def test_a_string_that_the_grammar_cannot_split_is_one_path(text: str) -> None:
    ref = parse_model_ref(text)
    assert (ref.path, ref.revision, ref.lora) == (text, None, None)


@given(st.text(min_size=1).filter(lambda text: text.strip()))
def test_any_string_can_still_be_taken_as_a_local_path(text: str) -> None:
    ref = parse_model_ref(text)
    assert ref.raw == text
    assert ref.as_path() == ModelRef(text)
    assert str(ref) == text


def test_how_a_reference_was_written_does_not_matter_to_equality() -> None:
    problems = Problems()
    written = entry("m: {model: {path: a, revision: r}, lora: b}", problems).value
    ref = read_model_ref(written, problems)
    assert ref == parse_model_ref("a@r+b")
    assert ref is not None
    assert ref.raw is None
    assert ref.as_path() == ref
    assert not problems.found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{model: a@r}", ModelRef("a", "r")),
        ("{model: a+b}", ModelRef("a+b")),
        ("{model: {path: a@r+b}}", ModelRef("a@r+b")),
        ("{model: a, lora: {path: b, revision: v}}", ModelRef("a", None, "b@v")),
        ("{model: a, lora: null, override_architecture: X}", ModelRef("a", None, None, "X")),
    ],
)
def test_the_mapping_form_names_parts_explicitly(text: str, expected: ModelRef) -> None:
    problems = Problems()
    assert read_model_ref(entry(f"m: {text}", problems).value, problems) == expected
    assert not problems.found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("5", "not an integer"),
        ("''", "an empty string"),
        ("[a]", "not a list"),
        ("2024-01-01", "not a date"),
        ("{lora: b}", "needs the key 'model'"),
        ("{model: a, lroa: b}", "no key 'lroa'"),
        ("{model: {revision: b}}", "needs the key 'path'"),
        ("{model: {path: a, revision: 1}}", "must be a string"),
        ("{model: a, lora: [b]}", "not a list"),
        ("{model: a, override_architecture: 1}", "class name"),
    ],
)
def test_a_malformed_reference_is_a_problem(text: str, said: str) -> None:
    problems = Problems()
    read_model_ref(entry(f"m: {text}", problems).value, problems)
    (problem,) = problems.sorted()
    assert said in problem.message
    assert problem.where == "p.yml:1"
    assert problem.hint


def test_settings_are_scalars_gradients_or_conditions() -> None:
    assert values("0.5") == [(None, 0.5)]
    assert values("true") == [(None, True)]
    assert values("1e-3") == [(None, "1e-3")]
    assert values("[0, 0.5, 1e-1]") == [(None, (0, 0.5, "1e-1"))]
    assert values("{value: 2}") == [(None, 2)]
    assert values("{filter: mlp, value: [1, 2]}") == [("mlp", (1, 2))]
    assert values("[{filter: a, value: 1}, {filter: '*', value: 2}, {filter: null, value: 3}]") == [
        ("a", 1),
        ("*", 2),
        (None, 3),
    ]


def test_an_empty_list_is_a_setting_that_says_nothing() -> None:
    assert values("[]") == [(None, ())]
    assert values("{filter: a, value: []}") == [("a", ())]


def test_settings_and_conditions_keep_their_lines() -> None:
    read = setting("\n    - filter: a\n      value: 1\n    - value:\n        - 2\n        - 3")
    assert read.origin == Origin("p.yml", 2)
    assert [c.origin.line for c in read.conditions] == [3, 5]
    assert setting("\n    - 1\n    - 2").conditions[0].origin.line == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no value"),
        ("null", "no value"),
        ("[1, null]", "no value"),
        ("{value: null}", "no value"),
        ("[[1], 2]", "not a list"),
        ("{value: {value: 1}}", "not a mapping"),
        ("{value: [{value: 1}]}", "not a mapping"),
        ("{filter: a}", "needs the key 'value'"),
        ("{filter: 1, value: 2}", "filter of x must be a string"),
        ("{fliter: a, value: 2}", "no key 'fliter'"),
        ("[{value: 1}, 2]", "mixes"),
        (".nan", "is nan"),
        ("[1, -.inf]", "is -inf"),
        ("2024-01-01", "a date"),
    ],
)
def test_a_malformed_setting_is_a_problem(text: str, said: str) -> None:
    assert said in refused(text)


def test_a_filter_is_a_substring_and_star_is_everything() -> None:
    at = Origin("p.yml", 1)
    assert Condition("layers.1", 0, at).matches("model.layers.10.w")
    assert not Condition("layers.2", 0, at).matches("model.layers.10.w")
    assert Condition("", 0, at).matches("anything")
    assert Condition("*", 0, at).matches("anything")
    assert Condition(None, 0, at).matches("anything")


@pytest.mark.parametrize("prefix", ["", "torch."])
@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bfloat16", DType.BF16), ("float16", DType.F16), ("float32", DType.F32), ("float64", DType.F64)],
)
def test_dtypes_are_torch_names(prefix: str, name: str, dtype: DType) -> None:
    problems = Problems()
    assert read_dtype(entry(f"dtype: {prefix}{name}", problems), problems) is dtype
    assert not problems.found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bf16", "did you mean 'bfloat16'?"),
        ("FP16", "did you mean 'float16'?"),
        ("bfloat61", "did you mean 'bfloat16'?"),
        ("int64", "cannot be merged in"),
        ("quux", "write one of bfloat16"),
        ("16", "must be a string"),
        ("''", "is not a dtype"),
    ],
)
def test_an_unknown_dtype_is_a_problem(text: str, said: str) -> None:
    problems = Problems()
    assert read_dtype(entry(f"dtype: {text}", problems), problems) is None
    assert said in str(problems.sorted()[0])


def test_a_layer_range_is_half_open() -> None:
    problems = Problems()
    assert read_layer_range(entry("layer_range: [0, 24]", problems), problems) == (0, 24)
    assert not problems.found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[3, 1]", "write [1, 3]"),
        ("[2, 2]", "[2, 3] is layer 2"),
        ("[-1, 2]", "negative"),
        ("[0, -1]", "negative"),
        ("[0]", "two integers"),
        ("[0, 1, 2]", "two integers"),
        ("[0, 1.0]", "two integers"),
        ("[false, true]", "two integers"),
        ("'0-4'", "two integers"),
        ("null", "two integers"),
    ],
)
def test_a_layer_range_that_cannot_be_meant_is_a_problem(text: str, said: str) -> None:
    problems = Problems()
    assert read_layer_range(entry(f"layer_range: {text}", problems), problems) is None
    (problem,) = problems.sorted()
    assert said in str(problem)
    assert problem.hint
