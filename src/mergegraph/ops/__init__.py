"""The instruction set: every op the engine can execute, as data.

An op is a name, a locality, a spec rule, a kernel, and (for the CPU) a rule that spells one element of it
as generated code. Modules mirror those of `mergegraph.kernels`. Formulas stand next to the methods that
use them, in `mergegraph.methods`.
"""

from __future__ import annotations

from mergegraph.graph.node import CONSTANT, Op
from mergegraph.ops import consensus, linear, random, rows, statistics
from mergegraph.ops.consensus import (
    cap,
    disjoint_merge,
    elect_sign,
    keep_where,
    overlap_mean,
    signed_mean,
    trim,
    variance,
)
from mergegraph.ops.linear import (
    IDENTICAL,
    LOAD,
    apply_delta,
    cast,
    column_sum,
    columns,
    delta,
    is_float64,
    line,
    load,
    nearswap,
    numel,
    scale,
    weighted_sum,
)
from mergegraph.ops.random import STREAM, drop, drop_by, noise, spread, stream
from mergegraph.ops.rows import importance, row_arc, row_divergence, row_ranks, row_stock
from mergegraph.ops.statistics import (
    arc,
    column_arc,
    column_products,
    energy_weights,
    gram,
    histogram,
    karcher_mean,
    keep_largest,
    keep_middle,
    kth_largest_magnitude,
    l1_norm,
    nonzero,
    overlap,
    quartile_fence,
    rank_of_share,
    rescue_factors,
    restore_l1,
    restoring_factor,
    select,
    slerp,
    sphere_mean,
    squares,
    stock,
    threshold,
    unless_empty,
)

_MODULES = (linear, consensus, statistics, rows, random)


def all_ops() -> dict[str, Op]:
    """Every op of this package, by name."""
    found = [value for module in _MODULES for value in vars(module).values() if isinstance(value, Op)]
    return {op.name: op for op in found if op is not CONSTANT}


__all__ = [
    "IDENTICAL",
    "LOAD",
    "STREAM",
    "all_ops",
    "apply_delta",
    "arc",
    "cap",
    "cast",
    "column_arc",
    "column_products",
    "column_sum",
    "columns",
    "delta",
    "disjoint_merge",
    "drop",
    "drop_by",
    "elect_sign",
    "energy_weights",
    "gram",
    "histogram",
    "importance",
    "is_float64",
    "karcher_mean",
    "keep_largest",
    "keep_middle",
    "keep_where",
    "kth_largest_magnitude",
    "l1_norm",
    "line",
    "load",
    "nearswap",
    "noise",
    "nonzero",
    "numel",
    "overlap",
    "overlap_mean",
    "quartile_fence",
    "rank_of_share",
    "rescue_factors",
    "restore_l1",
    "restoring_factor",
    "row_arc",
    "row_divergence",
    "row_ranks",
    "row_stock",
    "scale",
    "select",
    "signed_mean",
    "slerp",
    "sphere_mean",
    "spread",
    "squares",
    "stock",
    "stream",
    "threshold",
    "trim",
    "unless_empty",
    "variance",
    "weighted_sum",
]
