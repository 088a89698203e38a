"""Compiled folds of a block: what they add up, and in which order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mergegraph.kernels import fused_folds as folds
from mergegraph.kernels.fused_vector import LANES

WIDTHS = (np.float32, np.float64)
COUNTS = (0, 1, 15, 16, 17, 100, 1000)
Numbers = np.ndarray[Any, Any]


def block_of(rows: int, count: int, dtype: Any) -> Numbers:
    """Numbers of many magnitudes, in rows that are longer than what is folded."""
    draw = np.random.default_rng(rows * 1000 + count)
    return (draw.standard_normal((rows, count + 7)) * 10 ** draw.uniform(-3, 3, (rows, 1))).astype(dtype)


def in_lanes(terms: Numbers) -> float:
    """The sum of float64 numbers in the order that every machine has to use."""
    full = len(terms) - len(terms) % LANES
    lanes = np.zeros(LANES)
    for start in range(0, full, LANES):
        lanes = lanes + terms[start : start + LANES]
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    total = float(lanes[0])
    for term in terms[full:]:
        total += float(term)
    return total


def pairs(rows: int) -> list[tuple[int, int]]:
    return [(p, q) for p in range(rows) for q in range(p, rows)]


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("rows", range(1, 9))
def test_dot_products_of_any_number_of_rows_have_the_bits_of_fixed_lanes(
    rows: int, count: int, dtype: Any
) -> None:
    block, state = block_of(rows, count, dtype), np.zeros(len(pairs(rows)))
    folds.fold_gram(block, count, state)
    wide = block[:, :count].astype(np.float64)
    assert state.tolist() == [in_lanes(wide[p] * wide[q]) for p, q in pairs(rows)]
    exact = wide.astype(np.longdouble)
    sizes = [float(abs(exact[p] * exact[q]).sum()) for p, q in pairs(rows)]
    errors = [
        abs(found - (exact[p] * exact[q]).sum()) for found, (p, q) in zip(state, pairs(rows), strict=True)
    ]
    assert all(error <= 1e-14 * size for error, size in zip(errors, sizes, strict=True))


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("count", COUNTS)
def test_norms_and_squares_have_the_bits_of_fixed_lanes(count: int, dtype: Any) -> None:
    block = block_of(3, count, dtype)
    wide = block[:, :count].astype(np.float64)
    norm, squares = np.zeros(1), np.zeros(3)
    folds.fold_l1(block[:1], count, norm)
    folds.fold_squares(block, count, squares)
    assert norm.tolist() == [in_lanes(abs(wide[0]))]
    assert squares.tolist() == [in_lanes(row * row) for row in wide]


def test_folds_add_to_what_is_there() -> None:
    block = np.ones((2, 20), np.float32)
    for fold, state in ((folds.fold_gram, np.ones(3)), (folds.fold_squares, np.ones(2))):
        fold(block, 20, state)
        assert set(state) == {21.0}
    counts = np.full(4, 3)
    folds.fold_overlap(block, 20, counts, 0.5)
    assert counts.tolist() == [3, 23, 3, 23]


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("place", [3, 33])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("rows", [2, 3, 4, 5])
def test_a_number_that_is_not_finite_shows_in_its_own_sums_alone(
    rows: int, bad: float, place: int, dtype: Any
) -> None:
    block = np.ones((rows, 40), dtype)
    block[1, place] = bad
    gram, squares = np.zeros(len(pairs(rows))), np.zeros(rows)
    folds.fold_gram(block, 40, gram)
    folds.fold_squares(block, 40, squares)
    expected = [40.0 if 1 not in pair else bad for pair in pairs(rows)]
    np.testing.assert_array_equal(gram, expected)
    np.testing.assert_array_equal(squares, [bad if row == 1 else 40.0 for row in range(rows)])


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("begin", [0, 3, 24])
@pytest.mark.parametrize("columns", [1, 5, 25, 400])
def test_columns_are_added_up_each_for_itself(columns: int, begin: int, dtype: Any) -> None:
    count = 133
    block, state = block_of(2, count, dtype), np.zeros(3 * columns)
    folds.fold_columns(block, count, state, columns, begin)
    expected = np.zeros((3, columns))
    a, b = block[:, :count].astype(np.float64)
    for i in range(count):
        expected[:, (begin + i) % columns] += (a[i] * a[i], a[i] * b[i], b[i] * b[i])
    assert state.tolist() == expected.reshape(-1).tolist()


@pytest.mark.parametrize("dtype", WIDTHS)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("rows", range(1, 7))
def test_counts_are_those_of_a_loop_over_elements(rows: int, count: int, dtype: Any) -> None:
    draw = np.random.default_rng(count)
    special = np.array([0.0, -0.0, 0.1, -0.1, 1e-45, 0.2, -3.0, math.nan, math.inf, -math.inf])
    block = special.astype(dtype)[draw.integers(0, len(special), (rows, count + 3))]
    overlap, nonzero = np.zeros(2 * rows, np.int64), np.zeros(1, np.int64)
    folds.fold_overlap(block, count, overlap, 0.1)
    folds.fold_nonzero(block[:1], count, nonzero)
    active = ~(abs(block[:, :count]) <= dtype(0.1))  # an epsilon is rounded as the elements were
    alone = active & (active.sum(axis=0) == 1)
    assert overlap.reshape(rows, 2).tolist() == [
        [int((a & b).sum()), int((a & ~b).sum())] for a, b in zip(active, alone, strict=True)
    ]
    assert nonzero.tolist() == [int((block[0, :count] != 0).sum())]
