"""Running a phase op by op with torch: on a GPU, and for ops that say nothing about one element."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergegraph.graph.node import Locality, Node
from mergegraph.kernels.reduction import Array
from mergegraph.runtime.tiles import Arena, PhaseFunction, Tile
from mergegraph.schedule.tiling import Phase
from mergegraph.tensorspec import DType

_TORCH = {
    DType.BF16: torch.bfloat16,
    DType.F16: torch.float16,
    DType.F32: torch.float32,
    DType.F64: torch.float64,
}


def interpreted(phase: Phase, device: str) -> PhaseFunction:
    """Return a function that runs `phase` on tiles with torch on `device`."""

    def function(tile: Tile, _: Arena) -> int:
        values: dict[bytes, Any] = dict(tile.job.values)
        rows = slice(tile.begin // phase.unit, (tile.begin + tile.count) // phase.unit)
        for node in phase.known_rows:
            values[node.key] = torch.from_numpy(tile.job.values[node.key][rows]).to(device)
        for load, raw in zip(phase.loads, tile.inputs, strict=True):
            values[load.key] = _shaped(torch.from_numpy(raw).view(_TORCH[load.spec.dtype]), load, phase).to(
                device
            )
        for node in phase.body:
            values[node.key] = _apply(node, values, tile)
        for node in phase.kept:
            tile.job.values[node.key][rows] = values[node.key].cpu().numpy()
        for reduction, state in zip(phase.reductions, tile.states, strict=True):
            _fold(reduction, values, state, phase.chunk, tile.begin)
        return _store(phase, values, tile)

    return function


def _shaped(flat: Tensor, load: Node, phase: Phase) -> Tensor:
    """Whole tensors are seen in their own shape, rows as ``[rows, columns]``; elementwise tiles stay flat."""
    if not phase.shaped:
        return flat
    whole = any(n.op.locality is Locality.WHOLE for n in phase.body)
    return flat.reshape(load.spec.shape) if whole else flat.reshape(-1, phase.unit)


def _apply(node: Node, values: dict[bytes, Any], tile: Tile) -> Tensor:
    wide = any(x.spec.dtype is DType.F64 for x in node.inputs if not (x.is_stat or x.is_row))
    compute = torch.float64 if wide else torch.float32
    operands = [values[x.key] if x.is_stat or x.is_row else values[x.key].to(compute) for x in node.inputs]
    index = {"first": tile.begin} if node.op.indexed else {}
    index |= {"first": tile.begin} if node.op.by_column else {}
    result: Tensor = node.op.implementation(*operands, **node.attributes, **index)
    return result


def _fold(reduction: Node, values: dict[bytes, Any], state: Array, chunk: int, first: int) -> None:
    kernel = reduction.op.implementation
    wide = any(x.spec.dtype is DType.F64 for x in reduction.inputs if not x.is_stat)
    compute = torch.float64 if wide else torch.float32
    tensors = [values[x.key].to(compute).reshape(-1) for x in reduction.inputs if not x.is_stat]
    stats = [values[x.key] for x in reduction.inputs if x.is_stat]
    shared = kernel.chunks(reduction.attributes)
    for i, begin in enumerate(range(0, tensors[0].numel(), chunk)):
        part = [x[begin : begin + chunk] for x in tensors]
        # A tile never covers two rows that several chunks share.
        row = state[i if kernel.per_chunk and shared == 1 else 0]
        kernel.fold_tensors(row, part, first + begin, stats, reduction.attributes)


def _store(phase: Phase, values: dict[bytes, Any], tile: Tile) -> int:
    if phase.result is None or tile.output is None:
        return 0
    dtype = _TORCH[phase.result.spec.dtype]
    result: Tensor = values[phase.result.key].to(dtype).reshape(-1)
    np.copyto(tile.output, result.cpu().contiguous().view(torch.uint8).numpy())
    return int((~torch.isfinite(result)).sum())
