"""Proving, before anything runs, how many bytes a schedule can hold at once.

Everything a run allocates in proportion to tensors is counted here: tile buffers per worker,
reduction scratch and state, statistics of programs in flight, output on its way to disk, and the graph
itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mergegraph.errors import MemoryBudgetError
from mergegraph.graph.node import Node
from mergegraph.kernels.reduction import CHUNK
from mergegraph.schedule.program import Phase, Program, marks_bytes

TILE = 8 * CHUNK
"""Preferred elements per tile: large enough that handing over calls and locks costs little (measured)."""
JOB_TILES = 4
"""Tiles per job handed to a worker, or more to fill rows of state: enough to amortise the hand-over."""
HELD = CHUNK
"""Elements up to which a worker holds inputs for later phases: so few that reading them again costs more."""
JOBS_PER_WORKER = 2
"""Jobs handed out ahead, so that no worker waits for the coordinator."""
BLOCK_BYTES = 4096 * 8
"""Scratch per reduction operand: one block of float64."""
OUTPUT_BYTES = 4000
"""What planning one output holds: names, entries, program, manifest row (measured, rounded up)."""
ENTRY_BYTES = 600
"""What the index of one input tensor holds (measured, rounded up)."""
TORCH_BYTES = 256 * 2**20
"""What torch and its linear algebra take, where some phase is not generated code (measured, rounded up)."""
WRITE_BYTES = 16 * 2**20
"""Copies of output on their way to disk: what the disk takes while all workers compute a tile (measured)."""
COMPILER_BYTES = 120 * 2**20
PHASE_BYTES = 2 * 2**20
NODE_BYTES = 2**20
"""What the compiler takes by itself, for each distinct phase, and for each op in it, when no machine code is
cached (measured, rounded up)."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A setting that keeps a schedule within its budget; `peak_bytes` is the proven bound."""

    tile: int
    workers: int
    peak_bytes: int


def tile_elements(phase: Phase, tile: int) -> int:
    """Elements per tile of `phase`: about `tile`, always a multiple of the phase's chunk."""
    return max(1, tile // phase.chunk) * phase.chunk


def job_elements(phase: Phase, tile: int, tiles: int) -> int:
    """Elements per job of `phase`: about `tiles` tiles, and whole rows of reduction state."""
    return -(-tiles * tile_elements(phase, tile) // phase.stretch) * phase.stretch


def state_rows(reduction: Node, phase: Phase, numel: int) -> int:
    """Rows of state of a REDUCE node of `phase` for `numel` elements."""
    kernel = reduction.op.implementation
    rows: int = kernel.rows(numel, phase.chunk * kernel.chunks(reduction.attributes))
    return rows


def arity(reduction: Node) -> int:
    """Number of tensors that a REDUCE node folds."""
    return sum(not x.is_stat for x in reduction.inputs)


def buffer_bytes(phase: Phase, out_bits: int, tile: int) -> int:
    """Tile buffers and scratch of one worker in `phase`."""
    # A tensor that is needed as a whole is one tile, however large.
    elements = phase.unit if phase.whole else tile_elements(phase, tile)
    bits = sum(load.spec.dtype.bits for load in phase.loads) + (out_bits if phase.result else 0)
    total = elements * bits // 8 + sum(arity(r) * BLOCK_BYTES for r in phase.reductions)
    if phase.by_rows:
        # Blocks and results of one row each, in float64 at most.
        total += 8 * phase.unit * sum(arity(n) + 1 for n in (*phase.rows, *phase.reductions))
        total += sum(n.workspace_bytes(phase.unit) for n in phase.rows if phase.generated)
    if not phase.generated:
        # Interpreted: every tile value of the phase may be alive at once, in its compute dtype.
        for node in (*phase.loads, *phase.body):
            total += elements * node.spec.dtype.compute.bits // 8 + node.workspace_bytes(elements)
    return total


def state_bytes(phase: Phase, numel: int) -> int:
    """Bytes of reduction state that covers `numel` elements of `phase`."""
    total = 0
    for r in phase.reductions:
        total += r.op.implementation.nbytes(arity(r), r.attributes, state_rows(r, phase, numel))
    return total


def program_bytes(program: Program, tile: int, workers: int) -> int:
    """Bytes held when all `workers` are busy with programs like this one."""
    bits = program.spec.dtype.bits
    worker = max(buffer_bytes(p, bits, tile) for p in program.phases)
    jobs = max(state_bytes(p, job_elements(p, tile, JOB_TILES)) for p in program.phases)
    held = max(2 * state_bytes(p, program.whole) for p in program.phases)
    held += sum(n.spec.nbytes for p in program.phases for n in (*p.small, *p.kept)) + _found_bytes(program)
    held += sum(marks_bytes(n) for p in program.phases for n in p.marks)
    return workers * (worker + JOBS_PER_WORKER * (jobs + held))


def held_bytes(program: Program) -> int:
    """Inputs of a small program that a worker holds from its first phase to its last."""
    if program.whole > HELD:
        return 0
    return sum({load.key: load.spec.nbytes for p in program.phases for load in p.loads}.values())


def _found_bytes(program: Program) -> int:
    """Most that the results of reductions take at a time: from their phase until they are spent."""
    most = here = 0
    for phase in program.phases:
        here -= sum(n.spec.nbytes for n in phase.spent)
        here += sum(n.spec.nbytes for n in phase.reductions)
        most = max(most, here)
    return most


def fit(programs: Iterable[Program], threads: int, budget: int, graph_bytes: int) -> Fit:
    """Return the fastest setting whose proven peak is within `budget` bytes.

    Raises:
        MemoryBudgetError: one worker with the smallest tiles is still too much.
    """
    found, worst = _closest(programs, threads, budget, graph_bytes)
    if found.peak_bytes > budget:
        raise MemoryBudgetError(worst, found.peak_bytes, budget)
    return found


def most_workers(programs: Iterable[Program], threads: int, budget: int, graph_bytes: int) -> int:
    """How many of `threads` workers `fit` finds room for; 0 if for none."""
    found, _ = _closest(programs, threads, budget, graph_bytes)
    return found.workers if found.peak_bytes <= budget else 0


def _closest(programs: Iterable[Program], threads: int, budget: int, graph_bytes: int) -> tuple[Fit, str]:
    """The fastest setting within the budget, else the smallest; and the tensor that needs most."""
    shapes = representatives(programs)
    graph_bytes += code_bytes(shapes) + WRITE_BYTES
    held = max(map(held_bytes, shapes), default=0)  # workers keep these buffers
    found, worst = Fit(CHUNK, 1, graph_bytes), "the plan itself"
    for workers in range(threads, 0, -1):
        for tile in (TILE, CHUNK):
            peak, worst = graph_bytes, "the plan itself"
            for program in shapes:
                need = graph_bytes + workers * held + program_bytes(program, tile, workers)
                if need > peak:
                    peak, worst = need, program.tensor
            found = Fit(tile, workers, peak)
            if peak <= budget:
                return found, worst
    return found, worst


def code_bytes(programs: Iterable[Program]) -> int:
    """What compiling and loading the code of `programs` takes at most, torch included where they need it."""
    phases = {_structure(p): p for program in programs for p in program.phases if not program.raw}
    nodes = sum(len(p.body) + len(p.reductions) for p in phases.values())
    interpreted = any(not phase.generated for phase in phases.values())
    return COMPILER_BYTES + PHASE_BYTES * len(phases) + NODE_BYTES * nodes + TORCH_BYTES * interpreted


def _structure(phase: Phase) -> object:
    """What decides the machine code of a phase; equal structures share it."""
    nodes = (*phase.loads, *phase.body, *phase.reductions)
    return tuple((n.op.name, n.spec.dtype, len(n.inputs)) for n in nodes)


def representatives(programs: Iterable[Program]) -> list[Program]:
    """The largest program of each expression: thousands of tensors share a handful of costs."""
    largest: dict[int, Program] = {}
    for program in programs:
        known = largest.get(id(program.phases))
        if known is None or known.whole < program.whole:
            largest[id(program.phases)] = program
    return list(largest.values())
