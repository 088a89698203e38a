"""How checkpoints and merge methods look."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from mergegraph.cli.render import clip, heading, make_table, plural, say
from mergegraph.methods.base import MergeMethod, Parameter
from mergegraph.tensorspec import format_bytes

Facts = Mapping[str, Any]


def show_checkpoint(console: Console, facts: Facts) -> None:
    """Print what `engine.inspect` found."""
    say(console, facts["path"], "bold")
    architectures = ", ".join(facts["architectures"] or ()) or "unknown"
    table = make_table("", "")
    table.show_header = False
    table.columns[0].style = "dim"
    table.add_row("architecture", architectures)
    table.add_row("parameters", f"{facts['parameters']:,}")
    table.add_row("tensors", f"{facts['tensors']:,}, {format_bytes(facts['bytes'])}")
    for dtype, part in facts["dtypes"].items():
        table.add_row("", f"{plural(part['tensors'], 'tensor')} {dtype}, {format_bytes(part['bytes'])}")
    for stack in facts["stacks"]:
        table.add_row("layers", f"{stack['count']} in {stack['prefix']}")
    tied = {True: "tied to the input embedding", False: "a tensor of its own", None: "not known"}
    table.add_row("output head", tied[facts["tied"]])
    console.print(table)
    _show_tensors(console, facts["groups"], {s["prefix"]: s["count"] for s in facts["stacks"]})
    _show_shards(console, facts["shards"])
    if facts["config"]:
        heading(console, "Config")
        table = make_table("", "")
        table.show_header = False
        for key, value in facts["config"].items():
            table.add_row(f"  {key}", clip(json.dumps(value, ensure_ascii=False, default=str)))
        console.print(table)
    if facts["sidecars"]:
        heading(console, "Other files")
        say(console, f"  {', '.join(facts['sidecars'])}")


def _show_tensors(console: Console, groups: Sequence[Facts], stacks: Mapping[str, int]) -> None:
    """Tensors outside the layers first, then one layer's; what not every layer has says so."""
    heading(console, "Tensors")
    table = make_table("name", "shape", "dtype", "layers", "parameters", "size", right=("parameters", "size"))
    partly = False
    for group in sorted(groups, key=lambda g: _layers(g["name"], stacks) is not None):
        layers, count = _layers(group["name"], stacks), group["tensors"]
        odd = layers is not None and count != layers
        partly = partly or odd
        table.add_row(
            group["name"],
            " × ".join(map(str, group["shape"])) or "scalar",
            group["dtype"],
            "" if layers is None else f"{count} of {layers}" if odd else f"× {layers}",
            f"{group['parameters']:,}",
            format_bytes(group["bytes"]),
            style="yellow" if odd else None,
        )
    console.print(table)
    if partly:
        say(console, "Rows with “of” are not the same in every layer.", "yellow")


def _layers(name: str, stacks: Mapping[str, int]) -> int | None:
    """How many layers the stack has that `name` (``model.layers.*.…``) belongs to."""
    return next((count for prefix, count in stacks.items() if name.startswith(f"{prefix}.*.")), None)


def _show_shards(console: Console, shards: Sequence[Facts]) -> None:
    heading(console, f"Files: {len(shards):,}")
    table = make_table("file", "tensors", "size", right=("tensors", "size"))
    for shard in shards:
        table.add_row(shard["file"], f"{shard['tensors']:,}", format_bytes(shard["bytes"]))
    console.print(table)


def show_methods(console: Console, methods: Mapping[str, MergeMethod]) -> None:
    """Print one line per method."""
    table = make_table("method", "base", "inputs", "parameters", "what it does")
    for method in methods.values():
        parameters = ", ".join(p.name for p in method.parameters) or "none"
        table.add_row(method.name, method.base, _inputs(method), parameters, method.summary)
    console.print(table)
    console.print()
    say(console, "mergegraph methods NAME shows one of them in full.", "dim")


def _inputs(method: MergeMethod) -> str:
    least, most = method.inputs
    if most is None:
        return f"{least} or more"
    return str(least) if least == most else f"{least} to {most}"


def show_method(console: Console, method: MergeMethod) -> None:
    """Print all there is to know of `method`."""
    say(console, f"{method.name}: {method.summary}", "bold")
    base = {"ignored": "one more input like any other"}.get(method.base, method.base)
    say(console, f"base model: {base}; other inputs: {_inputs(method)}")
    _block(console, "Formula", method.formula)
    heading(console, "Parameters")
    if method.parameters:
        table = make_table("name", "type", "range", "default", "given", "")
        for p in method.parameters:
            given = "per model" if p.scope == "each" else "once"
            table.add_row(f"  {p.name}", p.kind.__name__, _range(p), _default(p), given, p.doc)
        console.print(table)
    else:
        say(console, "  none")
    reference = method.reference
    _block(console, "Reference", f"{reference.paper}\n{reference.link}\n{reference.equation}")
    _block(console, "Deviations", method.deviations)
    _block(console, "A plan that runs", method.example)


def _block(console: Console, title: str, text: str) -> None:
    heading(console, title)
    for line in text.rstrip().splitlines():
        say(console, f"  {line}")


def _range(p: Parameter) -> str:
    if p.minimum is None and p.maximum is None:
        return "any"
    if p.maximum is None:
        return f"≥ {p.minimum:g}"
    return f"≤ {p.maximum:g}" if p.minimum is None else f"{p.minimum:g} to {p.maximum:g}"


def _default(p: Parameter) -> str:
    if p.required:
        return "required"
    return "not set" if p.default is None else str(p.default).lower() if p.kind is bool else str(p.default)


def method_facts(method: MergeMethod) -> dict[str, Any]:
    """Return `method` as JSON-ready data."""
    reference = method.reference
    return {
        "name": method.name,
        "summary": method.summary,
        "formula": method.formula,
        "reference": {"paper": reference.paper, "link": reference.link, "equation": reference.equation},
        "deviations": method.deviations,
        "base": method.base,
        "inputs": {"least": method.inputs[0], "most": method.inputs[1]},
        "parameters": [
            {
                "name": p.name,
                "type": p.kind.__name__,
                "scope": p.scope,
                "required": p.required,
                "default": None if p.required else p.default,
                "minimum": p.minimum,
                "maximum": p.maximum,
                "doc": p.doc,
            }
            for p in method.parameters
        ],
        "example": method.example,
    }
