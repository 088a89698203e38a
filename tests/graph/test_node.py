"""Nodes: immutable, and named by a digest of what they compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from mergegraph import ops
from mergegraph.errors import GraphError
from mergegraph.graph.node import Locality, Node, Op, Origin, constant, node, walk
from mergegraph.tensorspec import DType, Space, TensorSpec

SPEC = TensorSpec((4, 8), DType.BF16)


def a() -> Node:
    return ops.load(0, SPEC)


def b() -> Node:
    return ops.load(1, SPEC)


def merged(weights: tuple[float, ...] = (0.25, 0.75)) -> Node:
    return ops.cast(ops.weighted_sum(a(), b(), weights), dtype="BF16")


class TestKeys:
    def test_equal_work_has_equal_keys(self) -> None:
        assert merged() is not merged()
        assert merged() == merged()
        assert merged().key == merged().key
        assert hash(merged()) == hash(merged())
        assert len({merged(), merged()}) == 1

    @pytest.mark.parametrize(
        "other",
        [
            lambda: merged((0.25, 0.7500000000000001)),
            lambda: merged((0.75, 0.25)),
            lambda: ops.cast(ops.weighted_sum(b(), a(), (0.25, 0.75)), dtype="BF16"),
            lambda: ops.cast(ops.weighted_sum(a(), b(), (0.25, 0.75)), dtype="F16"),
            lambda: ops.weighted_sum(a(), b(), (0.25, 0.75)),
            lambda: ops.cast(ops.weighted_sum(a(), a(), (0.25, 0.75)), dtype="BF16"),
            lambda: ops.cast(ops.weighted_sum(a(), b(), b(), (0.25, 0.75, 0.0)), dtype="BF16"),
        ],
        ids=["weights", "order of weights", "order of operands", "attributes", "depth", "operands", "arity"],
    )
    def test_other_work_has_another_key(self, other: Callable[[], Node]) -> None:
        assert other().key != merged().key
        assert other() != merged()

    def test_another_op_on_the_same_operands_has_another_key(self) -> None:
        assert ops.scale(a(), 0.5).key != ops.weighted_sum(a(), (0.5,)).key
        assert ops.delta(a(), b()).key != ops.delta(b(), a()).key

    @pytest.mark.parametrize(
        "spec",
        [TensorSpec((8, 4), DType.BF16), TensorSpec((32,), DType.BF16), TensorSpec((4, 8), DType.F16)],
        ids=str,
    )
    def test_shape_and_dtype_of_a_source_are_part_of_the_key(self, spec: TensorSpec) -> None:
        assert ops.load(0, spec).key != ops.load(0, SPEC).key
        assert ops.load(1, SPEC).key != ops.load(0, SPEC).key

    def test_types_of_attributes_are_part_of_the_key(self) -> None:
        op = Op("op", Locality.ELEMENTWISE, lambda specs, _: specs[0])
        keys = [node(op, a(), value=value).key for value in (1, 1.0, True, "1", (1,), None)]
        assert len(dict.fromkeys(keys)) == len(keys)

    def test_names_of_attributes_are_part_of_the_key_and_their_order_is_not(self) -> None:
        op = Op("op", Locality.ELEMENTWISE, lambda specs, _: specs[0])
        assert node(op, a(), x=1, y=2).key == node(op, a(), y=2, x=1).key
        assert node(op, a(), x=1).key != node(op, a(), y=1).key

    def test_negative_zero_and_infinity_are_other_constants(self) -> None:
        values = [0.0, -0.0, float("inf"), -float("inf"), float("nan")]
        assert len(dict.fromkeys(constant(v).key for v in values)) == len(values)

    def test_where_a_value_comes_from_is_not_part_of_the_key(self) -> None:
        here, there = Origin("plan.yml", 3), Origin("other.yml", 30)
        assert constant(0.5, here) == constant(0.5, there) == constant(0.5)
        assert node(ops.scale, a(), 0.5, origin=here).key == node(ops.scale, a(), 0.5, origin=there).key
        assert constant(0.5, here).origin == here


class TestNode:
    def test_it_cannot_be_changed(self) -> None:
        with pytest.raises((FrozenInstanceError, AttributeError, TypeError)):
            a().key = b""  # type: ignore[misc]

    def test_it_equals_nothing_but_nodes(self) -> None:
        assert a() != a().key
        assert a() != "load"

    def test_it_knows_its_attributes_and_its_kind(self) -> None:
        assert a().attributes == {"slot": 0, "dtype": "BF16", "shape": (4, 8)}
        assert not a().is_stat
        assert constant(1.0).is_stat
        assert ops.gram(a(), b()).is_stat

    def test_changing_the_attributes_it_gives_changes_nothing(self) -> None:
        found = a()
        found.attributes["slot"] = 7
        assert found.attributes["slot"] == 0


class TestConstants:
    def test_numbers_and_tuples_become_constants(self) -> None:
        built = ops.weighted_sum(a(), b(), (1, 2.5))
        assert built.inputs[2] == constant((1.0, 2.5))
        assert built.inputs[2].spec == TensorSpec((2,), DType.F64, Space.STAT)
        assert constant(3) == constant((3.0,)) == constant([3])

    @pytest.mark.parametrize("value", ["abc", ("1", 2.0), ((1.0,),), None, (None,)], ids=repr)
    def test_what_is_not_a_number_is_refused(self, value: Any) -> None:
        with pytest.raises(GraphError, match="must be numbers"):
            constant(value)

    def test_a_tensor_among_nodes_is_refused(self) -> None:
        import torch

        for x in (torch.ones(4, 8), torch.tensor(1.0)):
            with pytest.raises(GraphError):
                ops.weighted_sum(a(), x, (1.0, 1.0))


class TestWalk:
    def test_it_gives_each_value_once_and_operands_first(self) -> None:
        shared = ops.delta(a(), b())
        root = ops.apply_delta(a(), ops.weighted_sum(shared, ops.delta(a(), b()), (1.0, 1.0)), 0.5)
        order = list(walk([root, shared]))
        assert len(order) == len({n.key for n in order})
        position = {n.key: i for i, n in enumerate(order)}
        assert all(position[x.key] < position[n.key] for n in order for x in n.inputs)
        assert [n.op.name for n in order] == [
            "load",
            "load",
            "delta",
            "constant",
            "weighted_sum",
            "constant",
            "apply_delta",
        ]

    def test_it_is_the_same_every_time(self) -> None:
        assert [n.key for n in walk([merged()])] == [n.key for n in walk([merged()])]
        assert list(walk([])) == []

    def test_a_deep_expression_is_no_problem(self) -> None:
        current = a()
        for i in range(5000):
            current = ops.scale(current, float(i))
        assert sum(1 for _ in walk([current])) == 1 + 2 * 5000
