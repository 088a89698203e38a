"""Running a phase op by op with torch: on a GPU, and for ops that say nothing about one element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mergegraph.graph.node import Node
from mergegraph.kernels.reduction import Array, Span
from mergegraph.runtime.tiles import PhaseFunction, Tile
from mergegraph.schedule.program import Phase
from mergegraph.schedule.vram import lifetimes
from mergegraph.tensorspec import DType

TORCH = {
    DType.BF16: torch.bfloat16,
    DType.F16: torch.float16,
    DType.F32: torch.float32,
    DType.F64: torch.float64,
}


class Left(NamedTuple):
    """What a tile leaves on its device, besides what it added to states.

    Attributes:
        output: in its own dtype, and how many of its elements are not finite; None without a result.
        kept: numbers of rows for later phases.
    """

    output: tuple[Tensor, Tensor] | None
    kept: list[Tensor]


class Interpreter:
    """Computes tiles of one phase on whatever device their loads are on."""

    def __init__(self, phase: Phase) -> None:
        self.phase = phase
        self._steps = tuple(zip(phase.body, lifetimes(phase), strict=True))

    def run(
        self, loads: Sequence[Tensor], known: Mapping[bytes, Any], begin: int, states: Sequence[Tensor]
    ) -> Left:
        """Compute a tile, and add it to the rows of `states` that it belongs to.

        Args:
            loads: flat, as they are stored.
            known: statistics by node key; numbers of rows and columns are tensors on the device.
            begin: number of the tile's first element.
            states: one per reduction, on the device.
        """
        phase = self.phase
        values = self.values(loads, known, begin)
        for reduction, state in zip(phase.reductions, states, strict=True):
            tensors, stats = _operands(reduction, values)
            span = Span(begin, phase.chunk)
            reduction.op.implementation.fold_tile(state, tensors, span, stats, reduction.attributes)
        output = None
        if phase.result is not None:
            result = _stored(phase.result, values)
            output = result, result.numel() - torch.isfinite(result).sum()
        return Left(output, [values[node.key] for node in phase.kept])

    def values(self, loads: Sequence[Tensor], known: Mapping[bytes, Any], begin: int) -> dict[bytes, Any]:
        """Compute the body; what nothing needs any more is dropped on the way."""
        phase = self.phase
        values = dict(known)
        for load, flat in zip(phase.loads, loads, strict=True):
            # Widened once, not by every op that uses it.
            values[load.key] = _shaped(flat, load, phase).to(TORCH[load.spec.dtype.compute])
        for node, dead in self._steps:
            values[node.key] = _apply(node, values, begin)
            for key in dead:
                del values[key]
        return values


def interpreted(phase: Phase) -> PhaseFunction:
    """Return a function that runs `phase` on tiles with torch on the CPU."""
    interpreter = Interpreter(phase)

    def compute(tile: Tile) -> int:
        known: dict[bytes, Any] = dict(tile.job.values)
        rows = slice(tile.begin // phase.unit, (tile.begin + tile.count) // phase.unit)
        for node in phase.known_rows:
            known[node.key] = torch.from_numpy(tile.job.values[node.key][rows])
        loads = [
            torch.from_numpy(raw).view(TORCH[load.spec.dtype])
            for load, raw in zip(phase.loads, tile.inputs, strict=True)
        ]
        values = interpreter.values(loads, known, tile.begin)
        for node in phase.kept:
            tile.job.values[node.key][rows] = values[node.key].numpy()
        for reduction, state in zip(phase.reductions, tile.states, strict=True):
            _fold(reduction, values, state, phase.chunk, tile.begin)
        if phase.result is None or tile.output is None:
            return 0
        result = _stored(phase.result, values)
        np.copyto(tile.output, result.view(torch.uint8).numpy())
        return int((~torch.isfinite(result)).sum())

    return lambda _job, _arena: compute


def _shaped(flat: Tensor, load: Node, phase: Phase) -> Tensor:
    """Whole tensors are seen in their own shape, rows as ``[rows, columns]``; elementwise tiles stay flat."""
    if not phase.shaped:
        return flat
    return flat.reshape(load.spec.shape) if phase.whole else flat.reshape(-1, phase.unit)


def _apply(node: Node, values: dict[bytes, Any], begin: int) -> Tensor:
    compute = _compute(node)
    operands = [values[x.key] if x.is_stat or x.is_row else values[x.key].to(compute) for x in node.inputs]
    index = {"first": begin} if node.op.indexed or node.op.by_column else {}
    result: Tensor = node.op.implementation(*operands, **node.attributes, **index)
    return result


def _compute(node: Node) -> torch.dtype:
    """The dtype a node computes in: the widest of its tensors' compute dtypes."""
    wide = any(x.spec.dtype is DType.F64 for x in node.inputs if not (x.is_stat or x.is_row))
    return torch.float64 if wide else torch.float32


def _operands(reduction: Node, values: dict[bytes, Any]) -> tuple[list[Tensor], list[Array]]:
    compute = _compute(reduction)
    tensors = [values[x.key].to(compute).reshape(-1) for x in reduction.inputs if not x.is_stat]
    return tensors, [values[x.key] for x in reduction.inputs if x.is_stat]


def _fold(reduction: Node, values: dict[bytes, Any], state: Array, chunk: int, first: int) -> None:
    """Add a tile to its rows of state as generated code does, chunk by chunk."""
    kernel = reduction.op.implementation
    tensors, stats = _operands(reduction, values)
    shared = kernel.chunks(reduction.attributes)
    for i, begin in enumerate(range(0, tensors[0].numel(), chunk)):
        part = [x[begin : begin + chunk] for x in tensors]
        # A tile never covers two rows that several chunks share.
        row = state[i if kernel.per_chunk and shared == 1 else 0]
        kernel.fold_tensors(row, part, first + begin, stats, reduction.attributes)


def _stored(node: Node, values: dict[bytes, Any]) -> Tensor:
    """The result, flat, in the dtype it is written in."""
    result: Tensor = values[node.key].to(TORCH[node.spec.dtype]).reshape(-1)
    return result.contiguous()
