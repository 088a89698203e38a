"""Torch, op by op on tiles: for ops that say nothing about one element, and for other devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from mergegraph import ops
from mergegraph.graph.node import Locality, Op
from mergegraph.kernels.reduction import CHUNK
from mergegraph.schedule.tiling import cut
from mergegraph.tensorspec import DType, TensorSpec
from tests.runtime.harness import Mode, assert_same_bits, eager, loads, normal, schedule_run


def _same(specs: Sequence[TensorSpec], _: dict[str, Any]) -> TensorSpec:
    wide = specs[0].dtype is DType.F64
    return TensorSpec(specs[0].shape, DType.F64 if wide else DType.F32, specs[0].space)


SEEN: list[tuple[int, ...]] = []


def _normalised(x: Tensor) -> Tensor:
    SEEN.append(tuple(x.shape))
    return x / x.norm(dim=-1, keepdim=True)


def _flipped(x: Tensor) -> Tensor:
    SEEN.append(tuple(x.shape))
    return x.flip(0) if x.dim() else x


ROWS = Op("row_normalised", Locality.ROWWISE, _same, _normalised)
FLIP = Op("flipped", Locality.WHOLE, _same, _flipped)
SQUARE = Op("squared", Locality.ELEMENTWISE, _same, lambda x: x * x)

SHAPES: list[tuple[int, ...]] = [(), (1,), (7,), (5, 1), (1, 5), (1, 1), (3, 7), (2, 3, 4), (40, 5000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_rowwise_op_sees_whole_rows(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    SEEN.clear()
    result = schedule_run(ROWS(loads([x])[0]), [x], mode="interpreted", tile=CHUNK)
    assert {s[-1:] for s in SEEN} == {shape[-1:] or (1,)}
    assert_same_bits(result.tensor, _normalised(x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_whole_tensor_op_sees_the_tensor_in_its_shape(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    SEEN.clear()
    result = schedule_run(FLIP(loads([x])[0]), [x], mode="interpreted", tile=CHUNK)
    assert list(SEEN) == [shape]
    assert_same_bits(result.tensor, _flipped(x))


def test_an_empty_tensor_calls_nothing() -> None:
    x = torch.empty(0, 5)
    SEEN.clear()
    for op in (ROWS, FLIP, SQUARE):
        assert schedule_run(op(loads([x])[0]), [x], mode="interpreted").tensor.shape == (0, 5)
    assert SEEN == []


def test_an_elementwise_op_without_generated_code_runs_on_tiles() -> None:
    x = normal(3 * CHUNK + 5, dtype=DType.BF16)
    expression = ops.cast(SQUARE(loads([x])[0]), dtype="BF16")
    assert not cut(expression)[0].generated
    for tile in (CHUNK, 2 * CHUNK):
        found = schedule_run(expression, [x], mode="interpreted", tile=tile)
        assert_same_bits(found.tensor, (x.float() * x.float()).bfloat16())


def test_one_unusual_op_may_stand_among_usual_ones() -> None:
    tensors = [normal(30, 3000, dtype=DType.BF16, seed=i) for i in range(2)]
    a, b = loads(tensors)
    expression = ops.cast(ops.weighted_sum(ROWS(a), b, ops.slerp(ops.gram(a, b), 0.3)), dtype="BF16")
    assert [phase.generated for phase in cut(expression)] == [True, False]
    expected = eager(expression, tensors)
    for tile in (CHUNK, 4 * CHUNK):
        assert_same_bits(schedule_run(expression, tensors, mode="interpreted", tile=tile).tensor, expected)


@pytest.mark.parametrize("mode", ["generated", "interpreted"])
def test_numbers_that_are_not_finite_are_counted_as_they_are_stored(mode: Mode) -> None:
    x = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf, 70000.0, 1e-30])
    (load,) = loads([x])
    found = {
        d: schedule_run(ops.cast(ops.scale(load, 1.5), dtype=d), [x], mode=mode).nonfinite
        for d in ("F16", "F32")
    }
    assert found == {"F16": 4, "F32": 3}
