"""The coordinator: hands out jobs in schedule order, absorbs results, and alone owns state.

Large programs go out as ranges of tiles, so one big tensor keeps every worker busy; small ones go out
in batches that a worker drives by itself. At most `JOBS_PER_WORKER` pieces of work per worker are out
at any time, which is what the memory proof of `mergegraph.schedule.memory` counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from mergegraph.checkpoint.view import View, view_text
from mergegraph.kernels.reduction import Array
from mergegraph.runtime.codecache import load_code
from mergegraph.runtime.progress import Job, JobResult, Progress, Tally
from mergegraph.runtime.readahead import ReadAhead
from mergegraph.runtime.tilecode import tile_source
from mergegraph.runtime.tiles import Generated, PhaseFunction, arguments_of, copied
from mergegraph.runtime.workers import Batch, Failure, Outcome, Pool, Work, Worker, checksum
from mergegraph.schedule.memory import JOB_TILES, JOBS_PER_WORKER
from mergegraph.schedule.program import Phase, Program
from mergegraph.schedule.schedule import Schedule
from mergegraph.storage.blocks import PAGE
from mergegraph.storage.journal import Journal
from mergegraph.storage.reader import Reader
from mergegraph.storage.strided import Transfer, read_view
from mergegraph.storage.writer import OutputWriter

BATCH_PROGRAMS = 64
"""Most small programs in one batch."""


def piece_id(program: Program) -> str:
    """How the journal names a piece: its tensor and, beyond the first piece, its byte offset or its place."""
    if program.place is not None:
        return f"{program.tensor}\n{view_text(program.place)}"
    return f"{program.tensor}\n{program.offset}" if program.offset else program.tensor


@dataclass(slots=True)
class Outcomes:
    """What a run did: the sum of all work, and the checksum and non-finite count of every piece.

    `work_done` counts towards the schedule's `work_bytes`, whatever was read that was not expected.
    """

    tally: Tally = field(default_factory=Tally)
    work_done: int = 0
    checksums: dict[str, str] = field(default_factory=dict)
    nonfinite: dict[str, int] = field(default_factory=dict)
    resumed: int = 0


OnProgress = Callable[[Outcomes, Program], None]


def execute(
    schedule: Schedule,
    reader: Reader,
    writer: OutputWriter,
    journal: Journal,
    devices: tuple[str, ...],
    on_progress: OnProgress,
) -> Outcomes:
    """Run every program that the journal does not already hold, and journal each once the files hold it."""
    outcomes = Outcomes()
    todo = [p for p in schedule.programs if not _already_done(p, writer, journal, outcomes, on_progress)]
    workers = _workers(schedule, todo, reader, writer, devices)
    with ReadAhead(todo, reader) as ahead, Pool(workers) as pool:
        coordinator = _Coordinator(schedule, iter(todo), writer, journal, outcomes, on_progress, ahead)
        try:
            coordinator.run(pool, JOBS_PER_WORKER * len(workers))
            writer.flush()
            coordinator.record()
        except BaseException:
            # What workers had already finished is not done again by the run that continues this one.
            pool.stop()
            coordinator.drain(pool)
            writer.wait()
            coordinator.record()
            raise
    return outcomes


def _workers(
    schedule: Schedule, todo: list[Program], reader: Reader, writer: OutputWriter, devices: tuple[str, ...]
) -> list[Worker]:
    if schedule.staging is None:
        functions = phase_functions(todo)
        return [Worker(reader, writer, functions) for _ in range(schedule.workers)]
    from mergegraph.runtime.lane import device_workers  # loads torch
    from mergegraph.runtime.streams import Cuda

    found = [Cuda(devices[i % len(devices)]) for i in range(schedule.workers)]
    return device_workers(found, todo, schedule.staging, reader, writer)


def phase_functions(programs: list[Program]) -> dict[int, PhaseFunction]:
    """Compile every distinct phase, before any worker needs it. Equal structures share their code."""
    table: dict[int, PhaseFunction] = {}
    for program in programs:
        for phase in program.phases:
            if id(phase) not in table:
                table[id(phase)] = copied if program.raw else _function(phase)
    return table


def _function(phase: Phase) -> PhaseFunction:
    if phase.generated:
        return Generated(phase, load_code(tile_source(phase), arguments_of(phase)))
    from mergegraph.runtime.interpret import interpreted  # loads torch, which most runs do without

    return interpreted(phase)


class _Coordinator:
    def __init__(
        self,
        schedule: Schedule,
        programs: Iterator[Program],
        writer: OutputWriter,
        journal: Journal,
        outcomes: Outcomes,
        on_progress: OnProgress,
        ahead: ReadAhead,
    ) -> None:
        self._ahead = ahead
        self._tile = schedule.tile
        self._small = JOB_TILES * schedule.tile
        self._programs = programs
        self._held: Program | None = None
        self._ready: deque[Job] = deque()
        self._running: dict[int, Progress] = {}
        self._writer = writer
        self._journal = journal
        self._unrecorded: deque[tuple[int, str, str]] = deque()
        self._outcomes = outcomes
        self._on_progress = on_progress

    def run(self, pool: Pool, limit: int) -> None:
        """Keep up to `limit` pieces of work out until nothing is left; raise what a worker raised."""
        out = 0
        while True:
            while out < limit and (work := self._next()) is not None:
                pool.inbox.put(work)
                out += 1
            if out == 0:
                return
            self._absorb(pool.outbox.get())
            out -= 1

    def drain(self, pool: Pool) -> None:
        """Take in what stopped workers left, without handing out more."""
        while not pool.outbox.empty():
            outcome = pool.outbox.get()
            if not isinstance(outcome, Failure):
                self._absorb(outcome)

    def record(self) -> None:
        """Journal the pieces that the files hold by now; bytes still in this process could be lost."""
        found: dict[str, str] = {}
        while self._unrecorded and self._writer.settled(self._unrecorded[0][0]):
            _, piece, value = self._unrecorded.popleft()
            found[piece] = value
        if found:
            self._journal.record(found)

    def _next(self) -> Work | None:
        if self._ready:
            return self._job()
        batch = self._batch()
        if batch:
            self._ahead.reached(batch[0].program)
            return batch
        program = self._take()
        if program is None:
            return None
        progress = Progress(program, self._tile, _lead(program, self._writer))
        self._running[id(program)] = progress
        self._ready.extend(progress.start())
        return self._job()

    def _job(self) -> Job:
        job = self._ready.popleft()
        if job.phase is job.program.phases[0]:
            self._ahead.reached(job.program, job.begin / job.program.whole)
        return job

    def _batch(self) -> Batch:
        """The next run of small programs, up to one job's worth of elements."""
        batch: list[Progress] = []
        elements = 0
        while len(batch) < BATCH_PROGRAMS and (program := self._take()) is not None:
            if program.whole > self._small or elements + program.whole > self._small:
                self._held = program
                break
            elements += program.whole
            batch.append(Progress(program, self._tile))
        return tuple(batch)

    def _take(self) -> Program | None:
        program, self._held = self._held, None
        return program if program is not None else next(self._programs, None)

    def _absorb(self, outcome: Outcome) -> None:
        match outcome:
            case Failure(error):
                raise error
            case JobResult(job=job):
                progress = self._running[id(job.program)]
                before = progress.work_done
                # The next phase goes first: its sources are still in the page cache.
                self._ready.extendleft(reversed(progress.absorb(outcome)))
                self._count(outcome.tally, job.program, progress.work_done - before)
                if progress.done:
                    del self._running[id(job.program)]
                    self._finish(progress)
            case _:
                for progress in outcome:
                    self._count(progress.tally, progress.program, progress.work_done)
                    self._finish(progress)
        self.record()

    def _count(self, tally: Tally, program: Program, work: int) -> None:
        self._outcomes.tally.add(tally)
        self._outcomes.work_done += work
        self._on_progress(self._outcomes, program)

    def _finish(self, progress: Progress) -> None:
        program, tally = progress.program, progress.tally
        piece = piece_id(program)
        self._outcomes.checksums[piece] = f"{tally.checksum:016x}"
        if tally.nonfinite:
            known = self._outcomes.nonfinite.get(program.tensor, 0)
            self._outcomes.nonfinite[program.tensor] = known + tally.nonfinite
        self._unrecorded.append((self._writer.mark(), piece, f"{tally.checksum:016x}:{tally.nonfinite}"))


def _lead(program: Program, writer: OutputWriter) -> int:
    """Elements up to where whole pages of the output file begin, which can be written past its cache."""
    if program.place is not None:
        return 0
    size = -writer.position(program.tensor, program.offset) % PAGE
    # Checksums are of words of 8 bytes.
    return size * 8 // program.spec.dtype.bits if size % 8 == 0 else 0


def _already_done(
    program: Program, writer: OutputWriter, journal: Journal, outcomes: Outcomes, on_progress: OnProgress
) -> bool:
    """Whether an interrupted run finished `program`, and its bytes are still what it wrote."""
    piece = piece_id(program)
    recorded, _, nonfinite = journal.done.get(piece, "").partition(":")
    if not recorded or f"{piece_checksum(program, writer.read_back):016x}" != recorded:
        return False
    outcomes.checksums[piece] = recorded
    outcomes.resumed += 1
    if int(nonfinite):
        known = outcomes.nonfinite.get(program.tensor, 0)
        outcomes.nonfinite[program.tensor] = known + int(nonfinite)
    outcomes.tally.add(Tally(read=program.streamed_bytes, written=program.spec.nbytes))
    outcomes.work_done += program.work_bytes
    on_progress(outcomes, program)
    return True


ReadBack = Callable[[str, int, memoryview], None]


def piece_checksum(program: Program, read_back: ReadBack) -> int:
    """The checksum of a piece as it is on disk, read in bounded steps."""
    read = partial(read_back, program.tensor)
    if program.place is not None:
        return placed_checksum(program.place, program.spec.dtype.bits // 8, read)
    return stored_checksum(program.offset, program.spec.nbytes, read)


def stored_checksum(offset: int, size: int, read: Transfer) -> int:
    """The checksum of `size` stored bytes of a tensor from byte `offset` on."""
    return _summed(size, lambda begin, part: read(offset + begin, part.data))


def placed_checksum(place: View, size: int, read: Transfer) -> int:
    """The checksum of a piece whose elements, of `size` bytes, lie at `place` in a tensor."""
    return _summed(place.numel * size, lambda begin, part: read_view(place, size, begin // size, part, read))


def _summed(size: int, fill: Callable[[int, Array], None]) -> int:
    total, step = 0, 1 << 20
    buffer = np.empty(min(step, max(size, 1)), dtype=np.uint8)
    for begin in range(0, size, step):
        part = buffer[: min(step, size - begin)]
        fill(begin, part)
        total += checksum(part, begin)
    return total % 2**64
