"""The arithmetic alone: GB/s of every phase of every method, against memcpy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.contest import Outcome, Row
from benchmarks.headers import Outline, Tensor, write
from benchmarks.measure import ProgramFailed, probe
from benchmarks.settings import Settings
from benchmarks.suites.base import Chart, Column, Series, Suite, number
from benchmarks.suites.methods import cases

_ROWS, _COLUMNS = 4096, 2048
_QUICK_ROWS = 128


def measure(settings: Settings, work: Path) -> Iterator[Outcome]:
    """Measure each method on one matrix."""
    outline = Outline(lambda: iter([_matrix(settings)]), {"num_hidden_layers": 1})
    chosen = cases(settings, work)
    home = work / "matrix"
    for name in dict.fromkeys(name for found in chosen for name in found.models):
        (home / name).mkdir(parents=True)
        write(home / name, outline)
    for found in chosen:
        print(f"kernels of {found.method}", file=sys.stderr)
        plan = work / f"kernels-{found.method}.yml"
        plan.write_text(found.plan(home), encoding="utf-8")
        options = ("--runs", settings.runs, "--memory", settings.memory)
        try:
            result = probe("benchmarks.probes.kernels", plan, *options, log=work / "kernels.log")
        except ProgramFailed as error:
            yield error
            continue
        for index, phase in enumerate(result["phases"], start=1):
            key = f"{found.method} {index}"
            facts = {"method": found.method, "phase": index, "memcpy": result["memcpy"]}
            yield {"key": key, **facts, "elements": result["elements"], **phase}


def _matrix(settings: Settings) -> Tensor:
    rows = _QUICK_ROWS if settings.quick else _ROWS
    return Tensor("model.layers.0.mlp.up_proj.weight", (rows, _COLUMNS))


def _rate(row: Row) -> float | None:
    return row["bytes"] / row["seconds"] if row["seconds"] else None


def _share(row: Row) -> float | None:
    rate = _rate(row)
    return rate / row["memcpy"] if rate is not None else None


SUITE = Suite(
    name="kernels",
    title="Kernels",
    note=(
        "One thread, tensors in memory, the engine's own tiles and generated code. Bytes are those read "
        "from the inputs and written to the output; tiles are in the processor's cache by then, and the "
        "output's checksum is part of the work. memcpy copies a buffer larger than the cache, its bytes "
        "counted the same way."
    ),
    measure=measure,
    columns=(
        Column("method", lambda row: str(row["method"])),
        Column("phase", lambda row: str(row["phase"])),
        Column("ops", lambda row: str(row["ops"])),
        Column("ns per element", lambda row: number(row["seconds"] / row["elements"] * 1e9)),
        Column("GB/s", lambda row: number(rate / 1e9 if (rate := _rate(row)) is not None else None)),
        Column("memcpy GB/s", lambda row: number(row["memcpy"] / 1e9)),
        Column("of memcpy", lambda row: number(_share(row))),
        Column("compiled", lambda row: "yes" if row["generated"] else "no, torch"),
    ),
    chart=Chart(
        kind="bars",
        title="Speed of each phase as a share of memcpy, one thread",
        axis="share of memcpy's GB/s",
        series=(Series("share of memcpy", _share),),
        log=False,
    ),
)
