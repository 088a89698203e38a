"""Proving what a schedule holds on GPUs, and beside them on the host, before anything runs.

A worker of a GPU has a few slots for tiles that are on their way: pinned buffers, and buffers on the device.
Everything else on the device belongs to the one tile that is being computed. Not counted: what CUDA itself
takes, and what its allocator keeps in reserve.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mergegraph.errors import MemoryBudgetError
from mergegraph.graph.node import Node
from mergegraph.kernels.reduction import CHUNK
from mergegraph.schedule.memory import (
    COMPILER_BYTES,
    JOB_TILES,
    JOBS_PER_WORKER,
    TORCH_BYTES,
    WRITE_BYTES,
    arity,
    buffer_bytes,
    job_elements,
    representatives,
    state_bytes,
    state_rows,
    tile_elements,
)
from mergegraph.schedule.program import Phase, Program

SLOTS = 3
"""Tiles of one worker that are on their way: one is read, one computed, one written."""
WORKERS_PER_GPU = 4
"""More readers than this only wait for each other: a PCIe link moves what a few threads read."""
TILES = ((128, 64, 32), (16, 4, 1))
"""Chunks per tile, the best first. Tens of MB hide the cost of a call; from the second list only if no number
of workers can do with a tile of the first."""
ALIGNMENT = 256
"""Every part of a buffer begins at a multiple of this."""
TEMPORARIES = 6
"""Tiles that a kernel may hold besides two for each operand and its declared workspace."""
FOLD_BYTES = 64
"""What a fold holds for each element, besides the tiles it gets."""
FINITE_BYTES = 12
"""What finding out whether numbers are finite holds for each element."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """What a schedule may use: so many devices, and bytes of memory on each."""

    count: int
    vram: int


@dataclass(frozen=True, slots=True)
class Staging:
    """Bytes of the buffers of one slot: for what goes to the device, and for what comes back."""

    inputs: int
    outputs: int


@dataclass(frozen=True, slots=True)
class GpuFit:
    """A setting that keeps a schedule within both budgets, and the proven bounds: host, and each device."""

    tile: int
    workers: int
    peak_bytes: int
    vram_peak: int
    staging: Staging


def input_sizes(phase: Phase, count: int) -> list[int]:
    """Bytes of what a tile of `count` elements needs on the device: loads, numbers of rows, of columns."""
    sizes = [count * load.spec.dtype.bits // 8 for load in phase.loads]
    rows = count // phase.unit
    return sizes + [8 * (rows * n.spec.shape[1] if n.is_row else n.spec.numel) for n in tables(phase)]


def tables(phase: Phase) -> tuple[Node, ...]:
    """The statistics that kernels index on the device: numbers of rows and columns. Others are arguments."""
    return tuple(n for n in phase.stats if n.is_row or len(n.spec.shape) == 2)


def output_sizes(phase: Phase, out_bits: int, count: int) -> list[int]:
    """Bytes of what comes back: the output, the count of bad numbers, numbers of rows."""
    written = [count * out_bits // 8, 8] if phase.result is not None else []
    return written + [8 * (count // phase.unit) * n.spec.shape[1] for n in phase.kept]


def state_sizes(phase: Phase, numel: int) -> list[int]:
    """Bytes of the state of each reduction for a job of `numel` elements."""
    return [
        r.op.implementation.nbytes(arity(r), r.attributes, state_rows(r, phase, numel))
        for r in phase.reductions
    ]


def aligned(sizes: Sequence[int]) -> int:
    """Bytes of a buffer for parts of these sizes."""
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


def lifetimes(phase: Phase) -> tuple[tuple[bytes, ...], ...]:
    """For each op of the body, the values that nothing needs after it."""
    roots = [*phase.kept, *(x for r in phase.reductions for x in r.inputs)]
    last = {x.key: i for i, n in enumerate(phase.body) for x in n.inputs}
    kept = {x.key for x in roots} | ({phase.result.key} if phase.result is not None else set())
    tiles = {n.key for n in (*phase.loads, *phase.body)}
    return tuple(
        tuple(dict.fromkeys(x.key for x in n.inputs if last[x.key] == i and x.key in tiles - kept))
        for i, n in enumerate(phase.body)
    )


def compute_bytes(phase: Phase, elements: int) -> int:
    """Most bytes of values and scratch at any moment while one tile is computed, its inputs not counted."""
    sizes = {n.key: _value_bytes(phase, n, elements) for n in (*phase.loads, *phase.body)}
    live = sum(sizes[n.key] for n in phase.loads)
    peak = live
    for n, dead in zip(phase.body, lifetimes(phase), strict=True):
        live += sizes[n.key]
        peak = max(peak, live + _scratch_bytes(n, elements))
        live -= sum(sizes[key] for key in dead)
    for r in phase.reductions:
        peak = max(peak, live + _fold_bytes(r, phase, elements))
    # The result in its own dtype is a slot's.
    return max(peak, live + FINITE_BYTES * elements) if phase.result is not None else peak


def _value_bytes(phase: Phase, n: Node, elements: int) -> int:
    if n.is_row:
        return 8 * (elements // phase.unit) * n.spec.shape[1]
    return elements * n.spec.dtype.compute.bits // 8


def _scratch_bytes(n: Node, elements: int) -> int:
    tiles = [x for x in n.inputs if not (x.is_stat or x.is_row)]
    width = max((x.spec.dtype.compute.bits // 8 for x in tiles), default=4)
    wide = 8 if n.is_row else width
    return elements * wide * (2 * len(tiles) + TEMPORARIES) + n.workspace_bytes(elements)


def _fold_bytes(r: Node, phase: Phase, elements: int) -> int:
    padded = -(-elements // phase.chunk) * phase.chunk
    lines = 1 + 2 * phase.columns / phase.chunk if r.op.implementation.placed else 0
    return math.ceil(padded * (FOLD_BYTES + 8 * lines + arity(r)))


def staging(programs: Iterable[Program], tile: int) -> Staging:
    """The buffers of a slot that any tile of `programs` fits in."""
    inputs = outputs = 0
    for program, phase, count in _tiles(programs, tile):
        states = state_sizes(phase, job_elements(phase, tile, JOB_TILES))
        inputs = max(inputs, aligned(input_sizes(phase, count)))
        outputs = max(outputs, aligned([*output_sizes(phase, program.spec.dtype.bits, count), *states]))
    return Staging(inputs, outputs)


def _tiles(programs: Iterable[Program], tile: int) -> Iterable[tuple[Program, Phase, int]]:
    """Phases that run on a device, with the elements of their largest tile."""
    for program in programs:
        for phase in () if program.raw else program.phases:
            yield (
                program,
                phase,
                min(phase.unit if phase.whole else tile_elements(phase, tile), program.whole),
            )


def fit_gpus(
    programs: Iterable[Program], threads: int, budget: int, planning_bytes: int, gpus: Gpus
) -> GpuFit:
    """Return the fastest setting whose proven peaks are within `budget` bytes and the devices' memory.

    Raises:
        MemoryBudgetError: one worker with the smallest tiles is still too much for one of them.
    """
    shapes = representatives(programs)
    planning_bytes += COMPILER_BYTES + TORCH_BYTES + WRITE_BYTES  # checksums are compiled code here too
    most = min(threads, WORKERS_PER_GPU * gpus.count)
    found = None
    for tiles in TILES:
        for workers in range(most, 0, -1):
            for tile in tiles:
                found = _setting(shapes, tile * CHUNK, workers, planning_bytes, gpus)
                if found.peak_bytes <= budget and found.vram_peak <= gpus.vram:
                    return found
    assert found is not None
    if found.vram_peak > gpus.vram:
        worst = max(shapes, key=lambda p: device_bytes([p], found.tile))
        raise MemoryBudgetError(worst.tensor, found.vram_peak, gpus.vram, option="--vram")
    worst = max(shapes, key=lambda p: _host_bytes([p], found.tile))
    raise MemoryBudgetError(worst.tensor, found.peak_bytes, budget)


def _setting(programs: Sequence[Program], tile: int, workers: int, planning: int, gpus: Gpus) -> GpuFit:
    host = planning + workers * _host_bytes(programs, tile)
    device = -(-workers // gpus.count) * device_bytes(programs, tile)
    return GpuFit(tile, workers, host, device, staging(programs, tile))


def _host_bytes(programs: Sequence[Program], tile: int) -> int:
    """Bytes that one worker holds on the host: slots, states, statistics, and copies."""
    slot = staging(programs, tile)
    raw = [buffer_bytes(phase, p.spec.dtype.bits, tile) for p in programs if p.raw for phase in p.phases]
    jobs = [state_bytes(phase, job_elements(phase, tile, JOB_TILES)) for p in programs for phase in p.phases]
    held = [_held_bytes(p) for p in programs]
    work = (JOBS_PER_WORKER + SLOTS) * (max(jobs, default=0) + max(held, default=0))
    return SLOTS * (pinned(slot.inputs) + pinned(slot.outputs)) + max(raw, default=0) + work


def _held_bytes(program: Program) -> int:
    nodes = [n for p in program.phases for n in (*p.small, *p.reductions, *p.kept)]
    states = [2 * state_bytes(p, program.whole) for p in program.phases]
    return max(states) + sum(n.spec.nbytes for n in nodes)


def pinned(size: int) -> int:
    """What an allocation of pinned memory takes: torch rounds it up to a power of two."""
    return 1 << max(size - 1, 0).bit_length()


def device_bytes(programs: Sequence[Program], tile: int) -> int:
    """Bytes that one worker holds on its device."""
    slot = staging(programs, tile)
    busy = [compute_bytes(phase, count) for _, phase, count in _tiles(programs, tile)]
    return SLOTS * (slot.inputs + slot.outputs) + max(busy, default=0)
