"""How a compiled plan looks: the dry run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mergegraph.cli.mixture_view import show_mixture
from mergegraph.cli.render import (
    bullet_names,
    clip,
    heading,
    make_table,
    memory_text,
    plural,
    say,
)
from mergegraph.graph.outline import layer_name, ranges
from mergegraph.tensorspec import format_bytes

Summary = Mapping[str, Any]
MAX_OUTSIDE = 12
"""More tensors than this outside the layers are summed up by the first part of their names."""


def show_plan(console: Console, summary: Summary, title: str) -> None:
    """Print `summary`, the dictionary that ``plan --json`` prints."""
    outputs, models = summary["outputs"], summary["models"]
    say(console, f"{title}: {summary['method']} of {plural(len(models), 'model')}", "bold")
    for model in models:
        say(console, f"  {model if isinstance(model, str) else model['name']}")
    if summary.get("mixture"):
        show_mixture(console, summary["mixture"])
    heading(console, f"Outputs: {plural(len(outputs), 'tensor')}, {format_bytes(_bytes(outputs))}")
    console.print(_outputs(outputs))
    shards = summary["shards"]
    heading(console, f"Shards: {plural(len(shards), 'file')}, {format_bytes(_bytes(shards))}")
    console.print(_shards(shards))
    heading(console, "Work")
    console.print(_work(summary))
    _show_names(console, "Copied verbatim", summary["copied"])
    if summary["sidecars"]:
        heading(console, f"Other files, copied from {summary['donor']}")
        say(console, f"  {', '.join(summary['sidecars'])}")
    _show_dropped(console, summary["dropped"])
    _show_partial(console, summary["partial"])
    _show_differences(console, summary["config_differences"])
    if summary["notes"]:
        heading(console, "Notes")
        for note in summary["notes"]:
            say(console, f"  • {note}")
    console.print()
    say(console, f"fingerprint {summary['fingerprint']}", "dim")


def _bytes(rows: Sequence[Summary]) -> int:
    return sum(row["bytes"] for row in rows)


def _outputs(outputs: Sequence[Summary]) -> Table:
    """One row per tensor outside the layers, one per run of layers that look alike."""
    table = make_table("tensors", "count", "shape", "dtype", "how", "size", right=("count", "size"))
    outside: dict[str, list[Summary]] = {}
    stacks: dict[str, dict[int, list[Summary]]] = {}
    alone = sum(layer_name(row["name"]) is None for row in outputs) <= MAX_OUTSIDE
    for row in outputs:
        found = layer_name(row["name"])
        if found:
            stacks.setdefault(found.prefix, {}).setdefault(found.index, []).append(row)
        else:
            label = row["name"] if alone else row["name"].partition(".")[0]
            outside.setdefault(label, []).append(row)
    for label, rows in outside.items():
        shape = " × ".join(map(str, rows[0]["shape"])) or "scalar" if len(rows) == 1 else ""
        count = f"{len(rows):,}"
        table.add_row(label, count, shape, _kinds(rows, "dtype"), _kinds(rows, "kind"), _size(rows))
    for prefix, layers in stacks.items():
        for indices, rows in _alike(layers):
            label = ".".join(part for part in (prefix, ranges(indices)) if part)
            count = f"{len(rows) // len(indices):,} × {len(indices)}"
            each = f"{format_bytes(_bytes(rows) // len(indices))} per layer"
            table.add_row(label, count, each, _kinds(rows, "dtype"), _kinds(rows, "kind"), _size(rows))
    return table


def _alike(layers: Mapping[int, list[Summary]]) -> list[tuple[list[int], list[Summary]]]:
    """Put layers together whose tensors have the same names, shapes, dtypes and treatment."""
    found: dict[object, tuple[list[int], list[Summary]]] = {}
    for index, rows in sorted(layers.items()):
        key = tuple(
            sorted((_suffix(r["name"]), *map(str, (r["shape"], r["dtype"], r["kind"]))) for r in rows)
        )
        indices, members = found.setdefault(key, ([], []))
        indices.append(index)
        members += rows
    return list(found.values())


def _suffix(name: str) -> str:
    found = layer_name(name)
    return found.suffix if found else name


def _kinds(rows: Sequence[Summary], key: str) -> str:
    counts = Counter(row[key] for row in rows)
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{n:,} {kind}" for kind, n in counts.items())


def _size(rows: Sequence[Summary]) -> str:
    return format_bytes(_bytes(rows))


def _shards(shards: Sequence[Summary]) -> Table:
    table = make_table("file", "tensors", "size", right=("tensors", "size"))
    for shard in shards:
        table.add_row(shard["file"], f"{shard['tensors']:,}", format_bytes(shard["bytes"]))
    return table


def _work(summary: Summary) -> Table:
    table = make_table("", "")
    table.show_header = False
    table.columns[0].style = "dim"
    tasks = sorted(summary["tasks"].items(), key=lambda item: -item[1])
    table.add_row("tasks", " · ".join(f"{kind} {n:,}" for kind, n in tasks))
    read, streamed = summary["bytes_read"], summary["bytes_streamed"]
    again = f", {format_bytes(streamed)} in all passes" if streamed > read else ""
    table.add_row("read", f"{format_bytes(read)}{again}")
    table.add_row("write", format_bytes(summary["bytes_written"]))
    free, need = summary["free_disk"], summary["bytes_written"]
    if free is not None:
        table.add_row("free disk", format_bytes(free), style=None if free >= need else "bold red")
        if free < need:
            table.add_row("", f"{format_bytes(need - free)} short of what is written", style="bold red")
    peak, budget = summary["peak_bytes"], summary["memory_budget"]
    table.add_row(
        "memory",
        f"{memory_text(peak)} proven peak, {memory_text(budget)} allowed, "
        f"{plural(summary['threads'], 'thread')}",
    )
    if summary["vram_budget"]:
        peak, budget = summary["vram_peak_bytes"], summary["vram_budget"]
        table.add_row(
            "GPU memory", f"{memory_text(peak)} proven peak, {memory_text(budget)} allowed, on each"
        )
    table.add_row("runs on", f"{summary['device']}: {summary['device_reason']}")
    return table


def _show_names(console: Console, title: str, names: Sequence[str]) -> None:
    if names:
        heading(console, f"{title}: {plural(len(names), 'tensor')}")
        bullet_names(console, names)


def _show_dropped(console: Console, dropped: Sequence[Summary]) -> None:
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in dropped:
        reasons.setdefault((row["model"], row["reason"]), []).append(row["tensor"])
    for (model, reason), names in reasons.items():
        _show_names(console, f"Dropped from {model} ({reason})", names)


def _show_partial(console: Console, partial: Sequence[Summary]) -> None:
    missing: dict[str, list[str]] = {}
    for row in partial:
        models = row["missing_from"]
        missing.setdefault(models if isinstance(models, str) else ", ".join(models), []).append(row["tensor"])
    for model, names in missing.items():
        _show_names(console, f"Not in {model}", names)


def _show_differences(console: Console, differences: Sequence[Summary]) -> None:
    if not differences:
        return
    heading(console, f"Config keys that differ: {len(differences):,}")
    table = make_table("key", "value", "in")
    for row in differences:
        values: dict[str, list[str]] = {}
        for model, value in row["values"].items():
            text = json.dumps(value, ensure_ascii=False, default=str)
            values.setdefault(text, []).append(model)
        key = row["key"]
        for text, models in values.items():
            table.add_row(key, clip(text), ", ".join(models))
            key = ""
    console.print(table)
