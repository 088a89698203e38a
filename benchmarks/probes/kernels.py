"""Time every phase of a merge on tensors in memory, one thread, with the engine's own code and tiles.

Bytes are those a phase reads from its inputs and writes to its output, so that GB/s can be held against
``memcpy``, which is timed in turn with it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mergegraph import engine
from mergegraph.runtime.executor import phase_functions
from mergegraph.runtime.progress import Job, Progress
from mergegraph.runtime.workers import Worker
from mergegraph.schedule.program import Phase, Program
from mergegraph.testing.tiny import to_bfloat16

Bytes = NDArray[np.uint8]


class Memory:
    """Stands for reader and writer: tensors in memory, and output that goes nowhere."""

    def __init__(self, tensors: Mapping[tuple[str, str], Bytes], size: int) -> None:
        self._tensors = tensors
        self._output = np.empty(size, np.uint8)

    def read_into(self, checkpoint: str, tensor: str, offset: int, buffer: memoryview) -> None:
        """Copy bytes of a source."""
        target = np.frombuffer(buffer, np.uint8)
        target[:] = self._tensors[checkpoint, tensor][offset : offset + target.nbytes]

    def write(self, _: str, offset: int, buffer: memoryview) -> None:
        """Copy bytes of the output."""
        source = np.frombuffer(buffer, np.uint8)
        self._output[offset : offset + source.nbytes] = source


def values(program: Program) -> dict[tuple[str, str], Bytes]:
    """Random weights for every source: those of the first, and small changes of it for the others."""
    random = np.random.Generator(np.random.SFC64(0))
    base: NDArray[np.float32] | None = None
    found: dict[tuple[str, str], Bytes] = {}
    for source in program.sources:
        noise = random.standard_normal(program.spec.numel, dtype=np.float32)
        stored = noise * np.float32(0.02) if base is None else base + noise * np.float32(0.002)
        base = stored if base is None else base
        found[source.checkpoint, source.tensor] = to_bfloat16(stored).view(np.uint8)
    return found


def measure(program: Program, tile: int, runs: int, copied: int) -> tuple[list[float], float]:
    """Seconds of computing of every phase, and of one memcpy of `copied` bytes: medians of `runs`."""
    memory = Memory(values(program), program.spec.nbytes)
    worker = Worker(memory, memory, phase_functions([program]))
    source, target = np.ones(copied, np.uint8), np.ones(copied, np.uint8)
    phases, copies = [], []
    for _ in range(runs + 1):
        started = time.perf_counter()
        np.copyto(target, source)
        copies.append(time.perf_counter() - started)
        phases.append(_once(program, tile, worker))
    seconds = np.median(np.array(phases[1:]), axis=0)
    return [float(x) for x in seconds], float(np.median(copies[1:]))


def _once(program: Program, tile: int, worker: Worker) -> list[float]:
    progress = Progress(program, tile)
    seconds = [0.0] * len(program.phases)
    jobs: list[Job] = progress.start()
    while jobs:
        following: list[Job] = []
        for job in jobs:
            result = worker.execute(job)
            seconds[program.phases.index(job.phase)] += result.tally.compute_seconds
            following += progress.absorb(result)
        jobs = following
    return seconds


def describe(phase: Phase) -> str:
    """The ops of a phase, each once, with how often."""
    names = [node.op.name for node in (*phase.body, *phase.reductions)]
    counts = {name: names.count(name) for name in dict.fromkeys(names)}
    return ", ".join(name if n == 1 else f"{n} × {name}" for name, n in counts.items())


def main() -> None:
    """Measure the largest program of a plan and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plan")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--memory", default="1GiB")
    parser.add_argument("--copied", type=int, default=128 << 20, help="bytes that memcpy copies")
    options = parser.parse_args()
    compiled = engine.compile_plan(options.plan, memory=options.memory, threads=1)
    program = max(compiled.schedule.programs, key=lambda p: p.spec.nbytes)
    seconds, copy = measure(program, compiled.schedule.tile, options.runs, options.copied)
    rows: list[dict[str, Any]] = []
    for phase, taken in zip(program.phases, seconds, strict=True):
        if program.raw:
            continue  # bytes are passed on, nothing is computed
        written = program.spec.nbytes if phase.result is not None else 0
        moved = sum(load.spec.nbytes for load in phase.loads) + written
        rows.append({"ops": describe(phase), "generated": phase.generated, "bytes": moved, "seconds": taken})
    found = {"elements": program.spec.numel, "memcpy": 2 * options.copied / copy, "phases": rows}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
