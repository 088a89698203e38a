"""Dropping by rank as compiled for rows, against exact ranks; and the bits that remember what it decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mergegraph.kernels.fused_ranks import row_drop32, row_drop64, row_keep, row_kept
from mergegraph.kernels.random import uniform

Row = np.ndarray[Any, Any]
Real = type[np.float32] | type[np.float64]
STREAM = (12345.0, 678.0)
COUNTS = (1, 2, 7, 8, 9, 64, 65, 1000, 2048, 5633)
TYPES = (np.float32, np.float64)


def drop(row: Row, low: float, spread: float, first: int = 0) -> Row:
    """What the compiled function makes of a row, in buffers longer than it."""
    block = np.full((1, len(row) + 3), 9.0, row.dtype)
    block[0, : len(row)] = row
    out = np.full(len(row) + 3, 7.0, row.dtype)
    function = row_drop32 if row.dtype == np.float32 else row_drop64
    function(block, len(row), out, first, low, spread, *STREAM)
    assert (out[len(row) :] == 7.0).all()
    assert (block[0, len(row) :] == 9.0).all()
    return out[: len(row)]


def by_sorting(row: Row, low: float, spread: float, first: int = 0) -> Row:
    """The same from the definition, in the row's type: each operation rounds."""
    real = row.dtype.type
    ranks = np.argsort(np.argsort(np.abs(row), kind="stable"), kind="stable").astype(row.dtype)
    share = ranks / real(len(row) - 1) if len(row) > 1 else np.full_like(row, 0.5)
    drawn = uniform(np.array(STREAM), first, len(row), torch.device("cpu")).numpy().astype(row.dtype)
    stays = ((drawn < real(low) + real(spread) * share) | ~np.isfinite(row)) & (row != 0)
    return np.where(stays, row, real(0))


def example(kind: str, count: int) -> Row:
    draw = np.random.default_rng(count)
    x = draw.normal(size=count)
    match kind:
        case "mostly zero":
            x[draw.random(count) < 0.9] = -0.0
        case "of bfloat16 models":
            x = np.round(x * 40) / 2**14
        case "of few magnitudes":
            x = np.round(x * 2) / 2**10
        case "of close magnitudes":
            x = 1 + x * 1e-3
        case "not finite":
            x[:: max(count // 3, 1)] = np.inf
            x[-1] = np.nan
        case "beside an outlier":
            x[count // 2] = 1e6
    return x


@pytest.mark.parametrize("real", TYPES)
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize(
    "kind",
    [
        "of normal numbers",
        "mostly zero",
        "of bfloat16 models",
        "of few magnitudes",
        "of close magnitudes",
        "not finite",
        "beside an outlier",
    ],
)
def test_rows_keep_what_their_exact_ranks_keep(kind: str, count: int, real: Real) -> None:
    row = example(kind, count).astype(real)
    for low, spread, first in ((0.4, 0.2, 0), (0.01, 0.98, 12_345), (0.7, 0.0, 7)):
        found, expected = drop(row, low, spread, first), by_sorting(row, low, spread, first)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("low, spread", [(0.0, 0.0), (-1.0, 0.5), (1.0, 1.0), (-1e30, 2e30)])
def test_chances_beyond_0_and_1_keep_nothing_or_everything(low: float, spread: float) -> None:
    row = example("of normal numbers", 300).astype(np.float32)
    assert drop(row, low, spread).tobytes() == by_sorting(row, low, spread).tobytes()


@pytest.mark.parametrize("real", TYPES)
@pytest.mark.parametrize("count", COUNTS)
def test_bits_tell_again_what_was_kept(count: int, real: Real) -> None:
    for kind in ("of normal numbers", "mostly zero", "not finite"):
        row = example(kind, count).astype(real)
        dropped = drop(row, 0.4, 0.2)
        kept = np.full(-(-count // 8), 0xFF, np.uint8)
        row_kept(dropped, count, kept)
        assert int(np.unpackbits(kept).sum()) == np.count_nonzero(dropped)
        again = np.full(count + 3, 7.0, real)
        row_keep(row[None], count, again, kept)
        assert again[:count].tobytes() == dropped.tobytes()
        assert (again[count:] == 7.0).all()
