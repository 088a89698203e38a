"""Exact selection of the k-th largest magnitude by radix histograms of the float bits.

The bits of ``|x|`` order like the numbers themselves, so counting the leading bits finds the bin
that holds the k-th largest element, and counting the next bits inside that bin refines it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mergegraph.kernels.reduction import Array, Reduction


def select_bin(counts: Array, prefix: Array, *, bits: int) -> Array:
    """Extend `prefix` = (bits so far, rank from the top) by the bin of `counts` that holds the rank."""
    rank = int(prefix[1])
    from_top = np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_top, rank))
    above = int(from_top[position - 1]) if position else 0
    digit = len(counts) - 1 - position
    return np.array([(int(prefix[0]) << bits) | digit, rank - above], dtype=np.int64)


def threshold(prefix: Array, *, width: int) -> Array:
    """The magnitude whose bits are ``prefix[0]`` (31 bits of a float32, 63 of a float64)."""
    bits = np.array([prefix[0]], dtype=np.int64)
    value: Array = bits.view(np.float64) if width == 63 else bits.astype(np.uint32).view(np.float32)
    result: Array = value.astype(np.float64)
    return result


def rank_of_share(count: Array, *, share: float) -> Array:
    """The prefix (no bits, rank) of the ``⌊share · count⌋``-th largest element."""
    return np.array([0.0, float(int(float(count[0]) * share))])


def unless_empty(threshold: Array, rank: Array) -> Array:
    """The threshold, or infinity if the rank it was looked up for is 0: then nothing is kept."""
    return threshold if rank[1] >= 1 else np.array([np.inf])


def quartile_fence(lower: Array, median: Array, upper: Array) -> Array:
    """``median + 1.5 (upper - lower)``: what lies above stands out."""
    return np.array([float(median[0]) + 1.5 * (float(upper[0]) - float(lower[0]))])


def _histogram_state(_: int, attrs: dict[str, Any]) -> tuple[int, str]:
    return 1 << attrs["bits"], "int32"


def _histogram_code(block: str, count: str, state: str, stats: Sequence[str], attrs: dict[str, Any]) -> str:
    size = 64 if attrs["width"] == 63 else 32
    operands = f"{block}, {count}, {state}, {attrs['shift']}"
    if not stats:
        return f"fold_histogram{size}({operands})"
    return f"fold_histogram_within{size}({operands}, {attrs['bits']}, {stats[0]}_0)"


def _histogram_finalise(rows: Array, _: int, __: dict[str, Any]) -> Array:
    counts: Array = rows.sum(axis=0, dtype=np.int64)
    return counts


HISTOGRAM = Reduction(_histogram_state, False, _histogram_code, "folds:histogram", _histogram_finalise)
"""Counts of ``(bits of |x|) >> shift`` (low `bits` bits of it, among elements that share the prefix)."""
