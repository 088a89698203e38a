"""What the ops compute: functions on tiles, folds over tiles, functions of small statistics.

This package itself loads neither torch nor numba; its modules do, when an op first runs.
"""

from __future__ import annotations

from mergegraph.kernels.eager import call
from mergegraph.kernels.reduction import Reduction

__all__ = ["Reduction", "call"]
