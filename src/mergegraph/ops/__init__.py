"""The instruction set: every op the engine can execute, as data.

An op is a name, a locality, a spec rule, a kernel, and (for the CPU) a rule that spells one element of it
as generated code. Modules mirror those of `mergegraph.kernels`. Formulas stand next to the methods that
use them, in `mergegraph.methods`.
"""

from __future__ import annotations

from mergegraph.graph.node import CONSTANT, Op
from mergegraph.ops import (
    competition,
    consensus,
    linear,
    random,
    rows,
    selection,
    spectral,
    statistics,
    upcycling,
)
from mergegraph.ops.competition import average_by, contest, limit, stretch
from mergegraph.ops.consensus import (
    agreed,
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
    affine,
    apply_delta,
    cast,
    column_sum,
    columns,
    delta,
    gate,
    is_float64,
    line,
    load,
    nearswap,
    numel,
    scale,
    weighted_sum,
)
from mergegraph.ops.random import STREAM, drop, noise, spread, stream
from mergegraph.ops.rows import drop_by_rank, importance, row_arc, row_divergence, row_stock
from mergegraph.ops.selection import (
    around,
    histogram,
    keep_largest,
    keep_middle,
    kth_largest_magnitude,
    magnitudes,
    narrow,
    of_rank,
    quartile_fence,
    rank_of_share,
    threshold,
    unless_empty,
)
from mergegraph.ops.spectral import decorrelated, isotropic, matrix_rank
from mergegraph.ops.statistics import (
    arc,
    column_arc,
    column_products,
    energy_weights,
    gram,
    karcher_mean,
    l1_norm,
    nonzero,
    overlap,
    rescue_factors,
    restore_l1,
    restoring_factor,
    slerp,
    sphere_mean,
    squares,
    stock,
)
from mergegraph.ops.upcycling import inside, lowest, moments, neurons, redraw

_MODULES = (linear, consensus, competition, statistics, selection, rows, random, spectral, upcycling)


def all_ops() -> dict[str, Op]:
    """Every op of this package, by name."""
    found = [value for module in _MODULES for value in vars(module).values() if isinstance(value, Op)]
    return {op.name: op for op in found if op is not CONSTANT}


__all__ = [
    "IDENTICAL",
    "LOAD",
    "STREAM",
    "affine",
    "agreed",
    "all_ops",
    "apply_delta",
    "arc",
    "around",
    "average_by",
    "cap",
    "cast",
    "column_arc",
    "column_products",
    "column_sum",
    "columns",
    "contest",
    "decorrelated",
    "delta",
    "disjoint_merge",
    "drop",
    "drop_by_rank",
    "elect_sign",
    "energy_weights",
    "gate",
    "gram",
    "histogram",
    "importance",
    "inside",
    "is_float64",
    "isotropic",
    "karcher_mean",
    "keep_largest",
    "keep_middle",
    "keep_where",
    "kth_largest_magnitude",
    "l1_norm",
    "limit",
    "line",
    "load",
    "lowest",
    "magnitudes",
    "matrix_rank",
    "moments",
    "narrow",
    "nearswap",
    "neurons",
    "noise",
    "nonzero",
    "numel",
    "of_rank",
    "overlap",
    "overlap_mean",
    "quartile_fence",
    "rank_of_share",
    "redraw",
    "rescue_factors",
    "restore_l1",
    "restoring_factor",
    "row_arc",
    "row_divergence",
    "row_stock",
    "scale",
    "signed_mean",
    "slerp",
    "sphere_mean",
    "spread",
    "squares",
    "stock",
    "stream",
    "stretch",
    "threshold",
    "trim",
    "unless_empty",
    "variance",
    "weighted_sum",
]
