"""The whole model as one self-contained HTML page: overview, layers, tensors, expressions, search.

The page carries data, not drawings: expressions that differ only in the tensor's name are stored
once, so a checkpoint of twenty thousand tensors is a page of a few megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from mergegraph.graph.graph import Graph, Output
from mergegraph.graph.outline import Group, layer_name, moved, outline
from mergegraph.graph.script import SCRIPT
from mergegraph.graph.svg import colours, overview
from mergegraph.graph.text import Expression, bindings, expression

NAME, SUFFIX = "\x01", "\x02"
"""Stand for the output's own name, and its name within the layer, in stored bindings."""

_CSS = """
:root { color-scheme: light; --page:#fff; --box:#f7f8fa; --line:#c9d0da; --ink:#1d2430; --dim:#5c6878;
  --hot:#dfe9f7; --accent:#2563b8; }
:root[data-theme=dark] { color-scheme: dark; --page:#12161d; --box:#1c222c; --line:#3a4453; --ink:#e8ecf2;
  --dim:#9aa6b6; --hot:#26364d; --accent:#7fb0f5; }
* { box-sizing: border-box; }
body { margin: 0; height: 100vh; display: flex; flex-direction: column; background: var(--page);
  color: var(--ink); font: 14px/1.45 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header { display: flex; gap: 12px; align-items: center; padding: 10px 16px;
  border-bottom: 1px solid var(--line); }
h1 { font-size: 16px; margin: 0; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; flex: 1; }
input, button { font: inherit; color: inherit; background: var(--box); border: 1px solid var(--line);
  border-radius: 6px; padding: 5px 10px; }
input { width: 360px; }
button { cursor: pointer; }
button:hover, button[aria-pressed=true] { background: var(--hot); border-color: var(--accent); }
main { flex: 1; display: flex; min-height: 0; }
#map { flex: 0 1 46%; overflow: auto; border-right: 1px solid var(--line); }
#map svg { width: 100%; height: auto; display: block; max-width: 860px; margin: auto; }
#detail { flex: 1 1 54%; overflow: auto; padding: 16px 20px; min-width: 0; }
h2 { font: 600 16px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  margin: 0 0 4px; overflow-wrap: anywhere; }
.dim { color: var(--dim); fill: var(--dim); }
.ink { fill: var(--ink); }
.page { fill: var(--page); }
.box { fill: var(--box); stroke: var(--line); }
.group { cursor: pointer; outline: none; }
.group:hover .box, .group:focus-visible .box { stroke: var(--accent); }
.group.on .box { fill: var(--hot); stroke: var(--accent); stroke-width: 2; }
.faded { stroke-opacity: .1; }
.layers { display: flex; flex-wrap: wrap; gap: 4px; margin: 12px 0; max-height: 150px; overflow: auto; }
.layers button { min-width: 38px; padding: 2px 6px; font-variant-numeric: tabular-nums; }
.tensors { margin: 12px 0; border-top: 1px solid var(--line); }
.row { display: grid; grid-template-columns: minmax(0, 1fr) 190px 70px 84px; gap: 12px; width: 100%;
  text-align: left; border: 0; border-bottom: 1px solid var(--line); border-radius: 0; background: none;
  padding: 6px 8px; }
.row > :last-child { text-align: right; }
.mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 12.5px; overflow-wrap: anywhere; }
.open { padding: 10px 8px 14px; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; }
.code { white-space: pre; line-height: 1.6; overflow-wrap: normal; margin-top: 8px; }
.code .ref { color: var(--accent); cursor: default; }
.code .lit, .dag .ref.lit rect { background: var(--hot); }
.dag text { font-size: 11px; fill: var(--ink); }
.dag text.dim { fill: var(--dim); }
.dag .ref rect { fill: var(--box); stroke: var(--line); }
.dag .ref.lit rect { fill: var(--hot); stroke: var(--accent); }
.dag path { fill: none; stroke: var(--dim); stroke-opacity: .6; }
@media (max-width: 900px) { main { flex-direction: column; } #map { flex: 0 0 40%; border-right: 0;
  border-bottom: 1px solid var(--line); } input { width: 180px; } }
"""


def html(graph: Graph, title: str, sources: Mapping[str, str]) -> str:
    """Return a page that shows the whole of `graph`, and each tensor of it on demand.

    Args:
        graph: what to show.
        title: heading.
        sources: short label of each source key.
    """
    groups = outline(graph)
    heading = escape(title)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{heading}</title><style>{_CSS}</style></head><body>",
            f"<header><h1>{heading}</h1>",
            '<input id="search" type="search" placeholder="Find tensors: words, in any order" '
            'aria-label="Find tensors" autocomplete="off">',
            '<button id="theme" type="button">Light / dark</button></header>',
            f'<main><div id="map">{overview(groups, "Whole model", sources)}</div>',
            '<div id="detail" aria-live="polite"></div></main>',
            f'<script type="application/json" id="data">{_embed(_data(groups, sources))}</script>',
            f"<script>{SCRIPT}</script></body></html>",
            "",
        ]
    )


def _embed(data: object) -> str:
    """JSON that no tensor name can end the script element from."""
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _data(groups: tuple[Group, ...], sources: Mapping[str, str]) -> dict[str, Any]:
    """Everything the script shows. Tensors are ``[name, spec, kind, bytes, expression, binding]``."""
    expressions, bound = _Table(), _Table()
    numbers = {key: i for i, key in enumerate(sources)}
    # Outputs share expression objects; equal ones may still come from different plan lines.
    known: dict[tuple[int, ...], int] = {}
    drawn = []
    for group in groups:
        layers = []
        for layer in group.layers:
            tensors = []
            for name, output in layer.tensors:
                key = tuple(id(part.expression) for part in output.parts)
                if key not in known:
                    known[key] = expressions.add(_stored(expression(output)))
                spec = output.spec
                binding = bound.add(_binding(name, output, numbers))
                tensors.append([name, str(spec), output.kind, spec.nbytes, known[key], binding])
            layers.append({"index": layer.index, "tensors": tensors})
        facts = {"label": group.label, "ops": group.ops, "bytes": group.nbytes}
        drawn.append({**facts, "moved": moved(group, sources), "layers": layers})
    tint = colours(sources)
    return {
        "groups": drawn,
        "expressions": expressions.rows,
        "bindings": bound.rows,
        "sources": [[label, tint[key]] for key, label in sources.items()],
    }


class _Table:
    """Values that are stored once, each with a number."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self._numbers: dict[str, int] = {}

    def add(self, value: Any) -> int:
        """Return the number of `value`."""
        number = self._numbers.setdefault(json.dumps(value), len(self.rows))
        if number == len(self.rows):
            self.rows.append(value)
        return number


def _stored(found: Expression) -> list[Any]:
    lines = [[line.call, line.spec, line.note, line.inputs, line.op, line.slot] for line in found.lines]
    return [found.pieces, lines]


def _binding(name: str, output: Output, numbers: Mapping[str, int]) -> list[Any]:
    """``[[source number or key, tensor], …]``, free of the output's own name where it can be."""
    parts = layer_name(name)
    suffix = f".{parts.suffix}" if parts else None
    rows: list[Any] = []
    for source in bindings(output):
        tensor = source.tensor
        if tensor == name:
            tensor = NAME
        elif suffix and tensor.endswith(suffix):
            tensor = tensor.removesuffix(suffix) + SUFFIX
        rows.append([numbers.get(source.checkpoint, source.checkpoint), tensor])
    return rows
