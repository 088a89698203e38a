"""What every view shares: consoles, sizes, lists of tensor names, errors, and the run report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from mergegraph.errors import MergeGraphError, PlanError, Problem
from mergegraph.graph.outline import LayerName, layer_name, ranges
from mergegraph.runtime.events import RunReport
from mergegraph.tensorspec import format_bytes

MOST_LINES = 12
"""Lists of names longer than this are cut: ``--json`` has them all."""
MAX_VALUE = 60
_PLAIN_WIDTH = 120
_VERBS = {"read": "reading", "compute": "computing", "write": "writing"}


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that prints names as they are: no markup, no emoji, no guessed colours."""
    console = Console(stderr=stderr, markup=False, emoji=False, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        # Rich would assume 80 columns for a file or a pipe and fold most tensor names.
        console.width = _PLAIN_WIDTH
    return console


def say(console: Console, text: str, style: str | None = None) -> None:
    """Print one line without folding it."""
    console.print(text, style=style, soft_wrap=True)


def heading(console: Console, text: str) -> None:
    """Print the title of a section."""
    console.print()
    say(console, text, "bold")


def make_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table without lines; the columns named in `right` are flush right."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in right else "left",
            no_wrap=column in right,
            overflow="fold",
        )
    return table


def memory_text(n: int) -> str:
    """Render a memory size in the binary units that ``--memory`` is usually given in."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.1f} MiB"


def plural(n: int, noun: str) -> str:
    """Render ``1 tensor`` or ``1,234 tensors``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def clip(text: str) -> str:
    """Cut a long value; ``--json`` has all of it."""
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 1]}…"


def collapse(names: Iterable[str]) -> list[str]:
    """Write names that differ only in the layer as one: ``model.layers.{0–21}.mlp.up_proj.weight``."""
    found: dict[str | tuple[str, str], list[LayerName]] = {}
    for name in names:
        parts = layer_name(name)
        same = found.setdefault((parts.prefix, parts.suffix) if parts else name, [])
        if parts:
            same.append(parts)
    return [
        key if isinstance(key, str) else _pattern(key[0], [p.index for p in same], key[1])
        for key, same in found.items()
    ]


def _pattern(prefix: str, layers: Sequence[int], suffix: str) -> str:
    number = str(layers[0]) if len(layers) == 1 else f"{{{ranges(layers)}}}"
    return ".".join(part for part in (prefix, number, suffix) if part)


def bullet_names(console: Console, names: Sequence[str]) -> None:
    """List tensor names, like ones on one line, at most `MOST_LINES` of them."""
    lines = collapse(names)
    for line in lines[:MOST_LINES]:
        say(console, f"  {line}")
    if len(lines) > MOST_LINES:
        say(console, f"  … and {len(lines) - MOST_LINES:,} more: --json lists them all", "dim")


def error_lines(error: MergeGraphError, plan: str | None = None) -> list[str]:
    """What to say about `error`, one ``file:line: message`` per problem, hints below."""
    if not isinstance(error, PlanError):
        return [f"error: {error.message}", *_hint(error.hint)]
    lines: list[str] = []
    for problem in error.problems:
        lines.append(f"{problem.where or plan or 'plan'}: {_said(problem)}")
        lines += _hint(problem.hint)
    return [*lines, f"{plural(len(error.problems), 'problem')}; nothing was written"]


def _said(problem: Problem) -> str:
    parts = [problem.message]
    for kind, name in (("tensor", problem.tensor), ("model", problem.model)):
        if name and name not in problem.message:
            parts.append(f"[{kind} {name}]")
    return " ".join(parts)


def _hint(hint: str | None) -> list[str]:
    return [f"    → {hint}"] if hint else []


def show_report(console: Console, report: RunReport) -> None:
    """Print what a run did."""
    moved = report.bytes_read + report.bytes_written
    rate = moved / report.seconds if report.seconds > 0 else 0.0
    done = [f"{report.merged:,} merged", f"{report.copied:,} copied", f"{report.dropped:,} dropped"]
    if report.resumed:
        done.append(f"{report.resumed:,} kept from an interrupted run")
    total = sum(report.stages.values()) or 1.0
    stages = " · ".join(f"{stage} {s / total:.0%}" for stage, s in report.stages.items())
    table = make_table("", "")
    table.show_header = False
    table.columns[0].style = "dim"
    table.add_row("tensors", f"{report.tensors:,} written: {', '.join(done)}")
    table.add_row("read", format_bytes(report.bytes_read))
    table.add_row("written", format_bytes(report.bytes_written))
    table.add_row("time", f"{report.seconds:.2f} s, {format_bytes(round(rate))}/s")
    table.add_row("bound by", f"{_VERBS[report.bound]} ({stages} of the workers' time)")
    table.add_row(
        "memory",
        f"{memory_text(report.peak_working)} peak of {memory_text(report.budget)} allowed "
        f"(proven: at most {memory_text(report.plan_peak)}; whole process {memory_text(report.peak_rss)})",
    )
    if report.vram:
        proven = f"at most {memory_text(report.vram_peak)} of {memory_text(report.vram)} allowed on each"
        table.add_row("GPU memory", proven)
    reason = f": {report.reason}" if report.reason else ""
    table.add_row("ran on", f"{report.device}, {plural(report.threads, 'thread')}{reason}")
    console.print()
    console.print(table)
    _show_nonfinite(console, report.nonfinite)
    console.print()
    say(console, f"The result is in {report.out}", "bold green")


def _show_nonfinite(console: Console, nonfinite: Mapping[str, int]) -> None:
    if not nonfinite:
        return
    console.print()
    count, where = sum(nonfinite.values()), plural(len(nonfinite), "tensor")
    say(console, f"Warning: {plural(count, 'value')} in {where} not finite (NaN or infinite):", "bold yellow")
    bullet_names(console, list(nonfinite))
