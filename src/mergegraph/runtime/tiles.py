"""Running one phase on one tile: as generated code, as torch calls, or as a plain copy.

A `TileRunner` owns the buffers of one worker and reuses them for every tile it ever runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mergegraph.errors import TensorValueError
from mergegraph.graph.node import Node
from mergegraph.kernels.native import Argument, Call, Native
from mergegraph.kernels.reduction import BLOCK, Array
from mergegraph.runtime.progress import Job
from mergegraph.schedule.memory import arity
from mergegraph.schedule.program import Phase
from mergegraph.tensorspec import DType

STORAGE = {DType.BF16: np.uint16, DType.F16: np.uint16, DType.F32: np.float32, DType.F64: np.float64}
"""How tiles of each arithmetic dtype lie in memory."""


def stored_value(value: float, dtype: DType) -> Any:
    """How one element is stored; exact for values that `dtype` holds exactly."""
    if dtype is DType.BF16:
        return np.float32(value).view(np.uint32) >> 16
    if dtype is DType.F16:
        return np.float16(value).view(np.uint16)
    return value


class Arena:
    """What a worker reuses: calls by phase, and named buffers that grow to the largest size asked for."""

    def __init__(self) -> None:
        self._buffers: dict[str, Array] = {}
        self.calls: dict[int, Call] = {}

    def bytes(self, name: str, size: int) -> Array:
        """A uint8 view of `size` bytes of buffer `name`; earlier contents may still be there."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < size:
            self.calls.clear()  # they would keep the smaller one alive, which nobody has counted
            buffer = self._buffers[name] = np.empty(max(size, 1), dtype=np.uint8)
        return buffer[:size]


@dataclass(slots=True)
class Tile:
    """One tile under way: its stored inputs (raw bytes, one per load) and where the output goes."""

    job: Job
    begin: int
    count: int
    inputs: list[Array]
    output: Array | None
    states: list[Array]


TileFunction = Callable[[Tile], int]
"""Compute a tile: fill its output or add to its states; return the count of non-finite outputs."""
PhaseFunction = Callable[[Job, Arena], TileFunction]
"""Prepare a job, whose tiles are then computed one by one."""


def copied(_: Job, __: Arena) -> TileFunction:
    """The function of jobs that only copy."""
    return _copy


def _copy(tile: Tile) -> int:
    """Pass the bytes of the first input on, after comparing the others with it.

    Raises:
        TensorValueError: inputs that must be identical are not.
    """
    for other in tile.inputs[1:]:
        if not np.array_equal(tile.inputs[0], other):
            name = tile.job.program.tensor
            raise TensorValueError(
                name,
                f"the inputs hold different values, and {tile.job.program.spec.dtype.torch_name} "
                "tensors cannot be merged arithmetically",
                hint="make them equal, or take this tensor from one model only",
            )
    tile.output = tile.inputs[0]
    return 0


class Generated:
    """The compiled function of a phase, as a `PhaseFunction`; see `mergegraph.runtime.tilecode.tile_source`.

    Each worker has a call of its own, in which only what differs from tile to tile is changed.

    Args:
        phase: what was compiled.
        run: the result.
    """

    def __init__(self, phase: Phase, run: Native) -> None:
        self._phase, self._run = phase, run
        self._inputs = [STORAGE[load.spec.dtype] for load in phase.loads]
        self._result = None if phase.result is None else STORAGE[phase.result.spec.dtype]
        stats = [stat.key for stat in phase.stats]
        kept = [node.key for node in (*phase.kept, *phase.marks, *phase.marked)]
        self._known = list(enumerate(stats + kept, start=5 + len(self._inputs)))
        rows = {*kept, *(stat.key for stat in phase.stats if stat.is_row)}
        self._by_row = [(place, key) for place, key in self._known if key in rows]
        self._first_state = 5 + len(self._inputs) + len(self._known) + 2 * len(phase.rows)
        self._output = self._first_state + 2 * len(phase.reductions)

    def __call__(self, job: Job, arena: Arena) -> TileFunction:
        """Put what is known of a job into its places."""
        call = arena.calls.get(id(self))
        if call is None:
            call = arena.calls[id(self)] = self._new_call(arena)
        for place, key in self._known:
            call.set(place, job.values[key])
        return partial(self._compute, call)

    def _compute(self, call: Call, tile: Tile) -> int:
        call.set(0, tile.count)
        call.set(1, tile.begin)
        call.set(2, tile.begin)
        for i, dtype in enumerate(self._inputs):
            call.set(5 + i, tile.inputs[i].view(dtype))
        row = tile.begin // max(self._phase.columns, 1)
        for place, key in self._by_row:
            call.set(place, tile.job.values[key][row:])
        for i, state in enumerate(tile.states):
            call.set(self._first_state + 2 * i, state)
        if tile.output is not None:
            call.set(self._output, tile.output.view(self._result))
        return call()

    def _new_call(self, arena: Arena) -> Call:
        phase = self._phase
        args: list[Any] = [None, None, None, phase.columns, phase.chunk]
        args += [None] * (len(self._inputs) + len(self._known))
        for i, node in enumerate(phase.rows):
            args.append(_block(arena, f"row{i}", arity(node), phase.columns, row_dtype(node)))
            args.append(_row_result(arena, i, node, phase.columns))
        width = max(BLOCK, phase.columns) if phase.by_rows else BLOCK
        for i, reduction in enumerate(phase.reductions):
            dtype = STORAGE[block_dtype(reduction)]
            args += [None, _block(arena, f"block{i}", arity(reduction), width, dtype)]
        return Call(self._run, args if phase.result is None else [*args, None])


def _block(arena: Arena, name: str, rows: int, columns: int, dtype: Any) -> Array:
    size = rows * columns * np.dtype(dtype).itemsize
    block: Array = arena.bytes(name, size).view(dtype).reshape(rows, columns)
    return block


def _row_result(arena: Arena, i: int, row: Node, columns: int) -> Array:
    """Where a ROWWISE op leaves its numbers for a row (float64), or its new row."""
    if row.is_row:
        return _block(arena, f"result{i}", 1, row.spec.shape[1], np.float64).reshape(-1)
    return _block(arena, f"result{i}", 1, columns, STORAGE[row.spec.dtype]).reshape(-1)


def row_dtype(row: Node) -> Any:
    """The dtype in which a ROWWISE op sees its operands."""
    return STORAGE[block_dtype(row)]


def arguments_of(phase: Phase) -> tuple[Argument, ...]:
    """What the compiled function of `phase` takes; see `mergegraph.runtime.tilecode.tile_source`."""
    args: list[Any] = []
    args += [np.empty(0, STORAGE[load.spec.dtype]) for load in phase.loads]
    args += [
        np.zeros([max(1, x) for x in s.spec.shape], np.int64 if s.spec.dtype is DType.I64 else np.float64)
        for s in phase.stats
    ]
    args += [np.zeros((1, n.spec.shape[1])) for n in phase.kept]
    args += [np.zeros((1, 1), np.uint8) for _ in (*phase.marks, *phase.marked)]
    arena = Arena()
    for i, row in enumerate(phase.rows):
        args += [_block(arena, f"row{i}", arity(row), 1, row_dtype(row)), _row_result(arena, i, row, 1)]
    for r in phase.reductions:
        state = r.op.implementation.empty(arity(r), r.attributes, 1)
        args += [state, np.empty((arity(r), BLOCK), STORAGE[block_dtype(r)])]
    if phase.result is not None:
        args.append(np.empty(0, STORAGE[phase.result.spec.dtype]))
    return (*[Argument()] * 5, *(Argument(x.dtype.name, x.ndim) for x in args))


def block_dtype(reduction: Node) -> DType:
    """The dtype in which a REDUCE or ROWWISE node sees its operands: the widest of their compute dtypes."""
    wide = any(x.spec.dtype is DType.F64 for x in reduction.inputs if not x.is_stat)
    return DType.F64 if wide else DType.F32
