"""Which input tensors go into which output tensor: slices laid end to end, tied heads, leftovers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from mergegraph.architectures.roles import is_head
from mergegraph.checkpoint.names import split_layer, with_layer
from mergegraph.compiler.experts import Place
from mergegraph.compiler.inputs import Input
from mergegraph.plan.merge import MergePlan, Slice, Source
from mergegraph.plan.values import ModelRef


class Operand(NamedTuple):
    """One input of an output tensor.

    Attributes:
        input: the model.
        source: its entry in the plan.
        name: its name, with its own layer number, in the donor's spelling.
        place: where the tensor lies; None if the model lacks it.
    """

    input: Input
    source: Source
    name: str
    place: Place | None

    @property
    def filter_name(self) -> str:
        """What parameter filters see: the name, and where experts are stored otherwise also that."""
        return self.input.filtered(self.name)


class Group(NamedTuple):
    """An output tensor and its operands, in plan order.

    `t` is the position of its layer within its
    slice (0 outside layers); `part` the slice that its parameters come from; `position` its place between
    the first and the last layer of the output (0 before the layers, 1 after them).
    """

    name: str
    part: Slice
    t: float
    operands: tuple[Operand, ...]
    position: float

    @property
    def filter_name(self) -> str:
        """What filters of shared parameters see: the name, and what else inputs call it."""
        others = (other for o in self.operands for other in o.input.other_names(self.name))
        return "\n".join(dict.fromkeys((self.name, *others)))


class Layer(NamedTuple):
    """What the output tensors of one layer have in common.

    Attributes:
        part: see `Group`, like `t` and `position`.
        members: of each operand its model, its entry in the plan, and what its name begins with.
    """

    part: Slice
    t: float
    position: float
    members: tuple[tuple[Input, Source, str], ...]


class Row(NamedTuple):
    """An output tensor and where its operands lie: a `Group` that has not been spelt out.

    Attributes:
        name: of the output.
        suffix: its name below the layer; empty outside the decoder layers.
        places: of each operand; None if the model lacks it.
        layer: what it shares with the rest of its layer.
    """

    name: str
    suffix: str
    places: tuple[Place | None, ...]
    layer: Layer

    def group(self) -> Group:
        """Spell it out."""
        part, t, position, members = self.layer
        found = zip(members, self.places, strict=True)
        operands = tuple(Operand(m, s, start + self.suffix, place) for (m, s, start), place in found)
        return Group(self.name, part, t, operands, position)


def as_slices(plan: MergePlan) -> tuple[Slice, ...]:
    """The plan's slices; ``models:`` become one slice over all layers, an unlisted base comes last."""
    if plan.slices or not plan.models:
        return plan.slices
    sources = plan.models
    base = plan.base_model
    if base is not None and base not in [s.model for s in sources]:
        origin = plan.base_origin or sources[0].origin
        sources = (*sources, Source(base, None, {}, origin))
    return (Slice(sources, None, {}, sources[0].origin),)


def layer_range(source: Source, model: Input) -> tuple[int, int]:
    """The source's half-open range of layers; all of them if it does not say."""
    return source.layer_range or (0, model.layers)


def comparable(slices: tuple[Slice, ...], inputs: Mapping[ModelRef, Input]) -> tuple[Slice, ...]:
    """What can be compared where the plan as a whole cannot be compiled.

    Models that are not in `inputs` are left out, and ranges that go too far are cut.
    """
    parts = []
    for part in slices:
        sources = [s for s in part.sources if s.model in inputs]
        spans = [layer_range(s, inputs[s.model]) for s in sources]
        lengths = [
            min(end, inputs[s.model].layers) - start for s, (start, end) in zip(sources, spans, strict=True)
        ]
        length = max(min(lengths, default=0), 0)
        cut = [
            replace(s, layer_range=(start, start + length))
            for s, (start, _) in zip(sources, spans, strict=True)
        ]
        if cut:
            parts.append(replace(part, sources=tuple(cut)))
    return tuple(parts)


def groups(slices: tuple[Slice, ...], inputs: Mapping[ModelRef, Input], donor: Input) -> Iterator[Group]:
    """Yield a group per output tensor: before the layers, the layers, after the layers."""
    return (row.group() for row in rows(slices, inputs, donor))


def rows(slices: tuple[Slice, ...], inputs: Mapping[ModelRef, Input], donor: Input) -> Iterator[Row]:
    """Yield what `groups` does, not spelt out: most tensors are made as those of the layer before."""
    first, last = slices[0], slices[-1]
    before = _outside(first, inputs)
    after = (before if first is last else _outside(last, inputs)) | _heads(inputs)
    at_input = {name: None for model in inputs.values() for name in model.at_input}
    yield from (_flat(name, first, inputs, 0.0) for name in before if name in at_input)
    prefix = donor.stack.prefix if donor.stack else ""
    lengths = [end - start for start, end in (_span(part, inputs) for part in slices)]
    position = 0
    for part, length in zip(slices, lengths, strict=True):
        for k in range(length):
            yield from _layer(part, inputs, prefix, (position, sum(lengths)), (k, length))
            position += 1
    yield from (_flat(name, last, inputs, 1.0) for name in after if name not in at_input)


def _span(part: Slice, inputs: Mapping[ModelRef, Input]) -> tuple[int, int]:
    return layer_range(part.sources[0], inputs[part.sources[0].model])


def _outside(part: Slice, inputs: Mapping[ModelRef, Input]) -> dict[str, None]:
    return {name: None for s in part.sources for name in inputs[s.model].outside}


def _heads(inputs: Mapping[ModelRef, Input]) -> dict[str, None]:
    """Heads of any input: where one model is untied, the others' heads are their embeddings."""
    return {name: None for model in inputs.values() for name in model.outside if is_head(name)}


def _flat(name: str, part: Slice, inputs: Mapping[ModelRef, Input], position: float) -> Row:
    """A tensor outside the decoder layers. In another stack (vision, encoder) its place is that in it."""
    t = 0.0
    for stack in inputs[part.sources[0].model].stacks:
        place = split_layer(name, stack.prefix)
        if place is not None:
            t = position = _position(place[0], stack.count)
    members = tuple((inputs[s.model], s, name) for s in part.sources)
    return Row(name, "", tuple(m.find(name) for m, _, _ in members), Layer(part, t, position, members))


def _layer(
    part: Slice,
    inputs: Mapping[ModelRef, Input],
    prefix: str,
    overall: tuple[int, int],
    within: tuple[int, int],
) -> Iterator[Row]:
    """The tensors of one layer: its number and the count of layers, in the output and in its slice."""
    k, length = within
    suffixes: dict[str, None] = {}
    members = []
    for source in part.sources:
        model = inputs[source.model]
        number = layer_range(source, model)[0] + k
        suffixes |= model.by_layer[number]
        members.append((model, source, with_layer(model.stack.prefix if model.stack else prefix, number, "")))
    layer = Layer(part, _position(k, length), _position(*overall), tuple(members))
    own = with_layer(prefix, overall[0], "")
    finding = [(model.find, start) for model, _, start in members]
    for suffix in suffixes:
        yield Row(own + suffix, suffix, tuple([find(start + suffix) for find, start in finding]), layer)


def _position(k: int, length: int) -> float:
    return k / (length - 1) if length > 1 else 1.0
