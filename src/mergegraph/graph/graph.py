"""A graph is its outputs. Writes are not nodes: the runtime streams each output as it comes.

Thousands of outputs share a handful of expressions, so an expression is written over numbered
slots, once, and each output binds the slots to its own checkpoint tensors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Literal, NamedTuple

from mergegraph.checkpoint.view import View
from mergegraph.graph.node import Locality, Node, node, walk
from mergegraph.tensorspec import TensorSpec

OutputKind = Literal["merged", "copied", "checked", "filled"]

FILL = ""
"""The key of no checkpoint: its "tensors" are numbers, and every element is that number."""


class SourceTensor(NamedTuple):
    """A tensor of an input checkpoint, or a part of it: the checkpoint's key, and the tensor's name in it."""

    checkpoint: str
    tensor: str
    view: View | None = None

    @property
    def filled(self) -> float | None:
        """The value of every element, if this is no tensor of a checkpoint."""
        return float(self.tensor) if self.checkpoint == FILL else None

    @property
    def name(self) -> tuple[str, str]:
        """The checkpoint's key and the tensor's name."""
        return self.checkpoint, self.tensor

    @property
    def label(self) -> str:
        """The tensor's name, and the part if it is one."""
        return self.tensor if self.view is None else f"{self.tensor}[{self.view}]"


class Piece(NamedTuple):
    """An expression over slots, and the checkpoint tensors bound to them (slot i is ``sources[i]``).

    Elements are numbered within a piece. `streams` gives each slot its random stream, if the expression
    draws at random. `place` says where in the output the elements go; None: right after the piece before.
    `window` (first element, count) is the part of the expression's elements that is wanted; None: all.
    """

    expression: Node
    sources: tuple[SourceTensor, ...]
    streams: tuple[tuple[float, float], ...] = ()
    place: View | None = None
    window: tuple[int, int] | None = None

    def bound(self) -> Node:
        """The expression with its ``load`` nodes naming checkpoint tensors instead of slots."""
        built: dict[bytes, Node] = {}
        for n in walk([self.expression]):
            if n.op.locality is Locality.SOURCE:
                attrs = n.attributes
                source = self.sources[attrs.pop("slot")]
                built[n.key] = node(n.op, source=source.checkpoint, tensor=source.label, **attrs)
            else:
                inputs = [built[x.key] for x in n.inputs]
                built[n.key] = node(n.op, *inputs, origin=n.origin, **n.attributes)
        return built[self.expression.key]


class Output(NamedTuple):
    """One tensor to write: an ordered list of pieces, each the next run of elements unless it says its place.

    Most outputs are a single piece. Stacked experts and remapped vocabularies are several, and
    each streams to its own byte range.
    """

    spec: TensorSpec
    parts: tuple[Piece, ...]

    @property
    def pieces(self) -> tuple[Node, ...]:
        """The bound expressions, for showing."""
        return tuple(part.bound() for part in self.parts)

    @property
    def kind(self) -> OutputKind:
        """``copied``: bytes of inputs; ``checked``: once all inputs are found equal; ``filled``: of none."""
        names = {part.expression.op.name for part in self.parts}
        if names == {"load"}:
            filled = all(s.filled is not None for part in self.parts for s in part.sources)
            return "filled" if filled else "copied"
        return "checked" if names <= {"load", "identical"} else "merged"


@dataclass(frozen=True)
class Graph:
    """Every output of a plan, by tensor name, in checkpoint order."""

    outputs: Mapping[str, Output]

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that decides the output tensors: names, specs, expressions, sources."""
        digest = blake2b(digest_size=16)
        for name, output in self.outputs.items():
            digest.update(f"{name}\0{output.spec}\0".encode())
            for part in output.parts:
                digest.update(part.expression.key)
                digest.update(repr((part.sources, part.streams, part.place, part.window)).encode())
        return digest.hexdigest()

    def tasks(self) -> Counter[str]:
        """How many tasks of each kind (op name) the graph holds; loads of one tensor count once.

        ``stack_experts`` are the outputs that are put together from several pieces.
        """
        counts: Counter[str] = Counter()
        uses = Counter(part.expression for output in self.outputs.values() for part in output.parts)
        for expression, times in uses.items():
            for n in walk([expression]):
                if n.op.locality is not Locality.SOURCE and n.inputs:
                    counts[n.op.name] += times
        counts["load"] = len(self.sources())
        stacked = sum(len(output.parts) > 1 for output in self.outputs.values())
        return counts + Counter({"stack_experts": stacked}) if stacked else counts

    def sources(self) -> dict[SourceTensor, None]:
        """Every checkpoint tensor that is read, once, in order of first use."""
        parts = (part for output in self.outputs.values() for part in output.parts)
        return {source: None for part in parts for source in part.sources if source.filled is None}

    @property
    def fills(self) -> bool:
        """Whether any output is made of a number, as a whole or in part."""
        parts = (part for output in self.outputs.values() for part in output.parts)
        return any(source.filled is not None for part in parts for source in part.sources)


def filled(value: float) -> SourceTensor:
    """A source of which every element is `value`."""
    return SourceTensor(FILL, repr(float(value)))
