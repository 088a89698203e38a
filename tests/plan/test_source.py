"""YAML becomes values with lines, and hostile YAML becomes errors with lines."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mergegraph.errors import PlanError, Problem
from mergegraph.plan.source import MAX_CHARACTERS, MAX_DEPTH, Located, Problems, load_documents, load_yaml


def load(text: str) -> Located:
    problems = Problems()
    value = load_yaml(text, "plan.yml", problems)
    problems.raise_if_any()
    return value


def refusal(text: str) -> list[Problem]:
    with pytest.raises(PlanError) as caught:
        load(text)
    return list(caught.value.problems)


def test_every_key_and_value_keeps_its_line() -> None:
    root = load("# a remark\na: 1\nb:\n  - x\n  - c: y\n    d: [1,\n        2]\n").entries
    assert root is not None
    assert (root["a"].origin.line, root["a"].value.origin.line) == (2, 2)
    assert (root["b"].origin.line, root["b"].value.origin.line) == (3, 4)
    item = root["b"].value.value[1]
    assert (item.origin.line, item.entries["d"].origin.line) == (5, 6)
    assert [x.origin.line for x in item.entries["d"].value.items] == [6, 7]
    assert str(root["a"].origin) == "plan.yml:2"


TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(TREES)
def test_values_are_those_of_the_yaml_library(tree: Any) -> None:
    assert load(yaml.safe_dump(tree)).plain() == yaml.safe_load(yaml.safe_dump(tree))


def test_scalars_follow_yaml_1_1() -> None:
    text = "[1e-3, 1.0e-3, yes, 'yes', 010, 0x10, ~, null, 1_000, .5, !!str 5, !!float 2]"
    assert load(text).plain() == yaml.safe_load(text)
    assert load(text).plain()[0] == "1e-3"


def test_aliases_and_merge_keys_mean_what_yaml_says() -> None:
    text = "x: &x {a: 1, b: 2}\ny: &y {b: 3, c: 4}\none: {<<: *x, a: 5}\ntwo: {<<: [*x, *y], d: *x}\n"
    assert load(text).plain() == yaml.safe_load(text)


def test_a_quoted_merge_key_is_an_ordinary_key() -> None:
    assert load("'<<': 1").plain() == {"<<": 1}


def test_an_aliased_value_keeps_the_line_of_its_definition() -> None:
    root = load("a: &n\n  - 1\nb: *n\n").entries
    assert root is not None
    assert (root["b"].origin.line, root["b"].value.origin.line) == (3, 1)


def test_a_repeated_key_is_an_error_that_names_both_lines() -> None:
    (problem,) = refusal("a: 1\nb: 2\na: 3\n")
    assert problem.where == "plan.yml:3"
    assert "'a' is set twice (first on line 1)" in problem.message


@pytest.mark.parametrize("key", ["1", "1.5", "yes", "null", "2024-01-01", "[1]", "{a: 1}"])
def test_a_key_that_is_not_a_string_is_an_error(key: str) -> None:
    (problem,) = refusal(f"x: 1\n? {key}\n: 2\n")
    assert problem.where == "plan.yml:2"
    assert "not a string" in problem.message
    assert problem.hint == "quote it"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\n\tb: 2", 2, "tab"),
        ("a: 1\nb: [1, 2", 2, "not valid YAML"),
        ("a: 'x\n", 2, "not valid YAML"),
        ("a: b: c", 1, "mapping values are not allowed"),
        ("a: 1\nb: @x", 2, "quote strings that start with @"),
        ("a: 1\nb: \x00", 2, "U+0000"),
        ("a: 1\nb: *nowhere", 2, "stands for nothing"),
        ("a: &a [1, *a]", 1, "stands for nothing"),
        ("a: 1\n---\nb: 2", 2, "more than one YAML document"),
        ("", 1, "empty"),
        ("# only a remark\n", 1, "empty"),
        ("a: 1\nb: !!python/name:os.system x", 2, "tag"),
        ("a: 1\nb: !mine {x: 1}", 2, "tag"),
        ("a: 1\nb: !!set {x}", 2, "tag"),
        ("a: 1\nb: !!binary aGk=", 2, "tag"),
        ("a: 1\nb: !!timestamp never", 2, "is not a value"),
        ("a: 1\nb: !!int x", 2, "is not a value"),
        ("a: 1\nb: 2020-13-45", 2, "is not a value"),
        ("a: 1\nb: " + "9" * 5000, 2, "is not a value"),
        ("a: 1\n<<: 3", 2, "needs a mapping"),
    ],
)
def test_text_that_is_no_plan_is_refused_at_its_line(text: str, line: int, said: str) -> None:
    (problem,) = refusal(text)
    assert problem.where == f"plan.yml:{line}"
    assert said in str(problem)
    assert problem.hint


def test_structural_problems_are_collected() -> None:
    found = refusal("a: 1\n1: 2\na: 3\nb: !x y\n")
    assert [p.where for p in found] == ["plan.yml:2", "plan.yml:3", "plan.yml:4"]


def test_aliases_cannot_multiply_without_bound() -> None:
    """a0 has 10 values, each further line 10 times as many: 10^9 without the limit."""
    lines = ["a0: &a0 [" + ", ".join("x" * 10) + "]"]
    lines += [f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 10) + "]" for i in range(1, 9)]
    (problem,) = refusal("\n".join(lines))
    assert "more than 100,000 values" in problem.message
    assert problem.where == "plan.yml:5"


def test_merge_keys_cannot_multiply_without_bound() -> None:
    lines = ["a0: &a0 {" + ", ".join(f"k{i}: 1" for i in range(10)) + "}"]
    lines += [f"a{i}: &a{i} {{" + ", ".join(f"k{j}: *a{i - 1}" for j in range(10)) + "}" for i in range(1, 9)]
    lines.append("z: {<<: *a8}")
    assert "more than 100,000 values" in refusal("\n".join(lines))[0].message


@pytest.mark.parametrize("text", ["[" * 50_000, "{a: " * 50_000, "- " * 50_000])
def test_deep_nesting_is_refused_before_it_hurts(text: str) -> None:
    (problem,) = refusal(text)
    assert f"more than {MAX_DEPTH} deep" in problem.message


def test_a_huge_text_is_refused_unread() -> None:
    (problem,) = refusal("a" * (MAX_CHARACTERS + 1))
    assert "characters" in problem.message


@given(st.text(alphabet=st.sampled_from("ab:-[]{}&*!<>|'\"#,? \n\t@%01.~"), max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        load(text).plain()
    except PlanError as error:
        assert all(problem.where for problem in error.problems)


def test_documents_keep_the_lines_of_their_file() -> None:
    problems = Problems()
    first, second = load_documents("a: 1\n---\n# b\nb: 2\n", "p.yml", problems)
    assert (first.plain(), second.plain(), problems.found) == ({"a": 1}, {"b": 2}, [])
    assert second.origin.line == 4


def test_a_table_by_number_has_its_numbers_as_written_for_keys() -> None:
    assert load("{0: a, 12: b, '3': c}").plain() == {"0": "a", "12": "b", "3": "c"}


@pytest.mark.parametrize("text", ["{0: a, 010: b}", "{0: a, 0x1: b}", "{0: a, x: b}", "{0: a, 1.0: b}"])
def test_a_number_among_other_keys_is_no_key(text: str) -> None:
    assert all("not a string" in problem.message for problem in refusal(text))
