"""The shape of a graph for people: which tensors belong to which layer, and which layers are alike.

Layers are recognised by names alone (``model.layers.7.mlp.up_proj.weight``), so an unknown
architecture is drawn as well as a known one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mergegraph.graph.graph import Graph, Output, SourceTensor
from mergegraph.graph.node import Locality, Node, walk

_LAYER = re.compile(r"(?:(.*?)\.)?(\d+)\.(.+)", re.DOTALL)
MAX_OUTSIDE = 8
"""More groups of tensors outside layers than this are joined by the first part of their names."""


@dataclass(frozen=True, slots=True)
class LayerName:
    """A tensor name taken apart: ``model.layers`` · 7 · ``mlp.up_proj.weight``."""

    prefix: str
    index: int
    suffix: str


def layer_name(name: str) -> LayerName | None:
    """Split `name` at its first number; None if it belongs to no layer."""
    match = _LAYER.fullmatch(name)
    return LayerName(match[1] or "", int(match[2]), match[3]) if match else None


def ranges(numbers: Iterable[int]) -> str:
    """Render ``[0, 1, 2, 5]`` as ``0–2, 5``."""
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs)


@dataclass(frozen=True, slots=True)
class Layer:
    """The tensors of one layer, or of one group outside all layers (`index` is None)."""

    index: int | None
    tensors: tuple[tuple[str, Output], ...]

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return sum(output.spec.nbytes for _, output in self.tensors)


@dataclass(frozen=True, slots=True)
class Group:
    """Layers that are computed alike, or tensors outside the layers.

    Attributes:
        label: ``model.layers.0–21`` or ``lm_head``.
        layers: the layers, in order; exactly one when the group lies outside all layers.
        ops: how many nodes of each op the whole group has.
        sources: bytes loaded from each source key.
        kinds: how many outputs are merged, copied, checked.
        origins: layers read from each source key.
    """

    label: str
    layers: tuple[Layer, ...]
    ops: Mapping[str, int]
    sources: Mapping[str, int]
    kinds: Mapping[str, int]
    origins: Mapping[str, tuple[int, ...]]

    @property
    def nbytes(self) -> int:
        """Bytes written."""
        return sum(layer.nbytes for layer in self.layers)

    @property
    def count(self) -> int:
        """Number of tensors."""
        return sum(len(layer.tensors) for layer in self.layers)


def outline(graph: Graph) -> tuple[Group, ...]:
    """Group the outputs of `graph`: layers that are computed alike share a group."""
    stacks: dict[str, dict[int, list[tuple[str, Output]]]] = {}
    outside: dict[str, list[tuple[str, Output]]] = {}
    order: dict[tuple[str, bool], None] = {}
    labels = _outside_labels(graph)
    for name, output in graph.outputs.items():
        found = layer_name(name)
        key = found.prefix if found else labels[name]
        order[key, found is not None] = None
        if found:
            stacks.setdefault(key, {}).setdefault(found.index, []).append((name, output))
        else:
            outside.setdefault(key, []).append((name, output))
    groups: list[Group] = []
    for key, is_stack in order:
        if is_stack:
            groups += _alike(key, [Layer(i, tuple(t)) for i, t in sorted(stacks[key].items())])
        else:
            groups.append(_group(key, [Layer(None, tuple(outside[key]))]))
    return tuple(groups)


def _outside_labels(graph: Graph) -> dict[str, str]:
    """Map each name outside the layers to its module, or to a wider one if there are many."""
    names = [name for name in graph.outputs if layer_name(name) is None]
    modules = {name: name.rpartition(".")[0] or name for name in names}
    if len(set(modules.values())) <= MAX_OUTSIDE:
        return modules
    return {name: name.partition(".")[0] for name in names}


def _alike(prefix: str, layers: Sequence[Layer]) -> list[Group]:
    """Put the layers of a stack that are computed alike together, by first layer."""
    found: dict[object, list[Layer]] = {}
    for layer in layers:
        found.setdefault(_signature(layer), []).append(layer)
    dot = "." if prefix else ""
    return [
        _group(f"{prefix}{dot}{ranges(layer.index or 0 for layer in same)}", same) for same in found.values()
    ]


def _group(label: str, layers: Sequence[Layer]) -> Group:
    ops: Counter[str] = Counter()
    loads: dict[SourceTensor, int] = {}
    kinds: Counter[str] = Counter()
    for layer in layers:
        for _, output in layer.tensors:
            kinds[output.kind] += 1
            for part in output.parts:
                for item in walk([part.expression]):
                    if item.op.locality is Locality.SOURCE:
                        loads[part.sources[item.attributes["slot"]]] = item.spec.nbytes
                    elif item.inputs:
                        ops[item.op.name] += 1
    sources: Counter[str] = Counter()
    origins: dict[str, dict[int, None]] = {}
    for source, nbytes in loads.items():
        sources[source.checkpoint] += nbytes
        if (found := _place(source)) is not None:
            origins.setdefault(source.checkpoint, {})[found.index] = None
    return Group(
        label,
        tuple(layers),
        {"load": len(loads), **ops},
        dict(sources),
        dict(kinds),
        {key: tuple(indices) for key, indices in origins.items()},
    )


def moved(group: Group, sources: Mapping[str, str]) -> str:
    """Say which layers the inputs have at other places: ``from llama_b 8–23``; empty if none."""
    here = [layer.index for layer in group.layers]
    parts = [
        f"{label} {ranges(group.origins[key])}"
        for key, label in sources.items()
        if None not in here and group.origins.get(key) and sorted(group.origins[key]) != here
    ]
    return f"from {', '.join(parts)}" if parts else ""


def _signature(layer: Layer) -> object:
    """What makes two layers alike: everything but parameter values and the layer number."""
    index = layer.index or 0
    return tuple(
        (
            _relative(name, layer_name(name), index),
            output.spec,
            tuple(
                (
                    _shape(part.expression),
                    tuple((s.checkpoint, _relative(s.tensor, _place(s), index)) for s in part.sources),
                )
                for part in output.parts
            ),
        )
        for name, output in layer.tensors
    )


def _place(source: SourceTensor) -> LayerName | None:
    """The layer that a source belongs to; the number that fills a tensor is none."""
    if source.filled is not None:
        return None
    # Rows of routers have no other name than their layer's: ``layers.7``.
    return layer_name(source.tensor) or layer_name(f"{source.tensor}.*")


def _relative(name: str, found: LayerName | None, index: int) -> tuple[str, int, str]:
    return (found.prefix, found.index - index, found.suffix) if found else ("", 0, name)


def _shape(root: Node) -> tuple[object, ...]:
    """The structure of an expression: ops, attributes and specs."""
    numbers: dict[bytes, int] = {}
    rows: list[object] = []
    for item in walk([root]):
        # Constants are left out, equal or not: a gradient must not pull layers apart.
        if item.op.name == "constant":
            continue
        numbers[item.key] = len(numbers)
        inputs = tuple((numbers.get(x.key), x.spec) for x in item.inputs)
        rows.append((item.op.name, item.attrs, item.spec, inputs))
    return tuple(rows)
