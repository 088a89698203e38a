"""The loop of a GPU worker: while one tile is computed, the next is read and the last one written.

A few slots hold tiles on their way. Reading fills pinned memory; from there a copy, the kernels and the copy
back are put into three queues of the device, each behind a mark of the one before. The host comes back to a
tile when its slot is needed, and waits then at most. A job's states stay on the device until its last tile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from mergegraph.kernels.reduction import Array
from mergegraph.runtime.interpret import TORCH, Interpreter, Left
from mergegraph.runtime.progress import Job, JobResult, Tally
from mergegraph.runtime.streams import Device
from mergegraph.runtime.tiles import copied
from mergegraph.runtime.workers import (
    Reads,
    Worker,
    Writes,
    loading,
    tile_checksum,
    tile_states,
    tiles,
    write_tile,
)
from mergegraph.schedule.memory import arity, state_rows
from mergegraph.schedule.program import Program
from mergegraph.schedule.vram import (
    ALIGNMENT,
    SLOTS,
    Staging,
    aligned,
    input_sizes,
    output_sizes,
    tables,
)


@dataclass(slots=True)
class _Slot:
    """Buffers of one tile on its way: pinned, on the device, and pinned for what comes back."""

    host: Tensor
    there: Tensor
    back: Tensor


@dataclass(slots=True)
class _Run:
    """A job under way."""

    job: Job
    states: list[Tensor]
    tally: Tally = field(default_factory=Tally)


@dataclass(frozen=True, slots=True)
class _Step:
    """One tile of a job: usually one run of elements, of a sample several."""

    run: _Run
    pieces: tuple[tuple[int, int], ...]
    last: bool

    @property
    def begin(self) -> int:
        """Number of the first element."""
        return self.pieces[0][0]

    @property
    def count(self) -> int:
        """Elements in all."""
        return sum(count for _, count in self.pieces)


@dataclass(slots=True)
class _Flight:
    """A tile under way: what comes back, in `back`, is there when `landed` is reached.

    Attributes:
        held: what copies still read.
    """

    step: _Step
    back: list[Tensor]
    landed: Any
    held: Any


class Lane:
    """Executes the jobs of one worker on its device.

    Args:
        device: where to compute.
        phases: what to compute, by the identity of the phase.
        staging: sizes of a slot.
        reader: gives inputs.
        writer: takes outputs.
        copy: executes a job that needs no arithmetic, on the host.
    """

    def __init__(
        self,
        device: Device,
        phases: Mapping[int, Interpreter],
        staging: Staging,
        reader: Reads,
        writer: Writes,
        copy: Callable[[Job], JobResult],
    ) -> None:
        self._device = device
        self._phases = phases
        self._reader = reader
        self._writer = writer
        self._copy = copy
        self._slots = [
            _Slot(device.host(staging.inputs), device.memory(staging.inputs), device.host(staging.outputs))
            for _ in range(SLOTS)
        ]

    def run(self, more: Callable[[], Job | None]) -> Iterator[JobResult]:
        """Execute the jobs that `more` gives, until it gives none and all are done.

        Tiles end in the order in which they began, so results come in the order of jobs, but for copies.
        """
        flying: deque[_Flight] = deque()
        steps: Iterator[_Step] = iter(())
        turn = 0
        try:
            while True:
                step = next(steps, None) if len(flying) < SLOTS else None
                if step is not None:
                    flying.append(self._launch(step, self._slots[turn % SLOTS]))
                    turn += 1
                elif len(flying) < SLOTS and (job := more()) is not None:
                    if job.program.raw:
                        yield self._copy(job)
                    else:
                        steps = self._steps(job)
                elif flying:
                    flight = flying.popleft()
                    self._land(flight)
                    if flight.step.last:
                        yield self._result(flight)
                else:
                    return
        finally:
            if flying:  # something failed: nobody may touch the slots while they are read and written
                self._device.synchronise()

    def _steps(self, job: Job) -> Iterator[_Step]:
        with self._device.on("kernels"):
            states = [
                torch.zeros(shape, dtype=dtype, device=self._device.device) for shape, dtype in _states(job)
            ]
        run, found = _Run(job, states), list(_together(job))
        return (_Step(run, pieces, i == len(found)) for i, pieces in enumerate(found, start=1))

    def _launch(self, step: _Step, slot: _Slot) -> _Flight:
        """Read a tile, and put all that happens to it on the device into queues."""
        started, run, phase = perf_counter(), step.run, step.run.job.phase
        sizes = input_sizes(phase, step.count)
        host, there, size = _parts(slot.host, sizes), _parts(slot.there, sizes), aligned(sizes)
        for i in range(len(phase.loads)):
            self._read(step, i, host[i].numpy())
            run.tally.read += sizes[i]
        read = perf_counter()
        known = self._known(step, host, there)
        with self._device.on("in"):
            self._device.copy(slot.there[:size], slot.host[:size])
        with self._device.on("kernels", self._device.mark("in")):
            loads = [x.view(TORCH[load.spec.dtype]) for x, load in zip(there, phase.loads, strict=False)]
            states = tile_states(run.job, run.states, step.begin, step.count)
            left = self._phases[id(phase)].run(loads, known, step.begin, states)
        back = self._send(step, left, slot)
        landed = self._device.mark("out")
        run.tally.read_seconds += read - started
        run.tally.compute_seconds += perf_counter() - read
        return _Flight(step, back, landed, (left, run.states))

    def _read(self, step: _Step, i: int, buffer: Array) -> None:
        load = loading(self._reader, step.run.job, i)
        size = buffer.nbytes // step.count
        at = 0
        for begin, count in step.pieces:
            load(begin, buffer[at : at + count * size])
            at += count * size

    def _known(self, step: _Step, host: Sequence[Tensor], there: Sequence[Tensor]) -> dict[bytes, Any]:
        """The statistics, those that kernels index as tensors beside the loads of a tile."""
        job = step.run.job
        known: dict[bytes, Any] = dict(job.values)
        for i, node in enumerate(tables(job.phase), start=len(job.phase.loads)):
            value = job.values[node.key]
            part = value[_rows(step)] if node.is_row else value
            host[i].view(torch.float64).numpy()[:] = part.reshape(-1)
            known[node.key] = there[i].view(torch.float64).reshape(part.shape)
        return known

    def _send(self, step: _Step, left: Left, slot: _Slot) -> list[Tensor]:
        """Copy back what a tile leaves; return where it will be, each part in its own dtype and shape."""
        job, states = step.run.job, step.run.states if step.last else []
        sizes = output_sizes(job.phase, job.program.spec.dtype.bits, step.count)
        found = [*(left.output or ()), *left.kept, *states]
        parts = _parts(slot.back, [*sizes, *(x.nbytes for x in states)])
        back = [p.view(x.dtype).reshape(x.shape) for p, x in zip(parts, found, strict=True)]
        with self._device.on("out", self._device.mark("kernels")):
            for target, source in zip(back, found, strict=True):
                self._device.copy(target, source)
        return back

    def _land(self, flight: _Flight) -> None:
        """Wait for a tile, and take what came back."""
        started, step = perf_counter(), flight.step
        job, tally, parts = step.run.job, step.run.tally, iter(flight.back)
        self._device.wait(flight.landed)
        output: Array | None = None
        if job.phase.result is not None:
            output = next(parts).view(torch.uint8).numpy()
            tally.nonfinite += int(next(parts))
            tally.checksum = (tally.checksum + tile_checksum(job, step.begin, output)) % 2**64
        for node, part in zip(job.phase.kept, parts, strict=False):
            job.values[node.key][_rows(step)] = part.numpy()
        computed = perf_counter()
        if output is not None:
            write_tile(self._writer, job, step.begin, output)
            tally.written += output.nbytes
        tally.compute_seconds += computed - started
        tally.write_seconds += perf_counter() - computed

    def _result(self, flight: _Flight) -> JobResult:
        """The outcome of a job whose last tile has landed."""
        run = flight.step.run
        back = flight.back[len(flight.back) - len(run.states) :]
        return JobResult(run.job, run.tally, [x.numpy().copy() for x in back])


def device_workers(
    devices: Sequence[Device],
    programs: Sequence[Program],
    staging: Staging,
    reader: Reads,
    writer: Writes,
) -> list[Worker]:
    """One worker for each of `devices`, in which one may stand several times; copies stay on the host."""
    copies = {id(phase): copied for program in programs if program.raw for phase in program.phases}
    distinct = {id(phase): phase for p in programs if not p.raw for phase in p.phases}
    phases = {key: Interpreter(phase) for key, phase in distinct.items()}
    hosts = [Worker(reader, writer, copies) for _ in devices]
    lanes = [
        Lane(device, phases, staging, reader, writer, host.execute)
        for device, host in zip(devices, hosts, strict=True)
    ]
    return [Worker(reader, writer, copies, lane) for lane in lanes]


def _together(job: Job) -> Iterator[tuple[tuple[int, int], ...]]:
    """The tiles of a job; the small ones of a sample together, where no op asks for an element's place."""
    placed = any(n.op.indexed or n.op.by_column for n in job.phase.body) or job.phase.known_rows
    room = 0 if placed or job.phase.sample == 1 else job.tile
    pieces: list[tuple[int, int]] = []
    for begin, count in tiles(job):
        if pieces and sum(n for _, n in pieces) + count > room:
            yield tuple(pieces)
            pieces = []
        pieces.append((begin, count))
    yield tuple(pieces)


def _rows(step: _Step) -> slice:
    """The rows of a tile."""
    unit = step.run.job.phase.unit
    return slice(step.begin // unit, (step.begin + step.count) // unit)


def _states(job: Job) -> Iterator[tuple[tuple[int, int], torch.dtype]]:
    """Shape and dtype of each reduction's state for a job."""
    for reduction in job.phase.reductions:
        length, name = reduction.op.implementation.state(arity(reduction), reduction.attributes)
        yield (state_rows(reduction, job.phase, job.end - job.begin), length), getattr(torch, name)


def _parts(buffer: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Consecutive parts of a buffer, each from a multiple of `ALIGNMENT` on."""
    parts, at = [], 0
    for size in sizes:
        parts.append(buffer[at : at + size])
        at += -(-size // ALIGNMENT) * ALIGNMENT
    return parts
