"""Simplifying removes what changes nothing, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mergegraph import ops
from mergegraph.graph.node import Node, Origin, constant, node, walk
from mergegraph.graph.simplify import simplify
from mergegraph.methods import get_method
from mergegraph.methods.base import Values
from mergegraph.tensorspec import DType
from tests.runtime.harness import assert_same_bits, eager, loads, normal, torch_dtype

TENSORS = [normal(5, 3, dtype=DType.BF16), normal(5, 3, dtype=DType.F32, seed=1)]
NARROW, WIDE = loads(TENSORS)


def names(root: Node) -> list[str]:
    return [n.op.name for n in walk([root]) if n.op.name != "constant"]


@pytest.mark.parametrize(
    ("expression", "left"),
    [
        (ops.weighted_sum(WIDE, (1.0,)), ["load"]),
        (ops.scale(WIDE, 1.0), ["load"]),
        (ops.cast(WIDE, dtype="F32"), ["load"]),
        (ops.IDENTICAL(WIDE), ["load"]),
        (ops.cast(ops.scale(ops.weighted_sum(NARROW, (1.0,)), 1.0), dtype="BF16"), ["load"]),
        (ops.cast(ops.cast(NARROW, dtype="BF16"), dtype="F32"), ["load", "cast"]),
        (ops.delta(ops.scale(WIDE, 1.0), ops.cast(WIDE, dtype="F32")), ["load", "delta"]),
    ],
)
def test_what_changes_nothing_is_removed(expression: Node, left: list[str]) -> None:
    assert names(simplify(expression)) == left


@pytest.mark.parametrize(
    "expression",
    [
        ops.weighted_sum(WIDE, (1.0000000000000002,)),
        ops.weighted_sum(WIDE, (-1.0,)),
        ops.weighted_sum(WIDE, WIDE, (1.0, 0.0)),
        ops.weighted_sum(NARROW, WIDE, (0.0, 1.0)),
        ops.scale(WIDE, 0.0),
        ops.scale(WIDE, ops.l1_norm(WIDE)),
        ops.cast(NARROW, dtype="F32"),
        ops.cast(NARROW, dtype="F16"),
        ops.cast(ops.cast(WIDE, dtype="BF16"), dtype="F32"),
        ops.IDENTICAL(WIDE, WIDE),
        ops.delta(WIDE, WIDE),
        ops.apply_delta(WIDE, ops.delta(WIDE, NARROW), 0.0),
        ops.gram(WIDE, WIDE),
    ],
)
def test_anything_else_stays_as_it_is(expression: Node) -> None:
    assert simplify(expression) is expression


def _steps() -> st.SearchStrategy[list[str]]:
    kinds = ["sum 1", "scale 1", "same cast", "sum 2", "scale -3", "cast F16", "cast F64", "delta", "pair"]
    return st.lists(st.sampled_from(kinds), max_size=8)


def _apply(step: str, x: Any, other: Any) -> Any:
    match step:
        case "sum 1":
            return ops.weighted_sum(x, (1.0,))
        case "scale 1":
            return ops.scale(x, 1.0)
        case "same cast":
            return ops.cast(x, dtype=x.spec.dtype.name)
        case "sum 2":
            return ops.weighted_sum(x, (2.0,))
        case "scale -3":
            return ops.scale(x, -3.0)
        case "delta":
            return ops.apply_delta(other, ops.delta(x, other), 0.5)
        case "pair":
            return ops.weighted_sum(x, other, (1.0, 1.0))
        case _:
            return ops.cast(x, dtype=step.removeprefix("cast "))


@given(steps=_steps(), dtype=st.sampled_from(["BF16", "F32", "F64"]), start=st.sampled_from([0, 1]))
def test_the_result_is_the_same_value_bit_for_bit(steps: list[str], dtype: str, start: int) -> None:
    current = loads(TENSORS)[start]
    for step in steps:
        current = _apply(step, current, NARROW)
    expression = ops.cast(current, dtype=dtype)
    simpler = simplify(expression)
    assert len(list(walk([simpler]))) <= len(list(walk([expression])))
    assert simplify(simpler) is simpler
    assert simpler.spec == expression.spec
    assert_same_bits(_value(simpler), _value(expression))


def _value(expression: Node) -> Tensor:
    found: Tensor = eager(expression, TENSORS)
    return found.to(torch_dtype(expression.spec.dtype))


def test_origins_survive() -> None:
    weight = constant((2.0,), Origin("plan.yml", 4))
    expression = node(ops.weighted_sum, ops.scale(WIDE, 1.0), weight, origin=Origin("plan.yml", 3))
    simpler = simplify(expression)
    assert names(simpler) == ["load", "weighted_sum"]
    assert simpler.origin == Origin("plan.yml", 3)
    assert simpler.inputs[1].origin == Origin("plan.yml", 4)


def test_a_merge_of_one_model_is_a_copy_of_it() -> None:
    method = get_method("linear")
    shared, each = Values({"normalize": True}), (Values({"weight": 0.3}),)
    built = method.build(None, (NARROW,), shared, each)
    assert simplify(ops.cast(built, dtype="BF16")) == NARROW


def test_repeated_parts_stay_shared() -> None:
    part = ops.delta(ops.scale(WIDE, 1.0), NARROW)
    simpler = simplify(ops.weighted_sum(part, part, (1.0, 2.0)))
    assert simpler.inputs[0] is simpler.inputs[1]
