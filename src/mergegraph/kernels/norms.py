"""Norms of tensors, and the rescaling that restores one."""

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


def _state(_: int, __: dict[str, Any]) -> tuple[int, str]:
    return 1, "float64"


def _code(block: str, count: str, state: str, _: Sequence[str], __: dict[str, Any]) -> str:
    return f"fold_l1({block}, {count}, {state})"


def _finalise(rows: Array, _: int, __: dict[str, Any]) -> Array:
    return np.array([math.fsum(rows[:, 0])])


L1 = Reduction(_state, True, _code, "folds:l1", _finalise)
"""``Σ|x|`` of one tensor, accumulated in float64."""
