"""Ops called with tensors compute at once: how a method is used and tested without a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mergegraph.graph.node import Locality, Op
from mergegraph.kernels.reduction import CHUNK, Array, Reduction, Span


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
    if op.locality is Locality.ROWWISE or any(isinstance(x, RowValues) for x in operands):
        return _by_rows(op, tensors, stats, attrs)
    return op.implementation(*tensors, *stats, **attrs)


class RowValues:
    """A few numbers for each row of a tensor, as an eager operand: ``numbers`` is ``[rows, m]``."""

    def __init__(self, numbers: Any) -> None:
        self.numbers = numbers


def _by_rows(op: Op, tensors: Sequence[Any], stats: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """Show tensors to the kernel as ``[rows, columns]``; a result of that shape goes back to theirs."""
    shape = tensors[0].shape
    columns = shape[-1] if len(shape) else 1
    flat = [x.reshape(x.numel() // max(columns, 1), columns) for x in tensors]
    result = op.implementation(*flat, *(getattr(x, "numbers", x) for x in stats), **attrs)
    per_row = op.locality is Locality.ROWWISE and result.shape != flat[0].shape
    return RowValues(result) if per_row or op.name in PER_ROW else result.reshape(shape)


def reduce(kernel: Reduction, tensors: Sequence[Any], stats: Sequence[Array], attrs: dict[str, Any]) -> Array:
    """Fold whole tensors, chunk by chunk in the order the engine uses."""
    flat = [x.reshape(-1) for x in tensors]
    count = flat[0].numel()
    shared = kernel.chunks(attrs)
    state = kernel.empty(len(flat), attrs, kernel.rows(count, shared * CHUNK))
    if flat[0].device.type != "cpu":
        return kernel.finalise(_fold_there(kernel, state, flat, stats, attrs), len(flat), attrs)
    for i in range(max(1, -(-count // CHUNK))):
        part = [x[i * CHUNK : (i + 1) * CHUNK] for x in flat]
        row = state[i // shared if kernel.per_chunk else 0]
        kernel.fold_tensors(row, part, i * CHUNK, stats, attrs)
    return kernel.finalise(state, len(flat), attrs)


def _fold_there(
    kernel: Reduction, state: Array, flat: Sequence[Any], stats: Sequence[Array], attrs: dict[str, Any]
) -> Array:
    """Fold tensors that lie on another device, without moving them."""
    rows = flat[0].new_tensor(state, dtype=None)
    step = kernel.chunks(attrs) * CHUNK if kernel.placed else max(1, flat[0].numel())
    for i, begin in enumerate(range(0, flat[0].numel(), step)):
        part = [x[begin : begin + step] for x in flat]
        kernel.fold_tile(rows[i : i + 1] if kernel.placed else rows, part, Span(begin, CHUNK), stats, attrs)
    found: Array = rows.cpu().numpy()
    return found


PER_ROW = ("row_arc", "row_stock", "row_divergence")


def _stat(x: Any) -> Any:
    if isinstance(x, RowValues | np.ndarray):
        return x
    return np.atleast_1d(np.asarray(x, dtype=np.float64))


def _widen(tensors: Sequence[Any]) -> list[Any]:
    wide = any(str(x.dtype) == "torch.float64" for x in tensors)
    return [x.double() if wide else x.float() for x in tensors]
