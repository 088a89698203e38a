"""How an output tensor is made, decided once for all layers that are alike."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

from mergegraph.compiler.groups import Group, Operand, Row
from mergegraph.compiler.resolver import Resolved
from mergegraph.compiler.seeds import stream_of
from mergegraph.graph.graph import Output, Piece, SourceTensor
from mergegraph.graph.node import Node
from mergegraph.graph.simplify import simplify
from mergegraph.methods.base import MergeMethod
from mergegraph.ops import cast, load, stream
from mergegraph.tensorspec import DType, Space, TensorSpec


class Decision(NamedTuple):
    """How an output tensor is made, but for the names in it.

    Attributes:
        expression: what is computed.
        spec: of the output.
        slots: for each slot of the expression: which of the operands it is, the key of its checkpoint, the
            label of its random stream.
        missing: names of the models that lack the tensor.
        tensors: where the outputs of equal parameters are listed; None if no parameter has a part in it.
        random: whether slots have random streams.
        recurs: whether the tensors of other layers with the same specs are made alike.
    """

    expression: Node
    spec: TensorSpec
    slots: tuple[tuple[int, str, str], ...]
    missing: tuple[str, ...]
    tensors: list[str] | None
    random: bool
    recurs: bool

    def bound(self, row: Row, seed: int | None) -> Output:
        """The output `row` made this way."""
        sources = []
        for number, checkpoint, _ in self.slots:
            place = row.places[number]
            assert place is not None
            sources.append(SourceTensor(checkpoint, place.tensor, place.view))
        streams: tuple[tuple[float, float], ...] = ()
        if self.random:
            streams = tuple(stream_of(seed, row.name, label) for _, _, label in self.slots)
        return Output(self.spec, (Piece(self.expression, tuple(sources), streams),))


def decided(
    group: Group,
    expression: Node,
    operands: Sequence[Operand],
    labels: Mapping[str, str],
    *,
    tensors: list[str] | None = None,
    random: bool = False,
    recurs: bool = False,
) -> Decision:
    """The decision that `group` is `expression` over `operands`: some of its own, in their order."""
    chosen = {id(o) for o in operands}
    slots = tuple(
        (number, o.input.key, labels[o.input.name])
        for number, o in enumerate(group.operands)
        if id(o) in chosen
    )
    missing = tuple(o.input.name for o in group.operands if o.place is None)
    spec = expression.spec  # one object for all outputs of an expression
    if spec.space is not Space.WEIGHT:
        spec = TensorSpec(spec.shape, spec.dtype)
    return Decision(expression, spec, slots, missing, tensors, random, recurs)


def expression_of(
    method: MergeMethod,
    specs: Sequence[TensorSpec],
    roles: Sequence[str],
    resolved: Resolved,
    out: DType,
    *,
    wide: bool,
) -> Node:
    """The expression over slots; outputs with equal specs and parameters share it.

    `roles` are ``base`` or ``model``, for each slot; if `wide`, it computes in float64.
    """
    shared, each = resolved
    loads = [cast(load(i, spec), dtype="F64") if wide else load(i, spec) for i, spec in enumerate(specs)]
    base = next((x for x, role in zip(loads, roles, strict=True) if role == "base"), None)
    models = tuple(x for x, role in zip(loads, roles, strict=True) if role == "model")
    if method.random and models:
        slots = [i for i, role in enumerate(roles) if role == "model"]
        each = tuple(v.including("stream", stream(i)) for v, i in zip(each, slots, strict=True))
    result = method.build(base, models, shared, each) if models else base
    return simplify(cast(result, dtype=out.name))


def likeness(row: Row) -> Hashable:
    """What tensors of two layers have in common that are made alike, if parameters do not tell them apart.

    Slices and specs go by identity: they live as long as the compilation, headers share equal specs, and
    equal ones that are two only cost a decision.
    """
    return (id(row.layer.part), row.suffix, *[id(place and place.spec) for place in row.places])
