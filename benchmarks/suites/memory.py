"""Peak resident memory against the size of the model, and against its largest tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from benchmarks import peer, shapes
from benchmarks.cases import case
from benchmarks.contest import OURS, Outcome, peak
from benchmarks.measure import ProgramFailed
from benchmarks.settings import Settings
from benchmarks.suites.base import Chart, Column, Series, Suite, contest_columns, megabytes
from benchmarks.suites.merging import measure_case, ready

SIZES = ("llama-0.3b", "llama-0.6b", "llama-1.1b")
TENSORS = ("embedding-half", "embedding")
QUICK_SHAPES = ("quick", "quick-float32")
_METHODS = ("linear", "ties")


def measure(settings: Settings, work: Path) -> Iterator[Outcome]:
    """Measure every shape with every method."""
    varied = {"model": SIZES, "largest tensor": TENSORS}
    if settings.quick:
        varied = {"model": QUICK_SHAPES[:1], "largest tensor": QUICK_SHAPES[1:]}
    for what, names in varied.items():
        for name in names:
            home = ready(settings, name)
            shape = shapes.find(name)
            size = 4 if shape.dtype == "F32" else 2
            facts = {
                "varied": what,
                "model_bytes": shapes.weights(home / shape.names[0]),
                "tensor_bytes": size * max(map(math.prod, shape.llama.shapes().values())),
            }
            dtype = "float32" if shape.dtype == "F32" else "bfloat16"
            for method in settings.methods or (_METHODS[-1:] if settings.quick else _METHODS):
                for found in measure_case(case(method, shape.names, dtype), name, settings, work):
                    yield found if isinstance(found, ProgramFailed) else {**found, **facts}


SUITE = Suite(
    name="memory",
    title="Memory",
    note="Peak resident memory of the whole process, mapped libraries included.",
    measure=measure,
    columns=contest_columns(
        Column("varied", lambda row: str(row["varied"])),
        Column("method", lambda row: str(row["method"])),
        Column("model MB", lambda row: megabytes(row["model_bytes"])),
        Column("largest tensor MB", lambda row: megabytes(row["tensor_bytes"])),
        Column("cache", lambda row: str(row["cache"])),
    ),
    chart=Chart(
        kind="lines",
        title="Peak resident memory by size of one model",
        axis="MB",
        series=(
            Series(OURS, lambda row: (peak(row, OURS) or 0) / 1e6),
            Series(peer.NAME, lambda row: found / 1e6 if (found := peak(row, peer.NAME)) else None),
        ),
        x=lambda row: float(row["model_bytes"]) / 1e6,
        x_axis="MB of one model",
        group=lambda row: f"{row['method']}, {row['varied']} grows",
        log=False,
    ),
)
