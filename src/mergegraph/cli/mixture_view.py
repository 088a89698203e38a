"""How a mixture of experts looks: its sizes before a run, its routers after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from mergegraph.cli.render import heading, make_table, plural, say

MOST_EXPERTS = 16
"""Tables of more experts are cut: ``--json`` has them all."""


def show_mixture(console: Console, facts: Mapping[str, Any]) -> None:
    """Print the facts of a mixture that ``plan --json`` has under ``mixture``."""
    heading(console, f"Model: {facts['architecture']}")
    table = make_table("", "")
    table.show_header = False
    table.columns[0].style = "dim"
    if "experts" in facts:
        shared = facts.get("shared_experts")
        beside = f", and {plural(shared, 'shared expert')}" if shared else ""
        count = f"{plural(facts['experts'], 'expert')}, {facts['experts_per_token']} for each token{beside}"
        table.add_row("experts", count)
    active = facts.get("parameters_active")
    used = f", {number(active)} of them active for a token" if active is not None else ""
    before = facts.get("parameters_before")
    was = f" ({number(before)} before)" if before is not None else ""
    table.add_row("parameters", f"{number(facts['parameters'])}{was}{used}")
    routers = facts.get("routers")
    if routers:
        shapes = dict.fromkeys(" × ".join(map(str, shape)) for shape in routers.values())
        mode = facts["gate_mode"]
        table.add_row("routers", f"{plural(len(routers), 'tensor')} of {', '.join(shapes)}: gate_mode {mode}")
    console.print(table)
    if facts.get("origins"):
        heading(console, "Where the parameters come from")
        origins = make_table("from", "parameters", right=("parameters",))
        for name, size in facts["origins"].items():
            origins.add_row(name, number(size))
        console.print(origins)


def number(n: int) -> str:
    """Render a number of parameters: ``1.10 B``, ``45.6 M``, ``1,234``."""
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if n >= size:
            return f"{n / size:.2f} {unit}"
    return f"{n:,}"


def show_routers(console: Console, report: Mapping[str, Any]) -> None:
    """Print what is known of router rows that were computed from prompts."""
    again = ", found in the cache" if report["cached"] else ""
    prompts = plural(report["prompts"], "prompt")
    heading(console, f"Routers: gate_mode {report['mode']}, {prompts}, {report['tokens']:,} tokens{again}")
    layers: Sequence[Mapping[str, Any]] = report["layers"]
    conditions = [layer["condition"] for layer in layers]
    known = [c for c in conditions if c is not None]
    if known:
        worst = max(range(len(layers)), key=lambda i: conditions[i] or 0.0)
        text = f"  condition number of the rows: {min(known):.2f} to {max(known):.2f} (layer {worst})"
        say(console, text)
    table = make_table("expert", "share of all prompts", "of its own", "most like")
    for e, name in enumerate(report["experts"][:MOST_EXPERTS]):
        load = _mean(layer["balance"]["load"][e] for layer in layers)
        own = _mean(layer["balance"]["own"][e] for layer in layers)
        row = report["overlap"][e]
        others = [i for i in range(len(row)) if i != e]
        like = max(others, key=lambda i: row[i]) if others else None
        near = "" if like is None else f"{report['experts'][like]} (cosine {row[like]:.2f})"
        table.add_row(name, f"{load:.0%}", f"{own:.0%}", near)
    console.print(table)
    if len(report["experts"]) > MOST_EXPERTS:
        say(console, f"  … and {len(report['experts']) - MOST_EXPERTS} more", "dim")
    for note in report["notes"]:
        say(console, f"  • {note}")


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found) if found else 0.0
