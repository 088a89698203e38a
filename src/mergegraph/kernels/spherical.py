"""Gram matrices, and what can be computed from them instead of from tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mergegraph.kernels.reduction import Array, Reduction

_COLINEAR = 0.9995
_TINY_NORM = 1e-8


def slerp_weights(gram: Array, t: Array) -> Array:
    """Coefficients of ``a`` and ``b`` on the great circle between them, from their dot products.

    ``sin((1-t)θ)/sin θ`` and ``sin(tθ)/sin θ`` with ``cos θ = a·b / (|a||b|)``, applied to the
    un-normalised tensors (Shoemake 1985). Nearly colinear tensors (|cos θ| > 0.9995) are interpolated
    linearly.
    """
    norms = [math.sqrt(gram[i, i]) for i in (0, 1)]
    safe = [n if n > _TINY_NORM else 1.0 for n in norms]
    cosine = min(1.0, max(-1.0, float(gram[0, 1]) / (safe[0] * safe[1])))
    fraction = float(t[0])
    if abs(cosine) > _COLINEAR or math.isnan(cosine):
        return np.array([1.0 - fraction, fraction])
    theta = math.acos(cosine)
    return np.array([math.sin((1.0 - fraction) * theta), math.sin(fraction * theta)]) / math.sin(theta)


def _gram_state(arity: int, _: dict[str, Any]) -> tuple[int, str]:
    return arity * (arity + 1) // 2, "float64"


def _column_state(_: int, attrs: dict[str, Any]) -> tuple[int, str]:
    return 3 * attrs["columns"], "float64"


def _column_code(block: str, count: str, state: str, _: Sequence[str], __: dict[str, Any]) -> str:
    return f"fold_columns({block}, {count}, {state}, columns, begin + lo)"


def _column_finalise(rows: Array, _: int, __: dict[str, Any]) -> Array:
    total: Array = rows[0].copy()
    for row in rows[1:]:
        total += row
    return total.reshape(3, -1)


def _gram_code(block: str, count: str, state: str, _: Sequence[str], attrs: dict[str, Any]) -> str:
    few = attrs["arity"] if attrs["arity"] in (2, 3, 4) else ""
    return f"fold_gram{few}({block}, {count}, {state})"


def _gram_finalise(rows: Array, arity: int, _: dict[str, Any]) -> Array:
    out = np.empty((arity, arity))
    totals = iter([math.fsum(rows[:, c]) for c in range(rows.shape[1])])
    for i in range(arity):
        for j in range(i, arity):
            out[i, j] = out[j, i] = next(totals)
    return out


GRAM = Reduction(_gram_state, True, _gram_code, "gram", _gram_finalise)
"""All pairwise dot products of k tensors, accumulated in float64: the k×k Gram matrix."""

COLUMNS = Reduction(
    _column_state,
    True,
    _column_code,
    "columns",
    _column_finalise,
    chunks=lambda attrs: int(attrs["chunks"]),
    placed=True,
)
"""``a·a``, ``a·b`` and ``b·b`` of each column of two tensors, accumulated in float64: ``[3, columns]``."""
