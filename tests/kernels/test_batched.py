"""Folds and functions of rows for devices: what compiled code gives, whatever the size of a tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mergegraph import ops
from mergegraph.kernels import rows
from mergegraph.kernels.batched import halved
from mergegraph.kernels.norms import L1, NONZERO, OVERLAP, SQUARES
from mergegraph.kernels.reduction import CHUNK, Array, Reduction, Span
from mergegraph.kernels.select import HISTOGRAM, MAGNITUDES
from mergegraph.kernels.spherical import COLUMNS, GRAM
from mergegraph.tensorspec import DType
from tests.runtime.harness import normal

WIDTHS = (DType.F32, DType.F64)
SUMS = [pytest.param(GRAM, 1, id="gram"), pytest.param(GRAM, 3, id="gram of 3"), pytest.param(L1, 1, id="l1")]
SUMS.append(pytest.param(SQUARES, 3, id="squares"))


def like(count: int, arity: int, dtype: DType = DType.F32) -> list[Tensor]:
    return [normal(count, dtype=dtype, seed=i) for i in range(arity)]


def by_chunk(kernel: Reduction, tensors: list[Tensor], attrs: Any, chunk: int, *stats: Array) -> Array:
    """The state that the compiled folds leave."""
    state = kernel.empty(len(tensors), attrs, kernel.rows(len(tensors[0]), chunk))
    for i, begin in enumerate(range(0, len(tensors[0]), chunk)):
        part = [x[begin : begin + chunk] for x in tensors]
        kernel.fold_tensors(state[i if kernel.per_chunk else 0], part, begin, stats, attrs)
    return state


def at_once(kernel: Reduction, tensors: list[Tensor], attrs: Any, chunk: int, *stats: Array) -> Array:
    """The state that one fold of everything leaves."""
    state = torch.from_numpy(kernel.empty(len(tensors), attrs, kernel.rows(len(tensors[0]), chunk)))
    kernel.fold_tile(state, tensors, Span(0, chunk), stats, attrs)
    return state.numpy()


@pytest.mark.parametrize("dtype", WIDTHS, ids=lambda d: d.name)
@pytest.mark.parametrize("chunk", [CHUNK, 100 * 24])
@pytest.mark.parametrize("count", [1, 63, 5000, CHUNK, 2 * CHUNK + 999])
@pytest.mark.parametrize(("kernel", "arity"), SUMS)
def test_sums_are_those_of_compiled_folds_to_1e_13(
    kernel: Reduction, arity: int, count: int, chunk: int, dtype: DType
) -> None:
    tensors = like(count, arity, dtype)
    before = [x.clone() for x in tensors]
    found, expected = at_once(kernel, tensors, {}, chunk), by_chunk(kernel, tensors, {}, chunk)
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13 * chunk)
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


@pytest.mark.parametrize(("kernel", "arity"), SUMS)
def test_a_chunk_has_the_same_sum_in_any_tile(kernel: Reduction, arity: int) -> None:
    tensors = like(5 * CHUNK + 77, arity)
    whole = at_once(kernel, tensors, {}, CHUNK)
    parts = [
        at_once(kernel, [x[b : b + CHUNK] for x in tensors], {}, CHUNK) for b in range(0, 6 * CHUNK, CHUNK)
    ]
    assert whole.tobytes() == np.concatenate(parts).tobytes()


@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_counts_are_those_of_compiled_folds(epsilon: float) -> None:
    tensors = like(100_003, 3)
    for x in tensors:
        x[::3] = 0.0
        x[5] = torch.nan
    attrs = {"epsilon": epsilon}
    assert (
        at_once(OVERLAP, tensors, attrs, CHUNK).tolist() == by_chunk(OVERLAP, tensors, attrs, CHUNK).tolist()
    )
    one = tensors[:1]
    assert at_once(NONZERO, one, {}, CHUNK).tolist() == by_chunk(NONZERO, one, {}, CHUNK).tolist()


def brackets(x: Tensor, width: int) -> list[tuple[Array, ...]]:
    """None; one around the middle, with a pattern that many elements have; one pattern; a settled one."""
    middle = int(x.abs().view(torch.int64 if width == 63 else torch.int32).median())
    found = [(middle - 5000, 3, 20_000, middle), (0, width - 8, 1 << (width - 1), 0), (middle, 0, 0, middle)]
    return [(), *((np.array(bracket),) for bracket in [*found, (middle, -1, 0, middle)])]


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("width", [31, 63])
def test_magnitudes_are_counted_as_compiled_folds_count_them(width: int, which: int) -> None:
    x = normal(100_003, dtype=DType.F64 if width == 63 else DType.F32)
    x[::5] = x.abs().median()
    x[::7] = 0.0
    x[3], x[4], x[5] = torch.nan, torch.inf, -0.0
    stats, attrs = brackets(x, width)[which], {"width": width, "bits": 15, "sample": 1, "spare": False}
    expected = by_chunk(HISTOGRAM, [x], attrs, CHUNK, *stats)
    np.testing.assert_array_equal(at_once(HISTOGRAM, [x], attrs, CHUNK, *stats), expected)


@pytest.mark.parametrize("width", [31, 63])
def test_magnitudes_are_collected_as_compiled_folds_collect_them(width: int) -> None:
    x = normal(100_003, dtype=DType.F64 if width == 63 else DType.F32)
    x[3], x[4], x[5] = torch.nan, torch.inf, -0.0
    attrs = {"width": width, "size": len(x)}
    expected = by_chunk(MAGNITUDES, [x], attrs, CHUNK)
    np.testing.assert_array_equal(at_once(MAGNITUDES, [x], attrs, CHUNK), expected)
    assert expected[0, 5] == 0 and (expected.reshape(-1) >= 0).all()


@pytest.mark.parametrize("count", [1, 7, 64, 2048, 65_535, 70_000])
def test_sums_of_columns_are_those_of_compiled_folds_in_any_tiles(count: int) -> None:
    tensors = like(3 * CHUNK + 99, 2)
    attrs = {"columns": count, "chunks": 4}
    expected = COLUMNS.empty(2, attrs, 1)
    COLUMNS.fold_tensors(expected[0], tensors, 0, (), attrs)
    whole = at_once(COLUMNS, tensors, attrs, 4 * CHUNK)
    found = torch.zeros(1, 3 * count, dtype=torch.float64)
    COLUMNS.fold_tile(found, tensors, Span(0, CHUNK), (), attrs)
    steps = torch.zeros(1, 3 * count, dtype=torch.float64)
    for begin in range(0, len(tensors[0]), CHUNK):
        part = [x[begin : begin + CHUNK] for x in tensors]
        COLUMNS.fold_tile(steps, part, Span(begin, CHUNK), (), attrs)
    assert torch.equal(steps, found)
    for state in (whole, found.numpy()):
        np.testing.assert_allclose(state, expected, rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("width", [0, 1, 2, 3, 5, 64, 100])
def test_halving_adds_up_the_last_axis(width: int) -> None:
    x = torch.arange(3 * width, dtype=torch.float64).reshape(3, width)
    assert halved(x.clone()).tolist() == x.sum(-1).tolist()


@pytest.mark.parametrize("bad", [None, torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", [(1, 1), (9, 1), (12, 300)], ids=str)
def test_functions_of_rows_are_those_of_compiled_code(shape: tuple[int, ...], bad: float | None) -> None:
    x, y, z = (normal(*shape, seed=seed) for seed in (1, 2, 3))
    if shape[0] > 8:
        y[0], y[1], y[2], x[3] = x[0], -3 * x[1], 0.0, 0.0
    if bad is not None:
        y[0, 0] = bad
    pairs = [
        (rows.torch_row_arc(x, y, np.array([0.3])), ops.row_arc(x, y, 0.3).numbers),
        (rows.torch_row_stock(x, y, z), ops.row_stock(x, y, z).numbers),
    ]
    if bad is None:
        pairs.append((rows.torch_row_divergence(x, y), ops.row_divergence(x, y).numbers))
    for found, expected in pairs:
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-9, atol=1e-12)
