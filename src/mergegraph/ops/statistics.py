"""Reductions over whole tensors, and functions of what they give."""

from __future__ import annotations

from typing import Any

from mergegraph.errors import GraphError
from mergegraph.graph.node import Locality, Op
from mergegraph.kernels.reduction import CHUNK
from mergegraph.ops.consensus import cap, trim
from mergegraph.ops.linear import columns, columns_of, is_float64, numel, scale
from mergegraph.ops.rules import STAT, Attrs, Specs, from_gram, reduction, small, stat, stats, tensors, tile
from mergegraph.tensorspec import DType, TensorSpec

_REDUCE, _SMALL = Locality.REDUCE, Locality.SMALL


def _histogram_spec(specs: Specs, attrs: Attrs) -> TensorSpec:
    (spec,) = tensors("histogram", specs[:1], 1)
    wide = tile("histogram", [spec], None).dtype is DType.F64
    if attrs["width"] != (63 if wide else 31):
        raise GraphError(f"histogram cannot count {attrs['width']} magnitude bits of {spec.dtype.torch_name}")
    _prefix("histogram", specs[1:], int(attrs["shift"] + attrs["bits"] < attrs["width"]))
    return stat(1 << attrs["bits"], dtype=DType.I64)


def _prefix(name: str, specs: Specs, count: int) -> None:
    """A prefix is the bits found so far and a rank: the plan's rank, or the result of a `select`."""
    if len(specs) != count or any(s.space is not STAT or s.shape != (2,) for s in specs):
        raise GraphError(f"{name} takes {count} prefixes of the bits (a statistic of length 2)")


def _select_spec(specs: Specs, attrs: Attrs) -> TensorSpec:
    if not specs or specs[0] != stat(1 << attrs["bits"], dtype=DType.I64):
        raise GraphError("select takes the counts of a histogram")
    _prefix("select", specs[1:], 1)
    return stat(2, dtype=DType.I64)


def _threshold_spec(specs: Specs, _: Attrs) -> TensorSpec:
    _prefix("threshold", specs, 1)
    return stat(1)


def _rescue_spec(specs: Specs, _: Attrs) -> TensorSpec:
    if len(specs) != 1 or specs[0].space is not STAT or len(specs[0].shape) != 2:
        raise GraphError("rescue_factors takes the counts of overlap")
    stats("rescue_factors", specs, specs[0].shape)
    return stat(specs[0].shape[0])


def _column_products_spec(specs: Specs, attrs: Attrs) -> TensorSpec:
    spec = tile("column_products", tensors("column_products", specs, 2), None)
    if attrs["columns"] != columns_of(spec):
        raise GraphError(f"column_products of shape {spec.shape} has {columns_of(spec)} columns")
    return stat(3, attrs["columns"])


def _column_arc_spec(specs: Specs, _: Attrs) -> TensorSpec:
    count = specs[0].shape[-1] if specs and specs[0].shape else 1
    stats("column_arc", specs, (3, count), 1)
    return stat(2, count)


def _energy_spec(specs: Specs, attrs: Attrs) -> TensorSpec:
    if len(specs) != 1 or len(specs[0].shape) != 1:
        raise GraphError("energy_weights takes the squares of k tensors")
    stats("energy_weights", specs, specs[0].shape)
    return stat(*specs[0].shape)


gram = Op("gram", _REDUCE, reduction("gram", lambda k: (k, k)), "spherical:GRAM")
_column_products = Op("column_products", _REDUCE, _column_products_spec, "spherical:COLUMNS")
column_arc = Op("column_arc", _SMALL, _column_arc_spec, "combinations:column_arc_weights")
squares = Op("squares", _REDUCE, reduction("squares", lambda k: (k,)), "norms:SQUARES")
l1_norm = Op("l1_norm", _REDUCE, reduction("l1_norm", lambda _: (1,), 1), "norms:L1")
nonzero = Op("nonzero", _REDUCE, reduction("nonzero", lambda _: (1,), 1), "norms:NONZERO")
overlap = Op("overlap", _REDUCE, reduction("overlap", lambda k: (k, 2)), "norms:OVERLAP")
histogram = Op("histogram", _REDUCE, _histogram_spec, "select:HISTOGRAM")

select = Op("select", _SMALL, _select_spec, "select:select_bin")
threshold = Op("threshold", _SMALL, _threshold_spec, "select:threshold")
rank_of_share = Op("rank_of_share", _SMALL, small("rank_of_share", 1, gives=2), "select:rank_of_share")
unless_empty = Op("unless_empty", _SMALL, small("unless_empty", 1, 2, gives=1), "select:unless_empty")
restoring_factor = Op(
    "restoring_factor", _SMALL, small("restoring_factor", 1, 1, gives=1), "norms:restoring_factor"
)
slerp = Op("slerp", _SMALL, small("slerp", (2, 2), 1, gives=2), "spherical:slerp_weights")
arc = Op("arc", _SMALL, small("arc", (2, 2), 1, gives=2), "combinations:arc_weights")
sphere_mean = Op("sphere_mean", _SMALL, from_gram("sphere_mean", 0), "combinations:sphere_mean_weights")
karcher_mean = Op("karcher_mean", _SMALL, from_gram("karcher_mean"), "combinations:karcher_weights")
stock = Op("stock", _SMALL, from_gram("stock"), "combinations:stock_weights")
energy_weights = Op("energy_weights", _SMALL, _energy_spec, "combinations:energy_weights")
rescue_factors = Op("rescue_factors", _SMALL, _rescue_spec, "norms:rescue_factors")
quartile_fence = Op(
    "quartile_fence", _SMALL, small("quartile_fence", 1, 1, 1, gives=1), "select:quartile_fence"
)


_LEAST_CHUNKS, _MOST_ROWS = 16, 8


def column_products(x: Any, y: Any) -> Any:
    """``x·x``, ``x·y`` and ``y·y`` of every column: ``[3, columns]``.

    State is long, so there are few rows of it, each for a power of two of chunks: that depends on the
    tensor's size alone.
    """
    chunks = _LEAST_CHUNKS
    while numel(x) > _MOST_ROWS * chunks * CHUNK:
        chunks *= 2
    return _column_products(x, y, columns=columns(x), chunks=chunks)


def kth_largest_magnitude(x: Any, k: Any) -> Any:
    """The exact k-th largest ``|x|`` (1 ≤ k ≤ numel), by radix selection on the float bits.

    Each level is one pass: a histogram of the next most significant bits among the elements that
    share the prefix found so far. float32 has 31 magnitude bits and takes two passes, float64 four.
    No sort, no copy; the result depends on the multiset of magnitudes only. `k` is a number, or a
    statistic (0, k).
    """
    width, levels = (63, (16, 16, 16, 15)) if is_float64(x) else (31, (16, 15))
    shift, prefix = width, (0.0, float(k)) if isinstance(k, int) else k
    for level, bits in enumerate(levels):
        shift -= bits
        known = () if level == 0 else (prefix,)
        counts = histogram(x, *known, shift=shift, bits=bits, width=width)
        prefix = select(counts, prefix, bits=bits)
    return threshold(prefix, width=width)


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


def restore_l1(x: Any, original: Any) -> Any:
    """Scale `x` so that its L1 norm is that of `original` again."""
    return scale(x, restoring_factor(l1_norm(original), l1_norm(x)))
