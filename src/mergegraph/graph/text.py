"""The expression of an output as text: a numbered list of values, every parameter in full.

::

    model.layers.0.mlp.up_proj.weight = bfloat16[2048, 5632], merged
    %0 = load a:model.layers.0.mlp.up_proj.weight    bfloat16[2048, 5632]
    %1 = load b:model.layers.0.mlp.up_proj.weight    bfloat16[2048, 5632]
    %2 = weighted_sum(%0, %1; 0.4, 0.6)              float32[2048, 5632]   # plan.yml:7
    %3 = cast(%2)                                    bfloat16[2048, 5632]
    return %3
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mergegraph.graph.graph import Output, SourceTensor
from mergegraph.graph.node import Attr, Locality, Node, Origin, walk

MAX_COLUMN = 96
"""Calls longer than this do not push the spec column of all the other lines to the right."""
SLOT = "\0"
"""Stands in the call of a load for the checkpoint tensor that an output binds to it."""


@dataclass(frozen=True, slots=True)
class Line:
    """One value of an expression.

    Attributes:
        op: name of the op.
        call: the op applied to its operands, as text; `SLOT` stands for a checkpoint tensor.
        spec: what is known of the value, as text.
        note: plan lines that its parameters come from; empty when it has none.
        inputs: positions of the operands that have lines of their own.
        slot: for a load, the position of its tensor among all sources of the output, else None.
    """

    op: str
    call: str
    spec: str
    note: str
    inputs: tuple[int, ...]
    slot: int | None


@dataclass(frozen=True, slots=True)
class Expression:
    """The lines of one output, and which of them are its pieces. ``%i`` refers to line i."""

    lines: tuple[Line, ...]
    pieces: tuple[int, ...]

    @property
    def result(self) -> str:
        """The last line of the text: what is written."""
        refs = ", ".join(f"%{i}" for i in self.pieces)
        return f"return {refs}" if len(self.pieces) == 1 else f"return pieces({refs})"


def bindings(output: Output) -> tuple[SourceTensor, ...]:
    """The checkpoint tensors of all pieces of `output`, one after the other: what slots number."""
    return tuple(source for part in output.parts for source in part.sources)


def expression(output: Output) -> Expression:
    """Number the values of `output`; constants stand inline in the calls that use them."""
    lines: list[Line] = []
    pieces: list[int] = []
    slots = 0
    for part in output.parts:
        numbers: dict[bytes, int] = {}
        for item in walk([part.expression]):
            if _is_constant(item) and item is not part.expression:
                continue
            numbers[item.key] = len(lines)
            inputs = tuple(numbers[x.key] for x in item.inputs if not _is_constant(x))
            slot = slots + item.attributes["slot"] if item.op.locality is Locality.SOURCE else None
            call = _call(item, numbers) if slot is None else f"{item.op.name} {SLOT}{_span(item)}"
            lines.append(Line(item.op.name, call, str(item.spec), _note(item), inputs, slot))
        pieces.append(numbers[part.expression.key])
        slots += len(part.sources)
    return Expression(tuple(lines), tuple(pieces))


def calls(found: Expression, bound: Sequence[SourceTensor], sources: Mapping[str, str]) -> list[str]:
    """The call of each line of `found`, loads naming the tensors in `bound`."""
    return [
        line.call if line.slot is None else line.call.replace(SLOT, source_text(bound[line.slot], sources), 1)
        for line in found.lines
    ]


def source_text(source: SourceTensor, sources: Mapping[str, str]) -> str:
    """Render ``llama_a:model.norm.weight``."""
    return f"{sources.get(source.checkpoint, source.checkpoint)}:{source.label}"


def explain_text(name: str, output: Output, sources: Mapping[str, str]) -> str:
    """Return the expression of the output called `name` as a numbered let-list.

    Args:
        name: the output tensor.
        output: its spec and pieces.
        sources: short label of each checkpoint key that its loads name.
    """
    found = expression(output)
    heads = [f"%{i} = {call}" for i, call in enumerate(calls(found, bindings(output), sources))]
    column = max((len(head) for head in heads if len(head) <= MAX_COLUMN), default=0)
    specs = max(len(line.spec) for line in found.lines)
    rows = [f"{name} = {output.spec}, {output.kind}"]
    for head, line in zip(heads, found.lines, strict=True):
        note = f"   # {line.note}" if line.note else ""
        rows.append(f"{head:<{column}}    {line.spec:<{specs}}{note}".rstrip())
    return "\n".join([*rows, found.result])


def _is_constant(item: Node) -> bool:
    return item.op.name == "constant"


def _span(item: Node) -> str:
    """The range of a load that reads only a part of its tensor."""
    attrs = item.attributes
    start, stop = attrs.get("start"), attrs.get("stop")
    return "" if start is None and stop is None else f"[{start or 0}:{'' if stop is None else stop}]"


def _call(item: Node, numbers: Mapping[bytes, int]) -> str:
    """Operands in order; the constants and attributes at the end follow a semicolon."""
    if _is_constant(item):
        return f"constant({_values(item, bare=True)})"
    count = len(item.inputs)
    while count and _is_constant(item.inputs[count - 1]):
        count -= 1
    head = [_values(x, bare=False) if _is_constant(x) else f"%{numbers[x.key]}" for x in item.inputs[:count]]
    constants = item.inputs[count:]
    tail = [_values(x, bare=len(constants) == 1) for x in constants]
    # A result spec that repeats an attribute (the dtype of a cast) is said once, by the spec.
    known: tuple[tuple[str, Attr], ...] = (("dtype", item.spec.dtype.name), ("shape", item.spec.shape))
    tail += [f"{key}={_literal(value)}" for key, value in item.attrs if (key, value) not in known]
    inside = "; ".join(part for part in (", ".join(head), ", ".join(tail)) if part)
    return f"{item.op.name}({inside})"


def _values(item: Node, *, bare: bool) -> str:
    values: Sequence[float] = item.attributes["values"]
    text = ", ".join(map(repr, values))
    return text if bare or len(values) == 1 else f"[{text}]"


def _literal(value: Attr) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return value if isinstance(value, str) else repr(value)


def _note(item: Node) -> str:
    """Name the plan lines of the node and its inline constants, per value if they differ."""
    found: list[tuple[str | None, Origin]] = [
        (_values(x, bare=False), x.origin) for x in item.inputs if _is_constant(x) and x.origin is not None
    ]
    if item.origin is not None and item.origin not in [origin for _, origin in found]:
        found.append((None, item.origin))
    origins = list(dict.fromkeys(str(origin) for _, origin in found))
    if len(origins) == 1 or any(value is None for value, _ in found):
        return ", ".join(origins)
    return ", ".join(f"{value} from {origin}" for value, origin in found)
