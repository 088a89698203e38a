"""Norms and counts of tensors, and what is computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mergegraph.kernels.reduction import Array, Reduction

_TINY = 1e-7


def restoring_factor(before: Array, after: Array) -> Array:
    """``before / after``, or 1 where either norm is below 1e-7 and the quotient means nothing."""
    x, y = float(before[0]), float(after[0])
    return np.array([x / y if x >= _TINY and y >= _TINY else 1.0])


def rescue_factors(counts: Array, *, r: float, alpha: float, epsilon: float) -> Array:
    """``1 + r clamp(ρ, 0, alpha)`` per model, with ρ its shared over its unique active elements."""
    unique, shared = counts[:, 0], counts[:, 1]
    ratio = shared / np.maximum(unique, epsilon)
    factors: Array = 1.0 + r * np.clip(ratio, 0.0, alpha)
    return factors


def _sum_columns(rows: Array) -> Array:
    return np.array([math.fsum(rows[:, column]) for column in range(rows.shape[1])])


def _one(_: int, __: dict[str, Any]) -> tuple[int, str]:
    return 1, "float64"


def _per_tensor(arity: int, _: dict[str, Any]) -> tuple[int, str]:
    return arity, "float64"


def _counts(arity: int, _: dict[str, Any]) -> tuple[int, str]:
    return 2 * arity, "int64"


def _call(name: str, *attrs: str) -> Any:
    """Code that calls a fold with the values of `attrs` after its state."""

    def code(block: str, count: str, state: str, _: Sequence[str], values: dict[str, Any]) -> str:
        return f"{name}({', '.join([block, count, state, *(repr(values[a]) for a in attrs)])})"

    return code


def _total(rows: Array, _: int, __: dict[str, Any]) -> Array:
    return _sum_columns(rows)


def _count(rows: Array, _: int, __: dict[str, Any]) -> Array:
    counts: Array = rows.sum(axis=0).astype(np.float64)
    return counts


def _pairs(rows: Array, arity: int, _: dict[str, Any]) -> Array:
    return _count(rows, arity, {}).reshape(arity, 2)


L1 = Reduction(_one, True, _call("fold_l1"), "l1", _total)
"""``Σ|x|`` of one tensor, accumulated in float64."""

SQUARES = Reduction(_per_tensor, True, _call("fold_squares"), "squares", _total)
"""``Σx²`` of each tensor, accumulated in float64."""

NONZERO = Reduction(lambda _, __: (1, "int64"), False, _call("fold_nonzero"), "nonzero", _count)
"""Number of elements of one tensor that are not zero."""

OVERLAP = Reduction(_counts, False, _call("fold_overlap", "epsilon"), "overlap", _pairs)
"""For each tensor, its active elements (``|x| > epsilon``) that are active alone, and with others."""
