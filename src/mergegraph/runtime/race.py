"""A trial of a few MB: whether this machine's GPUs or its processor would merge quicker.

Both do the same work as in a run, with all their workers: two tensors are measured, then added up. Reading
and writing are copies in memory, as for files in the page cache. So transfers, calls and waiting count.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from time import perf_counter

import numpy as np

from mergegraph import ops
from mergegraph.graph.graph import Graph, Output, Piece, SourceTensor
from mergegraph.runtime.executor import phase_functions
from mergegraph.runtime.lane import device_workers
from mergegraph.runtime.progress import Progress
from mergegraph.runtime.streams import Cuda, Device
from mergegraph.runtime.workers import Failure, Pool, Worker
from mergegraph.schedule.memory import TILE
from mergegraph.schedule.program import Program
from mergegraph.schedule.tiling import programs
from mergegraph.schedule.vram import WORKERS_PER_GPU, staging
from mergegraph.tensorspec import DType, TensorSpec

_ELEMENTS = 1 << 20
_OUTPUTS = 16


@cache
def race(devices: tuple[str, ...], threads: int) -> tuple[float, float]:
    """Bytes per second that `devices` and `threads` threads of the processor get through; measured once."""
    count = min(threads, WORKERS_PER_GPU * len(devices))
    there = [Cuda(devices[i % len(devices)]) for i in range(count)]
    return device_rate(there), processor_rate(threads)


def device_rate(devices: Sequence[Device]) -> float:
    """Bytes per second through one worker for each of `devices`."""
    todo, memory = trial_programs(), _Memory()
    return _rate(device_workers(devices, todo, staging(todo, _ELEMENTS), memory, memory), todo, _ELEMENTS)


def processor_rate(threads: int) -> float:
    """Bytes per second through so many threads."""
    todo, memory = trial_programs(), _Memory()
    functions = phase_functions(todo)
    return _rate([Worker(memory, memory, functions) for _ in range(threads)], todo, TILE)


def trial_programs() -> list[Program]:
    """Some outputs, each two tensors on the arc between them."""
    spec = TensorSpec((_ELEMENTS,), DType.BF16)
    a, b = ops.load(0, spec), ops.load(1, spec)
    result = ops.cast(ops.weighted_sum(a, b, ops.slerp(ops.gram(a, b), 0.5)), dtype="BF16")
    piece = Piece(result, (SourceTensor("trial", "a"), SourceTensor("trial", "b")), ())
    return programs(Graph({f"{i}": Output(spec, (piece,)) for i in range(_OUTPUTS)}))


def _rate(workers: Sequence[Worker], todo: Sequence[Program], tile: int) -> float:
    with Pool(workers) as pool:
        _once(pool, todo, tile)  # compiles, allocates, wakes the device up
        started = perf_counter()
        _once(pool, todo, tile)
        seconds = perf_counter() - started
    return sum(program.work_bytes for program in todo) / max(seconds, 1e-9)


def _once(pool: Pool, todo: Sequence[Program], tile: int) -> None:
    for program in todo:
        pool.inbox.put((Progress(program, tile),))
    for _ in todo:
        outcome = pool.outbox.get()
        if isinstance(outcome, Failure):
            raise outcome.error


class _Memory:
    """Stands for all files: gives the same numbers for every tensor, and forgets what is written."""

    def __init__(self) -> None:
        numbers = np.random.default_rng(0).standard_normal(_ELEMENTS, np.float32)
        self._data = (numbers.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        self._sink = np.empty_like(self._data)

    def read_into(self, source: str, tensor: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`."""
        np.frombuffer(buffer, np.uint8)[:] = self._data[offset : offset + buffer.nbytes]

    def write(self, tensor: str, offset: int, buffer: memoryview) -> None:
        """Take `buffer`."""
        self._sink[offset : offset + buffer.nbytes] = np.frombuffer(buffer, np.uint8)
