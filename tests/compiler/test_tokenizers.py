"""Tokenizer keys are accepted exactly where they change nothing."""

from __future__ import annotations

import pytest

from mergegraph.compiler.inputs import Input
from mergegraph.compiler.merge import Compiled, compile_merge
from mergegraph.errors import PlanError
from mergegraph.methods import get_method
from mergegraph.plan.merge import parse_plan
from tests.compiler.headers import linear, llama

ACCEPTED = [
    "tokenizer_source: union",
    "tokenizer_source: base",
    "tokenizer_source: b",
    "tokenizer_source: {model: b}",
    "tokenizer_source: {model: {path: b}}",
    "tokenizer: {}",
    "tokenizer: {source: base}",
    "tokenizer: {source: b, tokens: {}}",
    "chat_template: auto",
]


def merged(line: str, *digests: str | None) -> Compiled:
    """Merge models a, b, … whose tokenizers and chat templates have the given digests."""
    plan = parse_plan(linear(*"abc"[: len(digests)], tail=f"{line}\n"), "p.yml")
    inputs = {
        ref: Input(ref, str(ref), llama(str(ref)), tokenizer=digest, chat_template=digest)
        for ref, digest in zip(plan.referenced_models(), digests, strict=True)
    }
    return compile_merge(plan, get_method("linear"), inputs)


def refusal(line: str, *digests: str | None) -> str:
    with pytest.raises(PlanError) as caught:
        merged(line, *digests)
    (problem,) = caught.value.problems
    assert problem.hint
    return f"{problem.where}: {problem.message}"


@pytest.mark.parametrize("line", ACCEPTED)
def test_equal_tokenizers_make_the_key_a_note(line: str) -> None:
    (note,) = merged(line, "x", "x").report.notes
    assert note.startswith("p.yml:7: ")
    assert "changes nothing" in note
    assert "copied from a" in note
    assert ("embedding rows are kept" in note) == ("tokenizer" in line)


@pytest.mark.parametrize("line", ACCEPTED)
def test_different_ones_are_refused_by_name(line: str) -> None:
    text = refusal(line, "x", "x", "y")
    assert text.startswith(f"p.yml:9: {line.split(':')[0]}")
    assert text.endswith("c differs from a")


@pytest.mark.parametrize("line", ACCEPTED)
def test_a_model_without_tokenizer_is_named(line: str) -> None:
    assert refusal(line, "x", None).endswith("b has none that can be read")


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("tokenizer_source: c", "no model of this plan"),
        ("tokenizer: {source: c}", "no model of this plan"),
        ("tokenizer: {tokens: {x: {source: a}}}", "tokens is not supported"),
        ("tokenizer: {source: base, pad_to_multiple_of: 8}", "pad_to_multiple_of is not supported"),
        ("chat_template: chatml", "chat_template is not supported"),
        ('chat_template: "{{ messages }}"', "chat_template is not supported"),
    ],
)
def test_what_would_change_something_is_refused_even_then(line: str, part: str) -> None:
    assert part in refusal(line, "x", "x")
