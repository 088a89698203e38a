"""Exact selection of magnitudes by rank, and what it is for: keeping the largest, or the middle."""

from __future__ import annotations

from typing import Any

from mergegraph.errors import GraphError
from mergegraph.graph.node import Locality, Op
from mergegraph.ops.consensus import cap, trim
from mergegraph.ops.linear import is_float64, numel
from mergegraph.ops.rules import STAT, Attrs, Specs, small, stat, stats, tensors, tile
from mergegraph.tensorspec import DType, TensorSpec

SAMPLED = 1 << 16
"""Elements from which on a tensor is sampled and counted; magnitudes of smaller ones are collected."""
SAMPLE = 16
"""One in so many elements is in the sample."""

_BRACKET = stat(4, dtype=DType.I64)


def _histogram_spec(specs: Specs, attrs: Attrs) -> TensorSpec:
    (spec,) = tensors("histogram", specs[:1], 1)
    wide = tile("histogram", [spec], None).dtype is DType.F64
    if attrs["width"] != (63 if wide else 31):
        raise GraphError(f"histogram cannot count {attrs['width']} magnitude bits of {spec.dtype.torch_name}")
    if tuple(specs[1:]) not in ((), (_BRACKET,)):
        raise GraphError("histogram takes a tensor and perhaps a bracket")
    return _counts(attrs["bits"])


def _counts(bits: int) -> TensorSpec:
    return stat(1 + (2 << bits), dtype=DType.I64)


def _magnitudes_spec(specs: Specs, attrs: Attrs) -> TensorSpec:
    (spec,) = tensors("magnitudes", specs, 1)
    wide = tile("magnitudes", [spec], None).dtype is DType.F64
    if (attrs["width"], attrs["size"]) != (63 if wide else 31, spec.numel):
        raise GraphError(f"{attrs['size']} magnitudes of {attrs['width']} bits are not those of {spec}")
    return stat(attrs["size"], dtype=DType.I64)


def _of_rank_spec(specs: Specs, _: Attrs) -> TensorSpec:
    if not specs or specs[0].space is not STAT or specs[0].dtype is not DType.I64:
        raise GraphError("of_rank takes magnitudes")
    stats("of_rank", specs[1:], 1)
    return stat(1)


def _around_spec(specs: Specs, attrs: Attrs) -> TensorSpec:
    if not specs or specs[0].space is not STAT:
        raise GraphError("around takes the counts of a histogram")
    stats("around", specs[1:], 1)
    return _BRACKET


def _narrow_spec(specs: Specs, attrs: Attrs) -> TensorSpec:
    if not specs or specs[0] != _counts(attrs["bits"]):
        raise GraphError("narrow takes the counts of a histogram")
    stats("narrow", specs[1:2], 1)
    if tuple(specs[2:]) != (_BRACKET,):
        raise GraphError("narrow takes counts, a rank, and the bracket that was counted in")
    return _BRACKET


def _threshold_spec(specs: Specs, _: Attrs) -> TensorSpec:
    if tuple(specs) != (_BRACKET,):
        raise GraphError("threshold takes a bracket")
    return stat(1)


_SMALL = Locality.SMALL
histogram = Op("histogram", Locality.REDUCE, _histogram_spec, "select:HISTOGRAM")
magnitudes = Op("magnitudes", Locality.REDUCE, _magnitudes_spec, "select:MAGNITUDES")
of_rank = Op("of_rank", _SMALL, _of_rank_spec, "select:of_rank")
around = Op("around", _SMALL, _around_spec, "select:around")
narrow = Op("narrow", _SMALL, _narrow_spec, "select:narrow")
threshold = Op("threshold", _SMALL, _threshold_spec, "select:threshold")
rank_of_share = Op("rank_of_share", _SMALL, small("rank_of_share", 1, gives=1), "select:rank_of_share")
unless_empty = Op("unless_empty", _SMALL, small("unless_empty", 1, 1, gives=1), "select:unless_empty")
quartile_fence = Op(
    "quartile_fence", _SMALL, small("quartile_fence", 1, 1, 1, gives=1), "select:quartile_fence"
)


def kth_largest_magnitude(x: Any, k: Any, *, share: float | None = None) -> Any:
    """The exact k-th largest ``|x|`` (1 ≤ k ≤ numel), by counting in brackets of float bits.

    A sample of one in 16 elements suggests a bracket, one pass counts in it, and that usually is all. Passes
    that find out the rest are part of the expression, and not run if there is nothing to find out. No
    sort, and no copy but of a small tensor; the result depends on the multiset of magnitudes only.

    Args:
        x: the tensor.
        k: the rank, a number or a statistic.
        share: where `k` is a statistic: the share of the elements that are not zero that it will be.
    """
    width, total = 63 if is_float64(x) else 31, numel(x)
    rank = float(k) if isinstance(k, int) else k
    if total < SAMPLED:
        return of_rank(magnitudes(x, width=width, size=total), rank, width=width)
    bits = 13
    sample = histogram(x, width=width, bits=bits, sample=SAMPLE, spare=False)
    expected = rank if share is None else share
    bracket = around(sample, expected, width=width, bits=bits, total=total, share=share is not None)
    # Each pass leaves `bits` fewer bits open; the bracket that comes from the sample may fail.
    for done in range(1 + -(-width // bits)):
        counts = histogram(x, bracket, width=width, bits=bits, sample=1, spare=done > 0)
        bracket = narrow(counts, rank, bracket, width=width, bits=bits)
    return threshold(bracket, width=width)


def keep_largest(x: Any, density: float) -> Any:
    """Zero all but the ``max(1, ⌊density·N⌋)`` largest magnitudes of the tensor, and their equals.

    Density 1 keeps everything, density 0 nothing. Elements equal to the threshold are all kept, as in
    the TIES authors' code, so the result does not depend on any order.
    """
    count = numel(x)
    if density >= 1 or count == 0:
        return x
    if density <= 0:
        return trim(x, float("inf"))
    return trim(x, kth_largest_magnitude(x, max(1, int(density * count))))


def keep_middle(x: Any, density: float, gamma: float) -> Any:
    """Keep ``⌊density·N⌋`` magnitudes, after leaving out the ``⌊gamma·N⌋`` largest; equals stay together."""
    count = numel(x)
    if density >= 1 or count == 0:
        return x
    keep = int(max(0.0, density) * count)
    top = max(0, min(int(gamma * count), count - keep))
    if keep == 0:
        return trim(x, float("inf"))
    low = keep + top
    kept = x if low == count else trim(x, kth_largest_magnitude(x, low))
    return kept if top == 0 else cap(kept, kth_largest_magnitude(x, top + 1))
