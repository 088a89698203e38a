"""Planning alone, from headers: time and memory against the number of tensors."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import headers, peer
from benchmarks.cases import case
from benchmarks.contest import OURS, Outcome, Row
from benchmarks.measure import ProgramFailed, probe
from benchmarks.settings import Settings
from benchmarks.suites.base import Chart, Column, Series, Suite, megabytes, number, ratio

_METHODS = ("linear", "ties")
_PEER_SCRIPT = Path(__file__).resolve().parents[1] / "probes" / "peer_plan.py"


def measure(settings: Settings, work: Path) -> Iterator[Outcome]:
    """Plan merges of every outline, with mergegraph and the peer in turn."""
    names = ("tensors-1k",) if settings.quick else tuple(headers.OUTLINES)
    for name in names:
        home = headers.make(settings.models, name)
        for method in settings.methods or (_METHODS[-1:] if settings.quick else _METHODS):
            plan = work / f"{method}-{name}.yml"
            plan.write_text(case(method, headers.MODELS).plan(home), encoding="utf-8")
            say = f"plan {method} on {name}"
            try:
                found = _in_turn(plan, settings, work, say)
            except ProgramFailed as error:
                yield error
                continue
            yield {"key": f"{method} {name}", "method": method, "outline": name, "tools": found}


def _in_turn(plan: Path, settings: Settings, work: Path, say: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {OURS: [], peer.NAME: []}
    for round_ in range(settings.runs):
        print(f"{say}: round {round_ + 1} of {settings.runs}", file=sys.stderr, flush=True)
        found[OURS].append(_ours(plan, settings, work))
        if settings.peer is not None and round_ < settings.peer_runs:
            found[peer.NAME] += _peers(plan, settings.peer, work)
    return found


def _ours(plan: Path, settings: Settings, work: Path) -> dict[str, Any]:
    arguments = (plan, settings.memory, settings.threads)
    return probe("benchmarks.probes.plan", *arguments, log=work / "plan.log")


def _peers(plan: Path, venv: Path, work: Path) -> list[dict[str, Any]]:
    """One measurement of the peer, or none, with a message, if it failed."""
    log, python = work / "peer-plan.log", peer.python(venv)
    try:
        return [probe(str(_PEER_SCRIPT), plan, work / "unused", log=log, python=python)]
    except ProgramFailed as error:
        print(f"{peer.NAME} failed, its column stays empty: {error}", file=sys.stderr, flush=True)
        return []


def _seconds(row: Row, tool: str) -> float | None:
    """Median of planning, imports not included."""
    return _median(row, tool, lambda found: float(found["compile"] + found["schedule"]))


def _median(row: Row, tool: str, value: Callable[[dict[str, Any]], float]) -> float | None:
    found = row["tools"][tool]
    return statistics.median(map(value, found)) if found else None


def _part(row: Row, tool: str, part: str) -> float | None:
    return _median(row, tool, lambda found: float(found[part]))


def _process(row: Row, tool: str, what: str) -> float | None:
    return _median(row, tool, lambda found: float(found["process"][what]))


def _outputs(row: Row, tool: str) -> str:
    found = row["tools"][tool]
    return f"{found[0]['outputs']:,}" if found else number(None)


SUITE = Suite(
    name="plan",
    title="Planning",
    note=(
        "Time to open, compile and schedule a plan of a base and two fine-tunes from headers alone, "
        "imports not included; peak memory of the whole process, imports included. `deepseek-v3` has the "
        "names and shapes of that model (1.3 TB as bfloat16), over sparse files. Outputs are tensors; "
        "those of mergekit are the tensors it plans to write and one task besides, so that they show "
        "whether it saw them all."
    ),
    measure=measure,
    columns=(
        Column("checkpoint", lambda row: str(row["outline"])),
        Column("method", lambda row: str(row["method"])),
        Column("outputs", lambda row: _outputs(row, OURS)),
        Column("compile s", lambda row: number(_part(row, OURS, "compile"))),
        Column("schedule s", lambda row: number(_part(row, OURS, "schedule"))),
        Column("peak MB", lambda row: megabytes(_process(row, OURS, "peak"))),
        Column("process s", lambda row: number(_process(row, OURS, "wall"))),
        Column("mergekit outputs", lambda row: _outputs(row, peer.NAME)),
        Column("mergekit s", lambda row: number(_seconds(row, peer.NAME))),
        Column("mergekit peak MB", lambda row: megabytes(_process(row, peer.NAME, "peak"))),
        Column("times faster", lambda row: number(ratio(_seconds(row, peer.NAME), _seconds(row, OURS)), 1)),
    ),
    chart=Chart(
        kind="lines",
        title="Planning time by number of tensors",
        axis="seconds",
        series=(
            Series(OURS, lambda row: _seconds(row, OURS)),
            Series(peer.NAME, lambda row: _seconds(row, peer.NAME)),
        ),
        x=lambda row: float(row["tools"][OURS][0]["outputs"]),
        x_axis="output tensors",
        group=lambda row: f"{row['method']}{', DeepSeek-V3' if row['outline'] == 'deepseek-v3' else ''}",
    ),
)
