"""The graph as a `networkx` graph: for GraphML files, and for analyses that are not ours to write."""

from __future__ import annotations

from collections.abc import Mapping

import networkx as nx

from mergegraph.graph.graph import Graph
from mergegraph.graph.node import Locality, walk


def to_networkx(graph: Graph, sources: Mapping[str, str] | None = None) -> nx.DiGraph[str]:
    """Return every node and output of `graph`; edges point from operands to users.

    Node ids are Merkle keys in hexadecimal, and ``output:<name>`` for outputs. Attributes are
    strings and numbers only: ``label``, ``op``, ``locality``, ``spec``, ``bytes``, and ``origin``
    where a plan line is known. Edges have ``position``, the place among the operands.

    Args:
        graph: what to convert.
        sources: short label of each source key, for the labels of loads.
    """
    result: nx.DiGraph[str] = nx.DiGraph()
    for item in walk(piece for output in graph.outputs.values() for piece in output.pieces):
        attrs = item.attributes
        label = item.op.name
        if item.op.locality is Locality.SOURCE and "source" in attrs:
            label = f"{(sources or {}).get(attrs['source'], attrs['source'])}:{attrs['tensor']}"
        elif label == "constant":
            label = ", ".join(map(repr, attrs["values"]))
        result.add_node(
            item.key.hex(),
            label=_clean(label),
            op=item.op.name,
            locality=item.op.locality.value,
            spec=str(item.spec),
            bytes=item.spec.nbytes,
        )
        if item.origin is not None:
            result.nodes[item.key.hex()]["origin"] = str(item.origin)
        # An operand may be used twice, but a simple digraph has one edge for it: the last place wins.
        for position, operand in enumerate(item.inputs):
            result.add_edge(operand.key.hex(), item.key.hex(), position=position)
    for name, output in graph.outputs.items():
        target = f"output:{_clean(name)}"
        spec = str(output.spec)
        result.add_node(target, label=_clean(name), op="output", locality=output.kind, spec=spec)
        result.nodes[target]["bytes"] = output.spec.nbytes
        for position, piece in enumerate(output.pieces):
            result.add_edge(piece.key.hex(), target, position=position)
    return result


def graphml(graph: Graph, title: str, sources: Mapping[str, str]) -> str:
    """Return `graph` as GraphML, which yEd, Gephi and networkx read.

    Args:
        graph: what to write.
        title: name of the graph.
        sources: short label of each source key.
    """
    result = to_networkx(graph, sources)
    result.graph["title"] = _clean(title)
    return "\n".join(nx.generate_graphml(result)) + "\n"


def _clean(text: str) -> str:
    """Replace what XML cannot hold: names come from files that nobody has checked for it."""
    return "".join(c if c.isprintable() or c == " " else "\N{REPLACEMENT CHARACTER}" for c in text)
