"""How a merge and the floor gain from threads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks import shapes
from benchmarks.cases import case
from benchmarks.contest import OURS, Outcome, floor_seconds, wall
from benchmarks.settings import Settings
from benchmarks.suites.base import Chart, Column, Series, Suite, contest_columns
from benchmarks.suites.merging import measure_case, ready

_METHODS = ("linear", "ties")


def measure(settings: Settings, work: Path) -> Iterator[Outcome]:
    """Measure with 1, 2, 4, … threads, up to the run's number."""
    shape = settings.main_shape
    ready(settings, shape)
    names = shapes.find(shape).names
    for method in settings.methods or (_METHODS[-1:] if settings.quick else _METHODS):
        for threads in counts(settings.threads):
            yield from measure_case(case(method, names), shape, settings, work, threads=threads)


def counts(most: int) -> list[int]:
    """Powers of two below `most`, and `most`."""
    return [*(n for n in (1 << i for i in range(most.bit_length())) if n < most), most]


SUITE = Suite(
    name="threads",
    title="Threads",
    note="The floor has as many threads as the merge beside it.",
    measure=measure,
    columns=contest_columns(
        Column("method", lambda row: str(row["method"])),
        Column("threads", lambda row: str(row["threads"])),
        Column("cache", lambda row: str(row["cache"])),
    ),
    chart=Chart(
        kind="lines",
        title="Wall time by number of threads",
        axis="seconds",
        series=(Series(OURS, lambda row: wall(row, OURS)), Series("floor", floor_seconds)),
        x=lambda row: float(row["threads"]),
        x_axis="threads",
        group=lambda row: str(row["method"]),
    ),
)
