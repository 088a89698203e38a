"""What a parameter is worth for a tensor, and which parameters a plan may not set."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergegraph.compiler.parameters import (
    Resolved,
    at_position,
    check_parameters,
    check_range,
    coerce,
    parameter_notes,
    resolve,
)
from mergegraph.graph.node import Origin
from mergegraph.methods.base import REQUIRED, Kind, MergeMethod, Parameter, Reference
from mergegraph.plan.merge import parse_plan
from mergegraph.plan.values import Condition, Setting

AT = Origin("p.yml", 1)
WEIGHT = Parameter("weight", float, "each", REQUIRED)
FLAG = Parameter("weight", bool, "each", False)
LABEL = Parameter("weight", str, "each", "")
COUNT = Parameter("weight", int, "each", 1)


def level(*conditions: tuple[str | None, Any]) -> dict[str, Setting]:
    made = tuple(Condition(f, v, Origin("p.yml", i + 1)) for i, (f, v) in enumerate(conditions))
    return {"weight": Setting(made, AT)}


def value(levels: list[dict[str, Setting]], tensor: str = "x", t: float = 0.0, of: Parameter = WEIGHT) -> Any:
    found = resolve(levels, of, tensor, t)
    return None if found is None else found.value


# ---- levels and filters ----------------------------------------------------------------------------


def test_the_most_specific_level_that_says_something_wins() -> None:
    assert value([level((None, 1)), level((None, 2))]) == 1
    assert value([{}, level((None, 2))]) == 2
    assert value([{}, {}]) is None
    assert value([]) is None


def test_the_first_matching_condition_wins_and_its_line_is_kept() -> None:
    levels = [level(("mlp", 1), ("layers.1", 2), ("*", 3))]
    assert value(levels, "layers.1.mlp.w") == 1
    assert value(levels, "layers.10.attn.w") == 2
    assert resolve(levels, WEIGHT, "norm", 0.0) == Resolved(3.0, Origin("p.yml", 3))


def test_a_level_whose_filters_do_not_match_is_skipped() -> None:
    assert value([level(("mlp", 1)), level((None, 2))], "attn") == 2
    assert value([level(("mlp", 1)), level(("lm_head", 2))], "attn") is None


def test_an_empty_list_is_not_set() -> None:
    assert value([level((None, ())), level((None, 2))]) == 2
    assert value([level((None, ()))]) is None


def test_a_matching_empty_list_hides_the_conditions_after_it() -> None:
    assert value([level(("a", ()), (None, 1)), level((None, 2))], "a") == 2
    assert value([level(("a", ()), (None, 1)), level((None, 2))], "b") == 1


def test_zero_and_false_are_values() -> None:
    assert value([level((None, 0)), level((None, 2))]) == 0
    assert value([level((None, False)), level((None, True))], of=FLAG) is False
    assert value([level((None, "")), level((None, "x"))], of=LABEL) == ""


NAMES = st.text(alphabet="ab.1", max_size=5)
CONDITIONS = st.lists(
    st.tuples(st.none() | st.just("*") | NAMES, st.lists(st.integers(0, 9), max_size=3)), max_size=3
)


@given(st.lists(CONDITIONS | st.none(), max_size=4), NAMES)
def test_levels_and_filters_follow_the_rule(
    levels: list[list[tuple[str | None, list[int]]] | None], tensor: str
) -> None:
    """Reference: every level offers its first matching value; the first non-empty offer is taken."""
    offers = []
    for conditions in levels:
        matching = [v for f, v in conditions or [] if f in (None, "*") or str(f) in tensor]
        offers += [matching[0]] if matching and matching[0] else []
    settings = [{} if c is None else level(*((f, tuple(v)) for f, v in c)) for c in levels]
    assert value(settings, tensor) == (offers[0][0] if offers else None)


# ---- gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "t", "expected"),
    [
        ((0, 1), 0.0, 0.0),
        ((0, 1), 0.25, 0.25),
        ((0, 1), 1.0, 1.0),
        ((0, 0.5, 0.3, 0.7, 1), 0.5, 0.3),
        ((0, 10, 30), 0.75, 20.0),
        ((5,), 0.7, 5.0),
        (("1e-3", "3e-3"), 0.5, 0.002),
        ((1, True, "2"), 0.75, 1.5),
    ],
)
def test_numbers_interpolate(values: tuple[Any, ...], t: float, expected: float) -> None:
    assert at_position(values, t, float) == pytest.approx(expected, abs=1e-15)


FINITE = st.floats(-1e6, 1e6)


@given(st.lists(FINITE, min_size=1, max_size=6), st.integers(0, 40), st.integers(1, 40))
def test_interpolation_is_linear_between_neighbours(values: list[float], k: int, last: int) -> None:
    """Reference: exact rational arithmetic on the broken line through (i/(n-1), v[i])."""
    t = min(k, last) / last
    segments = max(1, len(values) - 1)
    i = min(math.floor(Fraction(t) * segments), segments - 1)
    left, right = Fraction(values[i]), Fraction(values[min(i + 1, len(values) - 1)])
    exact = left + (right - left) * (Fraction(t) * segments - i)
    assert at_position(values, t, float) == pytest.approx(float(exact), rel=1e-9, abs=1e-8)


@given(st.lists(FINITE, min_size=1, max_size=6), st.floats(0, 1))
def test_a_gradient_stays_between_its_neighbours(values: list[float], t: float) -> None:
    result = at_position(values, t, float)
    assert min(values) - 1e-9 <= float(result) <= max(values) + 1e-9
    assert at_position(values, 0.0, float) == values[0]
    assert at_position(values, 1.0, float) == values[-1]


@given(st.sampled_from([(bool, [True, False]), (str, ["a", "b"])]), st.data(), st.floats(0, 1))
def test_booleans_and_strings_change_in_steps(
    kind: tuple[Kind, list[Any]], data: st.DataObject, t: float
) -> None:
    values = data.draw(st.lists(st.sampled_from(kind[1]), min_size=1, max_size=6))
    assert at_position(values, t, kind[0]) == values[math.trunc(t * (len(values) - 1))]


def test_the_last_step_is_only_reached_at_the_end() -> None:
    assert [at_position((False, True), t, bool) for t in (0.0, 0.5, 0.99, 1.0)] == [False, False, False, True]


def test_an_integer_gradient_must_meet_integers() -> None:
    assert at_position((1, 3), 0.5, int) == 2
    with pytest.raises(ValueError, match=r"1\.5 is not an integer"):
        at_position((1, 2), 0.5, int)


# ---- types and ranges --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_value", "kind", "expected"),
    [
        (1, float, 1.0),
        ("1e-3", float, 0.001),
        ("0.5", float, 0.5),
        (True, float, 1.0),
        (3, int, 3),
        (3.0, int, 3),
        ("3", int, 3),
        ("1e3", int, 1000),
        (True, bool, True),
        (0, bool, False),
        (1.0, bool, True),
        ("Yes", bool, True),
        ("off", bool, False),
        ("x", str, "x"),
    ],
)
def test_values_become_the_declared_type(given_value: Any, kind: Kind, expected: Any) -> None:
    result = coerce(given_value, kind)
    assert result == expected
    assert type(result) is kind


@pytest.mark.parametrize(
    ("given_value", "kind", "said"),
    [
        (0.5, bool, "0.5 is not true or false"),
        (2, bool, "2 is not true or false"),
        ("maybe", bool, "'maybe' is not true or false"),
        (0.5, int, "0.5 is not an integer"),
        ("x", int, "'x' is not an integer"),
        ("x", float, "'x' is not a number"),
        ("nan", float, "'nan' is not a number"),
        ("1e999", float, "'1e999' is not a number"),
        (10**400, float, "is not a number"),
        (1, str, "1 is not a string"),
        (True, str, "True is not a string"),
    ],
)
def test_a_value_of_another_type_is_an_error_that_says_so(given_value: Any, kind: Kind, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        coerce(given_value, kind)


def test_ranges_include_their_ends() -> None:
    density = Parameter("density", float, "each", 1.0, minimum=0, maximum=1)
    assert [check_range(v, density) for v in (0.0, 0.5, 1.0)] == [0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match=r"-0\.1 is less than 0, the least allowed"):
        check_range(-0.1, density)
    with pytest.raises(ValueError, match=r"1\.5 is more than 1, the most allowed"):
        check_range(1.5, density)
    assert check_range("x", LABEL) == "x"


def test_what_is_resolved_is_typed_and_within_range() -> None:
    assert type(value([level((None, 1))])) is float
    bounded = Parameter("weight", float, "each", 1.0, maximum=1)
    with pytest.raises(ValueError, match="more than 1"):
        resolve([level((None, 2))], bounded, "x", 0.0)


# ---- a plan against its method -----------------------------------------------------------------------


def method(base: Any, *parameters: Parameter) -> MergeMethod:
    return MergeMethod(
        name="mine",
        summary="",
        formula="",
        reference=Reference("", "", ""),
        deviations="none",
        base=base,
        inputs=(1, None),
        parameters=parameters,
        build=lambda base, models, shared, each: models[0],
        example="",
    )


DENSITY = Parameter("density", float, "each", 1.0, minimum=0, maximum=1, doc="The share that is kept.")
NORMALIZE = Parameter("normalize", bool, "shared", True)
STEPS = Parameter("steps", int, "shared", 10, minimum=1)
T = Parameter("t", float, "shared", REQUIRED)
TIES = method("required", WEIGHT, DENSITY, NORMALIZE, STEPS)
LINEAR = method("ignored", WEIGHT, NORMALIZE)
SLERP = method("required", T)


def problems(text: str, of: MergeMethod) -> list[tuple[int, str]]:
    found = check_parameters(parse_plan("merge_method: mine\n" + text, "p.yml"), of)
    assert all(p.where and p.hint for p in found)
    return [(int(str(p.where).removeprefix("p.yml:")), str(p)) for p in found]


def test_parameters_for_each_model_may_stand_on_any_level() -> None:
    text = """\
models:
  - model: a
    parameters: {weight: 1, density: [0.1, 1]}
  - model: b
parameters: {weight: [{filter: mlp, value: "1e-1"}, {value: 2}], density: 0.5, normalize: off}
base_model: c
"""
    assert problems(text, TIES) == []


def test_an_unknown_parameter_is_a_problem_on_every_level() -> None:
    text = """\
slices:
  - sources:
      - model: org/a
        layer_range: [0, 1]
        parameters:
          wieght: 1
    parameters:
      normalise: true
parameters:
  weight: 1
  skale: 2
base_model: b
"""
    found = problems(text, TIES)
    assert [line for line, _ in found] == [7, 9, 12]
    assert "mine has no parameter 'wieght'" in found[0][1]
    assert "did you mean 'weight'?" in found[0][1]
    assert "[model org/a]" in found[0][1]
    assert "did you mean 'normalize'?" in found[1][1]
    assert "its parameters are weight, density, normalize, steps" in found[2][1]


def test_a_method_without_parameters_takes_none() -> None:
    ((_, text),) = problems("models: [{model: a}]\nparameters: {heaviness: 1}\n", method("ignored"))
    assert "it has none; remove the line" in text


def notes(text: str, of: MergeMethod) -> list[str]:
    return parameter_notes(parse_plan("merge_method: mine\n" + text, "p.yml"), of)


def test_a_parameter_of_other_methods_is_noted_not_refused() -> None:
    text = "models: [{model: a}]\nparameters: {weight: 1}\n"
    assert problems(text, method("ignored")) == []
    assert notes(text, method("ignored")) == ["p.yml:3: weight has no effect: mine does not use it"]


def test_a_shared_parameter_below_a_model_is_noted_not_refused() -> None:
    text = "models:\n  - model: a\n    parameters:\n      t: 0.5\nparameters: {t: 1}\nbase_model: a\n"
    assert problems(text, SLERP) == []
    (said,) = notes(text, SLERP)
    assert said.startswith("p.yml:5: t has no effect below one model")


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("density: 1.5", "density: 1.5 is more than 1, the most allowed"),
        ("density: [0.5, -1]", "density: -1.0 is less than 0"),
        ("density: [{filter: a, value: 0.5}, {value: x}]", "density: 'x' is not a number"),
        ("normalize: 0.5", "normalize: 0.5 is not true or false"),
        ("steps: 0", "steps: 0 is less than 1"),
        ("steps: 2.5", "steps: 2.5 is not an integer"),
        ("steps: [1, 3]", "steps is an integer and cannot change gradually"),
    ],
)
def test_a_value_that_cannot_be_used_is_a_problem_at_its_line(setting: str, said: str) -> None:
    text = f"models: [{{model: a}}]\nbase_model: b\nparameters:\n  weight: 1\n  {setting}\n"
    found = check_parameters(parse_plan("merge_method: mine\n" + text, "p.yml"), TIES)
    assert [(p.where, said in p.message) for p in found] == [("p.yml:6", True)]


def test_constant_integer_gradients_and_empty_lists_are_fine() -> None:
    text = "models: [{model: a}]\nbase_model: b\nparameters: {weight: 1, steps: [2, 2], normalize: []}\n"
    assert problems(text, TIES) == []


def test_a_required_shared_parameter_must_be_set() -> None:
    ((line, said),) = problems("models: [{model: a}]\nbase_model: b\n", SLERP)
    assert line == 1
    assert "mine needs the parameter 't'" in said
    assert len(problems("models: [{model: a}]\nbase_model: b\nparameters: {t: []}\n", SLERP)) == 1


def test_a_required_shared_parameter_may_be_set_by_every_slice() -> None:
    part = "  - sources: [{model: a, layer_range: [0, 1]}]\n"
    given_t = part + "    parameters: {t: 0}\n"
    assert problems(f"slices:\n{given_t}{given_t}", SLERP) == []
    assert [line for line, _ in problems(f"slices:\n{given_t}{part}", SLERP)] == [5]
    assert [line for line, _ in problems(f"slices:\n{part}{part}", SLERP)] == [1]


def test_a_required_parameter_of_each_model_is_not_asked_of_the_base() -> None:
    text = "base_model: b\nmodels:\n  - model: b\n  - model: org/a\n"
    found = problems(text, TIES)
    assert [line for line, _ in found] == [5]
    assert "mine needs the parameter 'weight' for every model" in found[0][1]
    assert "[model org/a]" in found[0][1]


def test_a_base_that_the_method_ignores_is_one_more_input() -> None:
    text = "models:\n  - model: a\n    parameters: {weight: 1}\nbase_model: b\n"
    assert [line for line, _ in problems(text, LINEAR)] == [5]
    assert problems(text, TIES) == []


def test_a_slice_may_set_the_parameters_of_its_models() -> None:
    text = """\
slices:
  - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [0, 1]}]
    parameters: {weight: 1}
  - sources: [{model: a, layer_range: [0, 1], parameters: {weight: 1}}, {model: b, layer_range: [0, 1]}]
    base_model: b
"""
    assert problems(text, TIES) == []
    assert [line for line, _ in problems(text, LINEAR)] == [5]
