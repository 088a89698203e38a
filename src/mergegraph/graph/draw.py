"""Pictures of a graph, by file extension. Each is a function (graph, title, sources) → text.

``svg`` is the whole model, one box per group of like layers; ``html`` adds what is inside each;
``dot`` and ``graphml`` hold every node, for other tools.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from mergegraph.graph.digraph import graphml
from mergegraph.graph.graph import Graph, Output
from mergegraph.graph.outline import layer_name, outline
from mergegraph.graph.page import html
from mergegraph.graph.svg import colours, svg
from mergegraph.graph.text import bindings, expression, source_text

Drawing = Callable[[Graph, str, Mapping[str, str]], str]


def dot(graph: Graph, title: str, sources: Mapping[str, str]) -> str:
    """Return every node of `graph` in Graphviz's language, one cluster per layer.

    Args:
        graph: what to draw.
        title: label of the whole drawing.
        sources: short label of each source key.
    """
    tint = colours(sources)
    rows = [
        "digraph mergegraph {",
        f"  graph [label={_quote(title)}, labelloc=t, rankdir=LR, fontname=Helvetica];",
        "  node [shape=box, style=rounded, fontname=Helvetica, fontsize=10];",
        "  edge [color=gray50];",
    ]
    clusters = 0
    for group in outline(graph):
        for layer in group.layers:
            found = layer_name(layer.tensors[0][0])
            label = f"{found.prefix}.{found.index}".lstrip(".") if found else group.label
            rows.append(f"  subgraph cluster_{clusters} {{")
            rows.append(f"    label={_quote(label)};")
            for i, (name, output) in enumerate(layer.tensors):
                rows += _output(f"c{clusters}_{i}", name, output, sources, tint)
            rows.append("  }")
            clusters += 1
    return "\n".join([*rows, "}", ""])


def _output(
    stem: str, name: str, output: Output, sources: Mapping[str, str], tint: Mapping[str, str]
) -> Iterator[str]:
    """One output and its values. Values that outputs share are drawn for each: clusters stay apart."""
    found, bound = expression(output), bindings(output)
    for i, line in enumerate(found.lines):
        _, _, tail = line.call.partition("; ")
        label, style = f"{line.op}; {tail[:-1]}" if tail else line.op, ""
        if line.slot is not None:
            source = bound[line.slot]
            label = source_text(source, sources)
            style = f", color={_quote(tint.get(source.checkpoint, 'black'))}"
        yield f"    {stem}_{i} [label={_quote(label, line.spec)}{style}];"
        for operand in line.inputs:
            yield f"    {stem}_{operand} -> {stem}_{i};"
    yield f"    {stem} [label={_quote(name, str(output.spec))}, shape=box3d, style=solid];"
    for piece in found.pieces:
        yield f"    {stem}_{piece} -> {stem};"


def _quote(*lines: str) -> str:
    """A quoted string; what Graphviz would take for an escape or the end of the string is escaped."""
    inside = "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") for line in lines)
    return f'"{inside}"'


FORMATS: Mapping[str, Drawing] = {"html": html, "svg": svg, "dot": dot, "graphml": graphml}
"""The drawing of each file extension."""
