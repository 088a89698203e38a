"""What commands cost before there is any work: help, a dry run, a merge of tiny models."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import peer, shapes
from benchmarks.cases import case
from benchmarks.contest import OURS, Outcome, Row, mergegraph_run, peak, wall
from benchmarks.measure import run
from benchmarks.settings import Settings
from benchmarks.suites.base import Chart, Column, Series, Suite, megabytes, number, ratio
from benchmarks.suites.merging import ready

_METHOD = "ties"
_TINY = "quick"
_FIRST = ("linear", "slerp", "ties", "dare_ties", "sce", "della")
"""Methods whose first merge on a machine is timed: with no machine code in the cache."""


def measure(settings: Settings, work: Path) -> Iterator[Outcome]:
    """Time every command, all of them in turn."""
    found: dict[tuple[str, str], list[tuple[float, float, int]]] = {}
    for round_ in range(settings.runs + 1):  # the first fills the page cache and is not counted
        for i, ((what, tool), command) in enumerate(_commands(settings, work).items()):
            out = work / f"out-{round_}-{i}"
            print(f"{what}, {tool}: round {round_} of {settings.runs}", file=sys.stderr)
            used = run([part.replace("{out}", str(out)) for part in command], work / "startup.log")
            if round_:
                found.setdefault((what, tool), []).append((used.wall, used.cpu, used.peak))
    for what in dict.fromkeys(what for what, _ in found):
        tools = {}
        for tool in (tool for name, tool in found if name == what):
            walls, cpus, peaks = zip(*found[what, tool], strict=True)
            tools[tool] = {"wall": list(walls), "cpu": list(cpus), "peak": list(peaks)}
        yield {"key": what, "tools": tools}


def _commands(settings: Settings, work: Path) -> dict[tuple[str, str], list[str]]:
    program = str(Path(sys.executable).with_name("mergegraph"))
    plans = {shape: _plan(shape, _METHOD, settings, work) for shape in (_TINY, settings.main_shape)}
    dry = f"dry run, {settings.main_shape}"
    commands = {
        ("import torch", OURS): [sys.executable, "-c", "import torch"],
        ("--help", OURS): [program, "--help"],
        (dry, OURS): [program, "plan", str(plans[settings.main_shape]), "--dry-run"],
        ("merge of tiny models", OURS): mergegraph_run(
            plans[_TINY], Path("{out}"), settings, settings.threads
        ),
    }
    for method in settings.methods or _FIRST:
        plan = _plan(_TINY, method, settings, work)
        merge = mergegraph_run(plan, Path("{out}"), settings, settings.threads)
        commands[f"first {method} of tiny models", OURS] = ["env", "MERGEGRAPH_CACHE={out}-cache", *merge]
    if settings.peer is not None:
        merge = peer.merge_command(settings.peer, plans[_TINY], Path("{out}"), settings.threads)
        commands |= {
            ("--help", peer.NAME): [merge[0], "--help"],
            ("merge of tiny models", peer.NAME): merge,
        }
    return commands


def _plan(shape: str, method: str, settings: Settings, work: Path) -> Path:
    home = ready(settings, shape)
    plan = work / f"{shape}-{method}.yml"
    plan.write_text(case(method, shapes.find(shape).names).plan(home), encoding="utf-8")
    return plan


def _spread(row: Row) -> str:
    walls = row["tools"][OURS]["wall"]
    return f"{min(walls):.2f} … {statistics.median(walls):.2f} … {max(walls):.2f}"


SUITE = Suite(
    name="startup",
    title="Start-up",
    note="Whole commands: least, median and longest wall time. `import torch` is there for comparison. "
    "The first merge of a method has no machine code in the cache yet, and makes it.",
    measure=measure,
    columns=(
        Column("command", lambda row: str(row["key"])),
        Column("wall s", _spread),
        Column("peak MB", lambda row: megabytes(peak(row, OURS))),
        Column("mergekit s", lambda row: number(wall(row, peer.NAME), 1)),
        Column("mergekit peak MB", lambda row: megabytes(peak(row, peer.NAME))),
        Column("times faster", lambda row: number(ratio(wall(row, peer.NAME), wall(row, OURS)), 1)),
    ),
    chart=Chart(
        kind="bars",
        log=False,
        title="Start-up",
        axis="seconds",
        series=(
            Series(OURS, lambda row: wall(row, OURS)),
            Series(peer.NAME, lambda row: wall(row, peer.NAME)),
        ),
    ),
)
