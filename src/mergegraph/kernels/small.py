"""Functions of small statistics that belong to no method family."""

from __future__ import annotations

import numpy as np

from mergegraph.kernels.reduction import Array


def constant(*, values: tuple[float, ...]) -> Array:
    """The statistic that the plan gives: a float64 vector."""
    return np.array(values, dtype=np.float64)
