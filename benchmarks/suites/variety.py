"""A few methods on checkpoints of other shapes: one huge tensor, many tiny ones, float32, five models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks import shapes
from benchmarks.cases import case
from benchmarks.contest import OURS, Outcome
from benchmarks.peer import NAME
from benchmarks.settings import Settings
from benchmarks.suites.base import Chart, Column, Series, Suite, contest_columns, to_floor
from benchmarks.suites.merging import measure_case, ready

SHAPES = ("embedding", "tiny-tensors", "float32", "five")
QUICK_SHAPES = ("quick-float32", "quick-five")
METHODS = ("linear", "slerp", "task_arithmetic", "ties")


def measure(settings: Settings, work: Path) -> Iterator[Outcome]:
    """Measure each method on each shape."""
    chosen = (settings.shape,) if settings.shape else (QUICK_SHAPES if settings.quick else SHAPES)
    for name in chosen:
        ready(settings, name)
        shape = shapes.find(name)
        dtype = "float32" if shape.dtype == "F32" else "bfloat16"
        for method in settings.methods or (METHODS[-1:] if settings.quick else METHODS):
            yield from measure_case(case(method, shape.names, dtype), name, settings, work)


SUITE = Suite(
    name="shapes",
    title="Other shapes of checkpoints",
    note=(
        "`embedding` has one tensor of 1.1 GB, `tiny-tensors` 9003 tensors of at most 40 kB, `float32` is "
        "stored in float32, and `five` merges five models."
    ),
    measure=measure,
    columns=contest_columns(
        Column("shape", lambda row: str(row["shape"])),
        Column("method", lambda row: str(row["method"])),
        Column("cache", lambda row: str(row["cache"])),
    ),
    chart=Chart(
        kind="bars",
        goal=1.0,
        title="Wall time in multiples of the floor, by shape",
        axis="× floor",
        series=(Series(OURS, to_floor), Series(NAME, lambda row: to_floor(row, NAME))),
        label=lambda row: f"{row['shape']}, {row['method']}{'' if row['cache'] == 'warm' else ' (cold)'}",
    ),
)
