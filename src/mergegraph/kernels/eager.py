"""Ops called with tensors compute at once: how a method is used and tested without a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mergegraph.graph.node import Locality, Op
from mergegraph.kernels.reduction import CHUNK, Array, Reduction


def call(op: Op, operands: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Apply `op` to torch tensors and float64 statistics (numbers and tuples are statistics).

    Tensors are widened to the op's compute dtype first (float64 if any is, else float32), as the
    engine does; the result is a tensor in that dtype, or a statistic.
    """
    tensors = [x for x in operands if hasattr(x, "numel")]
    stats = [_stat(x) for x in operands if not hasattr(x, "numel")]
    if op.locality is Locality.SMALL:
        return op.implementation(*stats, **attrs)
    if op.name != "identical":
        tensors = _widen(tensors)
    if op.locality is Locality.REDUCE:
        return reduce(op.implementation, tensors, stats, attrs)
    return op.implementation(*tensors, *stats, **attrs)


def reduce(kernel: Reduction, tensors: Sequence[Any], stats: Sequence[Array], attrs: dict[str, Any]) -> Array:
    """Fold whole tensors, chunk by chunk in the order the engine uses."""
    flat = [x.reshape(-1) for x in tensors]
    count = flat[0].numel()
    state = kernel.empty(len(flat), attrs, kernel.rows(count))
    for row in range(max(1, -(-count // CHUNK))):
        part = [x[row * CHUNK : (row + 1) * CHUNK] for x in flat]
        state[row if kernel.per_chunk else 0] += kernel.fold_tensors(part, stats, attrs)
    return kernel.finalise(state, len(flat), attrs)


def _stat(x: Any) -> Array:
    return x if isinstance(x, np.ndarray) else np.atleast_1d(np.asarray(x, dtype=np.float64))


def _widen(tensors: Sequence[Any]) -> list[Any]:
    wide = any(str(x.dtype) == "torch.float64" for x in tensors)
    return [x.double() if wide else x.float() for x in tensors]
