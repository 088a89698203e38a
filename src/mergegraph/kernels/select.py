"""Exact selection of the k-th largest magnitude, without sorting.

The bits of ``|x|`` order like the numbers themselves. A *bracket* is a run of bit patterns that holds the
wanted one; counting what lies above it, and where in it elements lie, gives a narrower one. The first bracket
comes from a sample of the tensor, so that one pass over the whole usually is enough (Floyd and Rivest 1975
select by sampling, too). Where it missed, the next pass looks elsewhere: the result is exact in any case.
The magnitudes of a small tensor are collected instead, and partitioned.

A bracket is four integers: its lowest pattern; the shift that leads from an offset in it to a bin, or -1 if
the lowest pattern is the answer; its span, the largest offset; a pattern in it that many elements may have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mergegraph.kernels.reduction import Array, Reduction

_FOUND = -1
MARGIN = 8
"""Standard deviations of a rank in a sample that a bracket leaves on both sides: neighbours are alike."""


def around(counts: Array, rank: Array, *, width: int, bits: int, total: int, share: bool) -> Array:
    """The bracket that a sample suggests for the rank-th largest of `total` elements, for ``1 << bits`` bins.

    Args:
        counts: a sample in bins of all patterns.
        rank: from the top; with `share`, a share of the elements that are not zero.
        width: bits of a pattern.
        bits: of the bin numbers of the bracket that is returned.
        total: elements of the tensor.
        share: what `rank` is.
    """
    seen = _bins(counts)[0]
    size, last = int(seen.sum()), len(seen) - 1
    if size == 0:
        return _bracket(0, (1 << width) - 1, 0, bits)
    wanted = float(rank[0]) * (size - int(seen[0]) if share else size / total)
    part = min(1.0, wanted / size)
    margin = MARGIN * math.sqrt(size * part * (1 - part)) + 4 * MARGIN
    from_top = np.cumsum(seen[::-1])
    high, low = (last - min(last, int(np.searchsorted(from_top, wanted + x))) for x in (-margin, margin))
    # Where the margin reaches beyond the sample: the tensor's largest elements are not much larger.
    high = min(high, last - int(np.searchsorted(from_top, 1)) + (len(seen) >> 8), last)
    heaviest = low + int(np.argmax(seen[low : high + 1]))
    step = width - last.bit_length()
    return _bracket(low << step, ((high + 1) << step) - 1, heaviest << step, bits)


def narrow(counts: Array, rank: Array, bracket: Array, *, width: int, bits: int) -> Array:
    """The bracket that `counts` in `bracket` leave for the rank-th largest element."""
    most = (1 << width) - 1
    low, shift, span, _ = (int(x) for x in bracket)
    if shift == _FOUND:
        return bracket
    seen, inexact = _bins(counts)
    left = int(rank[0]) - int(counts[0])
    from_top = np.cumsum(seen[::-1])
    if left < 1:
        begin = min(low + span + 1, most)
        return _bracket(begin, most, begin, bits)
    if left > from_top[-1]:
        return _bracket(0, max(0, low - 1), 0, bits)
    digit = len(seen) - 1 - int(np.searchsorted(from_top, left))
    begin = low + (digit << shift)
    if inexact[digit] == 0:
        return np.array([begin, _FOUND, 0, begin], dtype=np.int64)
    return _bracket(begin, begin + (1 << shift) - 1, begin, bits)


def bracket_of(stats: Sequence[Array], attrs: dict[str, Any]) -> tuple[int, int, int, int]:
    """The bracket that a histogram counts in: its statistic, or all patterns."""
    if stats:
        low, shift, span, guess = (int(x) for x in stats[0])
        return low, shift, span, guess
    return 0, attrs["width"] - attrs["bits"], (1 << attrs["width"]) - 1, 0


def threshold(bracket: Array, *, width: int) -> Array:
    """The magnitude that a bracket was narrowed to: of 31 bits a float32, of 63 a float64."""
    bits = np.array([bracket[0]], dtype=np.int64)
    value: Array = bits.view(np.float64) if width == 63 else bits.astype(np.uint32).view(np.float32)
    result: Array = value.astype(np.float64)
    return result


def of_rank(magnitudes: Array, rank: Array, *, width: int) -> Array:
    """The rank-th largest of all magnitudes, at least the first and at most the last; 0 if there are none."""
    if len(magnitudes) == 0:
        return np.zeros(1)
    place = max(0, len(magnitudes) - max(1, int(rank[0])))
    bits = magnitudes if width == 63 else magnitudes.astype(np.uint32)  # half as wide, twice as fast
    return threshold(np.partition(bits, place)[place : place + 1], width=width)


def rank_of_share(count: Array, *, share: float) -> Array:
    """The rank of the ``⌊share · count⌋``-th largest element."""
    return np.array([float(int(float(count[0]) * share))])


def unless_empty(threshold: Array, rank: Array) -> Array:
    """The threshold, or infinity if the rank it was looked up for is 0: then nothing is kept."""
    return threshold if rank[0] >= 1 else np.array([np.inf])


def quartile_fence(lower: Array, median: Array, upper: Array) -> Array:
    """``median + 1.5 (upper - lower)``: what lies above stands out."""
    return np.array([float(median[0]) + 1.5 * (float(upper[0]) - float(lower[0]))])


def _bracket(low: int, high: int, guess: int, bits: int) -> Array:
    """The patterns from `low` to `high`, in as narrow bins as there are."""
    span = high - low
    return np.array([low, max(0, span.bit_length() - bits), span, guess], dtype=np.int64)


def _bins(counts: Array) -> tuple[Array, Array]:
    """How many elements each bin has, and how many of them are not the first pattern of it."""
    size = (len(counts) - 1) // 2
    return counts[1 : size + 1], counts[size + 1 :]


def _state(_: int, attrs: dict[str, Any]) -> tuple[int, str]:
    return 1 + (2 << attrs["bits"]), "int32"


def _code(block: str, count: str, state: str, stats: Sequence[str], attrs: dict[str, Any]) -> str:
    size = 64 if attrs["width"] == 63 else 32
    bracket = ", ".join(f"{stats[0]}_{i}" if stats else str(x) for i, x in enumerate(bracket_of((), attrs)))
    return f"fold_select{size}({block}, {count}, {state}, {bracket})"


def _finalise(rows: Array, _: int, __: dict[str, Any]) -> Array:
    one = rows[0].astype(np.int64, copy=False)
    counts: Array = one if len(rows) == 1 else rows.sum(axis=0, dtype=np.int64)
    return counts


def _unsettled(stats: Sequence[Array]) -> bool:
    """Whether the bracket is not the answer yet."""
    return not stats or int(stats[0][1]) != _FOUND


HISTOGRAM = Reduction(_state, False, _code, "histogram", _finalise, needed=_unsettled)
"""How many magnitudes lie above a bracket; of those in it, how many in each bin; and of these, how many are
not the first pattern of their bin."""


def _room(_: int, attrs: dict[str, Any]) -> tuple[int, str]:
    return attrs["size"], "int64" if attrs["width"] == 63 else "int32"


def _collect(block: str, count: str, state: str, _: Sequence[str], attrs: dict[str, Any]) -> str:
    size = 64 if attrs["width"] == 63 else 32
    return f"fold_magnitudes{size}({block}, {count}, {state}, begin + lo)"


MAGNITUDES = Reduction(_room, False, _collect, "magnitudes", _finalise, placed=True)
"""The bits of every magnitude, in the places of their elements."""
