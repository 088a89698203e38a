"""Functions of rows against float64 references that work on one row at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mergegraph import ops
from mergegraph.kernels.fused import jit
from mergegraph.kernels.fused_rows import exponential, log_quotient
from mergegraph.kernels.rows import rank_in_row
from mergegraph.tensorspec import DType
from tests.kernels.test_combinations import gram
from tests.runtime.harness import normal

WIDTHS = (DType.F32, DType.F64)
SHAPES = [(1, 1), (1, 7), (9, 1), (12, 300), (3, 4, 5)]


def rows(x: Tensor) -> list[np.ndarray[Any, Any]]:
    return list(x.double().reshape(-1, x.shape[-1]).numpy())


def pair(shape: tuple[int, ...], dtype: DType) -> list[Tensor]:
    """Two tensors; with many rows, equal, opposite and zero rows are among them."""
    x, y = normal(*shape, dtype=dtype, seed=1), normal(*shape, dtype=dtype, seed=2)
    if shape[0] > 8:
        y[0], y[1], y[2], x[3] = x[0], -3 * x[1], 0.0, 0.0
    return [x, y]


@pytest.mark.parametrize("dtype", WIDTHS, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_row_has_the_arc_that_it_would_have_alone(shape: tuple[int, ...], dtype: DType) -> None:
    x, y = pair(shape, dtype)
    found = ops.row_arc(x, y, 0.3).numbers
    expected = [ops.arc(gram([a, b]), 0.3) for a, b in zip(rows(x), rows(y), strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", WIDTHS, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_row_has_the_ratio_that_it_would_have_alone(shape: tuple[int, ...], dtype: DType) -> None:
    x, y = pair(shape, dtype)
    z = normal(*shape, dtype=dtype, seed=3)
    found = ops.row_stock(x, y, z).numbers
    expected = [ops.stock(gram(list(part))) for part in zip(rows(x), rows(y), rows(z), strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_with_a_number_that_is_not_finite_has_no_angle(bad: float) -> None:
    """The plain mean, or a straight line, shows the number where it is, and leaves the others as they are."""
    x, y, z = (normal(3, 7, seed=seed) for seed in (1, 2, 3))
    whole = ops.row_stock(x, y, z).numbers
    y[1, 2] = bad
    found = ops.row_stock(x, y, z).numbers
    assert found[1].tolist() == pytest.approx([1 / 3] * 3)
    assert found[::2].equal(whole[::2])
    assert ops.row_arc(x, y, 0.25).numbers[1].tolist() == [0.75, 0.25]


@pytest.mark.parametrize("spread", [1e-3, 1.0, 100.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_divergence_is_that_of_the_two_distributions(shape: tuple[int, ...], spread: float) -> None:
    x, y = (t * spread for t in pair(shape, DType.F64))
    found = ops.row_divergence(x, y).numbers
    expected = []
    for a, b in zip(rows(x), rows(y), strict=True):
        p, q = (np.exp(v - v.max()) / np.exp(v - v.max()).sum() + 1e-8 for v in (a, b))
        expected.append([max(0.0, float((p * np.log(p / q)).sum()))])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-14)


def test_equal_rows_do_not_diverge() -> None:
    x = normal(20, 30, seed=1)
    assert not ops.row_divergence(x, x.clone()).numbers.any()
    assert not ops.row_divergence(x, x + 1.0).numbers.gt(1e-12).any()  # a softmax forgets constants


@jit
def _exponentials(x, out):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        out[i] = exponential(x[i])


@jit
def _log_quotients(p, q, out):  # type: ignore[no-untyped-def]
    for i in range(len(p)):
        out[i] = log_quotient(p[i], q[i])


def test_exponentials_and_logarithms_are_right_to_the_last_bit_but_one() -> None:
    draw = np.random.default_rng(0)
    x = -np.concatenate([draw.exponential(5.0, 20_000), draw.uniform(0, 708, 20_000), [0.0, 1e-300, 0.5]])
    found = np.empty_like(x)
    _exponentials(x, found)
    np.testing.assert_allclose(found, np.exp(x.astype(np.longdouble)).astype(np.float64), rtol=3e-16, atol=0)
    special = np.array([0.0, -800.0, -np.inf, np.nan])
    found = np.empty_like(special)
    _exponentials(special, found)
    assert found[0] == 1.0
    assert (found[1:3] < 1e-300).all()
    assert np.isnan(found[3])

    p, q = 10 ** draw.uniform(-8, 0, (2, 20_000))
    q[:5000] = p[:5000] * (1 + 1e-3 * draw.normal(size=5000))
    found = np.empty_like(p)
    _log_quotients(p, q, found)
    wide = p.astype(np.longdouble)
    exact = np.where(np.abs(p / q - 1) < 0.1, np.log1p((wide - q) / q), np.log(wide / q))
    np.testing.assert_allclose(found, exact.astype(np.float64), rtol=6e-16, atol=0)


def test_huge_numbers_do_not_overflow_a_softmax() -> None:
    x = torch.tensor([[3e38, -3e38, 0.0], [1e5, 1e5, -1e5]])
    assert ops.row_divergence(x, -x).numbers.isfinite().all()


@pytest.mark.parametrize("dtype", WIDTHS, ids=lambda d: d.name)
def test_ranks_go_from_0_to_1_by_magnitude_and_then_by_place(dtype: DType) -> None:
    x = torch.tensor([[3.0, -1.0, 2.0, -1.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]).to(
        torch.float64 if dtype is DType.F64 else torch.float32
    )
    assert rank_in_row(x).tolist() == [[1.0, 0.25, 0.75, 0.5, 0.0], [0.0, 0.25, 0.5, 0.75, 1.0]]


@pytest.mark.parametrize("dtype", WIDTHS, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_rank_of_a_row_occurs_once(shape: tuple[int, ...], dtype: DType) -> None:
    ranks = rank_in_row(normal(*shape, dtype=dtype))
    columns = shape[-1]
    assert ranks.shape == shape
    if columns == 1:
        assert torch.equal(ranks, torch.full_like(ranks, 0.5))
        return
    expected = torch.arange(columns, dtype=ranks.dtype) / (columns - 1)
    assert torch.equal(ranks.sort(dim=-1).values, expected.expand(shape))


def test_importance_is_the_change_times_the_divergence_of_its_row() -> None:
    base = torch.tensor([[0.0, 0.0], [1.0, 2.0]], dtype=torch.float64)
    change = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64)
    divergence = ops.row_divergence(base + change, base)
    found = ops.importance(change, divergence)
    torch.testing.assert_close(found, change.abs() * divergence.numbers, rtol=1e-12, atol=0.0)
