"""Reductions in fixed lanes: the largest element, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numba.core.errors import TypingError

from mergegraph.kernels.fused import jit
from mergegraph.kernels.fused_vector import LANES, largest_of, sum_of


@jit
def _largest(x, count):  # type: ignore[no-untyped-def]
    return largest_of(x, count)


@jit
def _sum(x, count):  # type: ignore[no-untyped-def]
    return sum_of(x, count)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_number_is_found_wherever_it_is(dtype: Any) -> None:
    for place in range(3 * LANES):
        x = -np.arange(1, 3 * LANES + 1, dtype=dtype)
        x[place] = 0.5
        assert _largest(x, 3 * LANES) == 0.5
        x[place] = math.nan
        assert _largest(x, 3 * LANES) == (-2.0 if place == 0 else -1.0)


def test_nothing_has_no_sum_and_nothing_larger() -> None:
    x = np.ones(LANES)
    assert _sum(x, 0) == 0.0
    assert _largest(x, 0) == -math.inf
    assert _largest(np.full(LANES, math.nan), LANES) == -math.inf


def test_rows_that_are_not_contiguous_floats_are_refused() -> None:
    for wrong in (np.ones(2 * LANES)[::2], np.ones(LANES, np.int64)):
        with pytest.raises(TypingError, match="contiguous array of float32 or float64"):
            _sum(wrong, LANES)
