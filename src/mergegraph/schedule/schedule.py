"""A schedule: what will run, in which order, and the memory it provably stays within."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.checkpoint.layout import OutputLayout
from mergegraph.graph.graph import Graph
from mergegraph.schedule.memory import ENTRY_BYTES, OUTPUT_BYTES, fit, most_workers
from mergegraph.schedule.order import order
from mergegraph.schedule.program import Program
from mergegraph.schedule.tiling import programs
from mergegraph.schedule.vram import Gpus, Staging, fit_gpus


@dataclass(frozen=True)
class Schedule:
    """The programs of a graph in execution order.

    Attributes:
        programs: one per output piece.
        tile: elements per tile, where ops do not need whole rows or tensors.
        workers: threads that the budget allows (at most those asked for).
        peak_bytes: proven bound on what the run allocates beyond the interpreter and its imports.
        budget: the bound that was asked for.
        gpus: how many there are, and the bound on each that was asked for; None for a run on the CPU.
        vram_peak: proven bound on what the run allocates on each of them.
        staging: the buffers of tiles on their way to a GPU and back.
    """

    programs: tuple[Program, ...]
    tile: int
    workers: int
    peak_bytes: int
    budget: int
    gpus: Gpus | None = None
    vram_peak: int = 0
    staging: Staging | None = None

    @cached_property
    def work_bytes(self) -> int:
        """Bytes read and written over all phases: the total that progress counts towards."""
        return sum(p.work_bytes for p in self.programs)

    @cached_property
    def streamed_bytes(self) -> int:
        """Bytes read over all phases; later phases read again what the page cache holds."""
        return sum(p.streamed_bytes for p in self.programs)


def schedule(
    graph: Graph,
    layout: OutputLayout,
    sources: Mapping[str, CheckpointIndex],
    *,
    threads: int,
    budget: int,
    gpus: Gpus | None = None,
) -> Schedule:
    """Cut, order and fit `graph` into `budget` bytes, and what `gpus` may use.

    Raises:
        MemoryBudgetError: some tensor cannot be computed within the budget.
    """
    ordered = order(programs(graph, marking=gpus is None), layout, sources)
    entries = sum(len(index.tensors) for index in sources.values())
    planning = OUTPUT_BYTES * len(ordered) + ENTRY_BYTES * entries
    if gpus is None:
        if _marking(ordered) and most_workers(ordered, threads, budget, planning) < threads:
            # Marks save time, but not as much as another worker does.
            ordered = order(programs(graph, marking=False), layout, sources)
        chosen = fit(ordered, threads, budget, planning)
        return Schedule(ordered, chosen.tile, chosen.workers, chosen.peak_bytes, budget)
    found = fit_gpus(ordered, threads, budget, planning, gpus)
    bounds = (found.peak_bytes, budget, gpus, found.vram_peak, found.staging)
    return Schedule(ordered, found.tile, found.workers, *bounds)


def _marking(programs: Sequence[Program]) -> bool:
    """Whether some program keeps marks of what rows keep, which take memory."""
    return any(phase.marks for program in programs for phase in program.phases)
