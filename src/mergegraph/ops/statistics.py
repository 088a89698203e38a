"""Reductions over whole tensors, and functions of what they give."""

from __future__ import annotations

from typing import Any

from mergegraph.errors import GraphError
from mergegraph.graph.node import Locality, Op
from mergegraph.kernels.reduction import CHUNK
from mergegraph.ops.linear import columns, columns_of, numel, scale
from mergegraph.ops.rules import STAT, Attrs, Specs, from_gram, reduction, small, stat, stats, tensors, tile
from mergegraph.tensorspec import TensorSpec

_REDUCE, _SMALL = Locality.REDUCE, Locality.SMALL


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


def restore_l1(x: Any, original: Any) -> Any:
    """Scale `x` so that its L1 norm is that of `original` again."""
    return scale(x, restoring_factor(l1_norm(original), l1_norm(x)))
