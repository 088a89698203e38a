"""The state of one program while it runs: which phase, which values, what is still out.

A state machine without threads or files. The coordinator drives large programs job by job; a worker
drives a small one from start to end by itself, through the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from mergegraph.graph.node import Node
from mergegraph.kernels.reduction import Array
from mergegraph.schedule.memory import JOB_TILES, arity, job_elements, state_rows, tile_elements
from mergegraph.schedule.program import Phase, Program, marks_shape

_NOTHING = np.zeros(0, dtype=np.int64)
"""The value of a reduction that had nothing to find out."""


@dataclass(frozen=True, slots=True)
class Job:
    """A range of tiles of one phase of one program.

    `begin` and `end` count elements of the piece; `values` are the statistics known by now.
    """

    program: Program
    phase: Phase
    begin: int
    end: int
    tile: int
    values: dict[bytes, Array]


@dataclass(slots=True)
class Tally:
    """What some work cost and found; tallies add up."""

    read: int = 0
    written: int = 0
    checksum: int = 0
    nonfinite: int = 0
    read_seconds: float = 0.0
    compute_seconds: float = 0.0
    write_seconds: float = 0.0

    def add(self, other: Tally) -> None:
        """Accumulate `other`."""
        self.read += other.read
        self.written += other.written
        self.checksum = (self.checksum + other.checksum) % 2**64
        self.nonfinite += other.nonfinite
        self.read_seconds += other.read_seconds
        self.compute_seconds += other.compute_seconds
        self.write_seconds += other.write_seconds


@dataclass(slots=True)
class JobResult:
    """The outcome of one job: a tally, and one array of state rows per reduction of the phase."""

    job: Job
    tally: Tally
    states: list[Array]


@dataclass(slots=True)
class Progress:
    """One program under way. `pending` jobs of the current phase are not absorbed yet.

    `lead` elements are written by a job of their own: all others then begin where the output's place in its
    file suits them.
    """

    program: Program
    tile: int
    lead: int = 0
    level: int = 0
    pending: int = 0
    values: dict[bytes, Array] = field(default_factory=dict)
    states: list[Array] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)

    @property
    def done(self) -> bool:
        """Whether every phase is complete."""
        return self.level == len(self.program.phases)

    @property
    def work_done(self) -> int:
        """Bytes of the program's work that are behind it; passes that were not expected count for nothing."""
        total = self.program.work_bytes
        return total if self.done else min(total, self.tally.read + self.tally.written)

    def start(self) -> list[Job]:
        """Enter the first phase and return its jobs; an empty tensor may have none in any phase."""
        return self._enter()

    def absorb(self, result: JobResult) -> list[Job]:
        """Take in one result; return the jobs of the next phase if this one is now complete."""
        self.tally.add(result.tally)
        phase = result.job.phase
        if not self.states:
            self.states = result.states  # of an only job, or of none
        else:
            for reduction, state, part in zip(phase.reductions, self.states, result.states, strict=True):
                kernel = reduction.op.implementation
                if kernel.per_chunk:
                    first = result.job.begin // (phase.chunk * kernel.chunks(reduction.attributes))
                    state[first : first + len(part)] = part
                else:
                    state += part
        self.pending -= 1
        return self._leave() if self.pending == 0 else []

    def _enter(self) -> list[Job]:
        phase = self.program.phases[self.level]
        self.values |= phase.constants
        for node in phase.small:
            if node.key not in phase.constants:
                self.values[node.key] = self._evaluate(node)
        for node in phase.spent:
            del self.values[node.key]
        for node in phase.kept:
            self.values[node.key] = np.empty(node.spec.shape)  # every tile fills in its own rows
        for node in phase.marks:
            self.values[node.key] = np.zeros(marks_shape(node), np.uint8)
        if not self._needed(phase):
            self.values |= {r.key: _NOTHING for r in phase.reductions}
            self.level += 1
            return self._enter()
        numel = self.program.whole
        jobs = list(self._jobs(phase, numel))
        self.pending = len(jobs)
        # The state of an only job is that of the whole.
        self.states = [] if len(jobs) == 1 else [_state(r, numel, phase) for r in phase.reductions]
        return jobs or self._leave()

    def _needed(self, phase: Phase) -> bool:
        """Whether a phase gives anything that is not known yet."""
        if phase.result is not None or phase.kept or phase.marks:
            return True
        found = ([self.values[x.key] for x in r.inputs if x.is_stat] for r in phase.reductions)
        kernels = (r.op.implementation for r in phase.reductions)
        return any(kernel.needed(stats) for kernel, stats in zip(kernels, found, strict=True))

    def _evaluate(self, node: Node) -> Array:
        """Compute a SMALL node from known statistics; streams are the program's own."""
        if node.op.name == "stream":
            return np.array(self.program.streams[node.attributes["slot"]])
        known = [self.values[x.key] for x in node.inputs]
        value: Array = node.op.implementation(*known, **node.attributes)
        return value

    def _leave(self) -> list[Job]:
        phase = self.program.phases[self.level]
        for reduction, state in zip(phase.reductions, self.states, strict=True):
            kernel = reduction.op.implementation
            self.values[reduction.key] = kernel.finalise(state, arity(reduction), reduction.attributes)
        self.states = []
        self.level += 1
        return [] if self.done else self._enter()

    def _jobs(self, phase: Phase, numel: int) -> Iterator[Job]:
        tile = tile_elements(phase, self.tile)
        step = job_elements(phase, self.tile, JOB_TILES) * phase.sample
        first, last = 0, numel
        if phase.result is not None:
            first, last = self.program.first, self.program.first + self.program.spec.numel
            lead = self.lead if phase.unit == 1 and self.lead < last - first else 0
            if lead:
                yield Job(self.program, phase, first, first + lead, tile, self.values)
                first += lead
        for begin in range(first, last, step):
            end = min(last, begin + step)
            yield Job(self.program, phase, begin, end, tile, self.values)


def _state(reduction: Node, numel: int, phase: Phase) -> Array:
    """The state of a whole tensor; counts are wider than those of a job, which fit in 32 bits."""
    kernel, count = reduction.op.implementation, arity(reduction)
    if kernel.per_chunk:
        rows: Array = kernel.empty(count, reduction.attributes, state_rows(reduction, phase, numel))
        return rows
    return np.zeros((1, kernel.state(count, reduction.attributes)[0]), np.int64)
