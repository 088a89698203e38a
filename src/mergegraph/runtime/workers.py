"""Worker threads: take a job, read tiles, compute, write tiles, hand back a result.

A worker owns its buffers and touches nothing shared but the reader, the writer and two queues. Only
the coordinator (`mergegraph.runtime.executor`) owns state.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from queue import SimpleQueue
from threading import Thread
from time import perf_counter
from typing import Any, Protocol, TypeVar

import numpy as np

from mergegraph.kernels.native import Argument, Native
from mergegraph.kernels.reduction import Array
from mergegraph.runtime.codecache import load_code
from mergegraph.runtime.progress import Job, JobResult, Progress, Tally
from mergegraph.runtime.tiles import STORAGE, Arena, PhaseFunction, Tile, stored_value
from mergegraph.schedule.memory import HELD, arity, state_rows
from mergegraph.schedule.program import Program
from mergegraph.storage.strided import read_view, write_view

AnyArray = TypeVar("AnyArray", bound=Any)

Batch = tuple[Progress, ...]
"""Small programs that a worker drives from start to end by itself."""


@dataclass(slots=True)
class Failure:
    """A job that raised; the coordinator re-raises it."""

    error: BaseException


Work = Job | Batch
Outcome = JobResult | Batch | Failure


SAMPLED = (2048, 32768)
"""Elements of one piece of a sample, of small and of large tensors: fewer would cost more calls."""
PIECES = 16
"""So many pieces have to be spread over a tensor, if they are not too small for that."""


_CHECKSUM = """\
from mergegraph.kernels.fused import checksum_words
def run(words, first):
    return checksum_words(words, first)
"""


Loading = Callable[[int, Array], None]
"""(first element, buffer): fills the buffer with stored elements."""


class Reads(Protocol):
    """Where tensor bytes come from: the input files."""

    def read_into(self, source: str, tensor: str, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` with the bytes of a tensor from `offset` on."""


class Writes(Protocol):
    """Where tensor bytes go: the output files, or memory."""

    def write(self, tensor: str, offset: int, buffer: memoryview) -> None:
        """Store `buffer` at byte `offset` of a tensor."""


class Runs(Protocol):
    """Executes jobs on a device: see `mergegraph.runtime.lane.Lane`."""

    def run(self, more: Callable[[], Job | None]) -> Iterator[JobResult]:
        """Execute the jobs that `more` gives, until it gives none and all are done."""


class Worker:
    """Executes jobs with its own buffers.

    Args:
        reader: gives inputs.
        writer: takes outputs.
        functions: computes the tiles of each phase, by its identity.
        lane: computes what is not just copied, in the place of `functions`.
    """

    def __init__(
        self,
        reader: Reads,
        writer: Writes,
        functions: Mapping[int, PhaseFunction],
        lane: Runs | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._functions = functions
        self._lane = lane
        self._arena = Arena()
        self._held_for: Program | None = None
        self._held: dict[int, Array] = {}

    def work(self, inbox: SimpleQueue[Work | None], outbox: SimpleQueue[Outcome]) -> None:
        """Serve `inbox` until it yields None."""
        while (item := inbox.get()) is not None:
            try:
                outbox.put(self.execute(item) if isinstance(item, Job) else self._drive(item))
            except BaseException as error:
                outbox.put(Failure(error))

    def _drive(self, batch: Batch) -> Batch:
        """Run programs from start to end, each before the next one where only one tile is under way."""
        by_program = {id(progress.program): progress for progress in batch}
        waiting, ready = iter(batch), deque[Job]()

        def more() -> Job | None:
            while not ready and (progress := next(waiting, None)) is not None:
                ready.extend(progress.start())
                _forget(progress)
            return ready.popleft() if ready else None

        for result in self._results(more):
            progress = by_program[id(result.job.program)]
            ready.extend(progress.absorb(result))
            _forget(progress)
        return batch

    def _results(self, more: Callable[[], Job | None]) -> Iterator[JobResult]:
        if self._lane is not None:
            yield from self._lane.run(more)
            return
        while (job := more()) is not None:
            yield self._execute(job)

    def execute(self, job: Job) -> JobResult:
        """Run one job."""
        jobs = iter([job])
        (result,) = self._results(lambda: next(jobs, None))
        return result

    def _execute(self, job: Job) -> JobResult:
        """Run one job tile by tile on this processor."""
        compute = self._functions[id(job.phase)](job, self._arena)
        loads = [loading(self._reader, job, i) for i in range(len(job.phase.loads))]
        states = _job_states(job)
        tally = Tally()
        for begin, count in tiles(job):
            started = perf_counter()
            inputs = [self._read(job, i, load, begin, count) for i, load in enumerate(loads)]
            read = perf_counter()
            output = self._output(job, count)
            tile = Tile(job, begin, count, inputs, output, tile_states(job, states, begin, count))
            tally.nonfinite += compute(tile)
            if tile.output is not None:
                tally.checksum = (tally.checksum + tile_checksum(job, begin, tile.output)) % 2**64
            computed = perf_counter()
            if tile.output is not None:
                write_tile(self._writer, job, begin, tile.output)
                tally.written += tile.output.nbytes
            tally.read += sum(x.nbytes for x in inputs)
            tally.read_seconds += read - started
            tally.compute_seconds += computed - read
            tally.write_seconds += perf_counter() - computed
        return JobResult(job, tally, states)

    def _read(self, job: Job, i: int, load: Loading, begin: int, count: int) -> Array:
        node = job.phase.loads[i]
        size = count * node.spec.dtype.bits // 8
        if not (begin == 0 and count == job.program.whole <= HELD):
            buffer = self._arena.bytes(f"load{i}", size)
            load(begin, buffer)
            return buffer
        if self._held_for is not job.program:
            self._held_for, self._held = job.program, {}
        slot: int = node.attributes["slot"]
        if slot not in self._held:
            self._held[slot] = self._arena.bytes(f"slot{slot}", size)
            load(begin, self._held[slot])
        return self._held[slot]

    def _output(self, job: Job, count: int) -> Array | None:
        if job.phase.result is None or job.program.raw:
            return None
        return self._arena.bytes("output", count * job.program.spec.dtype.bits // 8)


def _forget(progress: Progress) -> None:
    """Histograms are half a megabyte each, and many finished programs may wait for the coordinator."""
    if progress.done:
        progress.values = {}


def loading(reader: Reads, job: Job, i: int) -> Loading:
    """How the tiles of load `i` of a job are read."""
    load = job.phase.loads[i]
    dtype, size = load.spec.dtype, load.spec.dtype.bits // 8
    source = job.program.source(load)
    view, value = source.view, source.filled
    if value is not None:
        return lambda _, buffer: buffer.view(STORAGE[dtype]).fill(stored_value(value, dtype))
    if view is None or view.contiguous:
        before = 0 if view is None else view.offset
        read, checkpoint, tensor = reader.read_into, source.checkpoint, source.tensor
        return lambda begin, buffer: read(checkpoint, tensor, (before + begin) * size, buffer.data)
    return lambda begin, buffer: read_view(view, size, begin, buffer, partial(reader.read_into, *source.name))


def write_tile(writer: Writes, job: Job, begin: int, output: Array) -> None:
    """Store the elements of the output from element `begin` on."""
    program, bits = job.program, job.program.spec.dtype.bits
    if program.place is None:
        offset = program.offset + (begin - program.first) * bits // 8
        writer.write(program.tensor, offset, output.data)
    else:
        write = partial(writer.write, program.tensor)
        write_view(program.place, bits // 8, begin - program.first, output, write)


def tile_checksum(job: Job, begin: int, output: Array) -> int:
    """The share of a tile in the checksum of its piece."""
    return checksum(output, (begin - job.program.first) * job.program.spec.dtype.bits // 8)


def checksum(data: Array, offset: int) -> int:
    """The share of bytes `data`, at byte `offset` (a multiple of 8) of a piece, in its checksum."""
    checksum_words = _checksum_words()
    whole = data.nbytes // 8 * 8
    total = checksum_words(data[:whole].view(np.uint64), offset // 8) if whole else 0
    if whole < data.nbytes:
        tail = np.zeros(8, dtype=np.uint8)
        tail[: data.nbytes - whole] = data[whole:]
        total += checksum_words(tail.view(np.uint64), (offset + whole) // 8)
    return total % 2**64


@cache
def _checksum_words() -> Native:
    return load_code(_CHECKSUM, (Argument("uint64", 1), Argument()))


def tiles(job: Job) -> Iterator[tuple[int, int]]:
    """First element and count of each tile; where long rows of state are shared, none covers two.

    A sample is taken in pieces that are spread over the tensor.
    """
    if job.phase.sample > 1:
        least, most = SAMPLED
        wanted = min(most, max(least, job.program.whole // (job.phase.sample * PIECES)))
        piece = -(-wanted // job.phase.unit) * job.phase.unit
        for begin in range(job.begin, job.end, piece * job.phase.sample):
            yield begin, min(piece, job.end - begin)
        return
    stretch = job.phase.stretch if job.phase.stretch > job.phase.chunk else job.end
    begin = job.begin
    while begin < job.end:
        count = min(job.tile, job.end - begin, stretch - begin % stretch)
        yield begin, count
        begin += count


def _job_states(job: Job) -> list[Array]:
    states = []
    for reduction in job.phase.reductions:
        rows = state_rows(reduction, job.phase, job.end - job.begin)
        states.append(reduction.op.implementation.empty(arity(reduction), reduction.attributes, rows))
    return states


def tile_states(job: Job, states: Sequence[AnyArray], begin: int, count: int) -> list[AnyArray]:
    """The rows of each state that a tile adds to."""
    found = []
    for reduction, state in zip(job.phase.reductions, states, strict=True):
        kernel = reduction.op.implementation
        size = job.phase.chunk * kernel.chunks(reduction.attributes)
        first = (begin - job.begin) // size
        found.append(state[first : first + math.ceil(count / size)] if kernel.per_chunk else state)
    return found


class Pool:
    """Threads that run workers over two queues. A context manager: leaving it joins them all."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.inbox: SimpleQueue[Work | None] = SimpleQueue()
        self.outbox: SimpleQueue[Outcome] = SimpleQueue()
        self._threads = [
            Thread(target=worker.work, args=(self.inbox, self.outbox), name=f"mergegraph-{i}", daemon=True)
            for i, worker in enumerate(workers)
        ]

    def __enter__(self) -> Pool:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Join all threads; after that no worker uses a file any more."""
        # A stop mark behind at most a few queued jobs.
        for _thread in self._threads:
            self.inbox.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
