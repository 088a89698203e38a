"""Experts as logical matrices: (layer, expert, role), however a checkpoint stores them.

One ``model_type`` occurs in two layouts, so the layout is recognised by names and shapes alone::

    one tensor per expert                              all experts of a layer stacked
    block_sparse_moe.experts.{e}.w1.weight   [I, H]    mlp.experts.gate_up_proj  [E, 2I, H]
    block_sparse_moe.experts.{e}.w3.weight   [I, H]
    block_sparse_moe.experts.{e}.w2.weight   [H, I]    mlp.experts.down_proj     [E, H, I]
    block_sparse_moe.gate.weight             [E, H]    mlp.gate.weight           [E, H]

Names here are those below a layer.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mergegraph.checkpoint.view import View
from mergegraph.tensorspec import DType, TensorSpec

Roles = tuple[str, str, str]
"""What gate, up and down matrices are called."""

GATED: Roles = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
"""The commonest names."""
_ROLES: tuple[Roles, ...] = (GATED, ("w1.weight", "w3.weight", "w2.weight"))
MAX_EXPERTS = 65_536
"""Longer first axes are something else: headers come from strangers."""
_MATRIX = re.compile(
    r"(?P<block>(?:.*\.)?)experts\.(?P<expert>[0-9]{1,9})\."
    r"(?P<role>(?:gate_proj|up_proj|down_proj|w1|w2|w3)\.weight)"
)
_PAIRS = {
    "experts.gate_up_proj": "experts.down_proj",
    "experts.fc1.weight": "experts.fc2.weight",
    "input_linear.weight": "output_linear.weight",
}
"""What a stack of gate and up projections is called, and the stack of down projections beside it."""
_UNSTACKED = ("experts.gate_up_proj",)
"""Stacks that also exist with one tensor per expert; of the others loaders know this form only."""
_FLAT = re.compile(r"(?P<block>.*\.)?experts\.mlp\.(?P<role>w1|v1|w2)")


@dataclass(frozen=True, slots=True)
class Spelling:
    """How experts are named: ``{block}experts.{e}.{role}``, and below `stacked` where they are stacked."""

    block: str
    roles: Roles
    stacked: str

    def name(self, expert: int, role: int) -> str:
        """Name of a matrix; roles are numbered gate, up, down."""
        return f"{self.block}experts.{expert}.{self.roles[role]}"

    def in_stack(self, name: str) -> str:
        """What a tensor of a layer with experts is called where experts are stacked, or is a part of."""
        match = _MATRIX.fullmatch(name)
        if match is not None:
            kind = "down_proj" if match["role"] == self.roles[2] else "gate_up_proj"
            return f"{self.stacked}experts.{kind}"
        beside = self.block != self.stacked and bool(self.block) and name.startswith(self.block)
        return self.stacked + name[len(self.block) :] if beside else name


@dataclass(frozen=True, slots=True)
class Slot:
    """One matrix of a stack: its logical name, its shape, and where in the stack it lies."""

    name: str
    shape: tuple[int, ...]
    view: View


@dataclass(frozen=True, slots=True)
class Stack:
    """A stored tensor that holds a matrix for every expert; `only`: there is no other form of it."""

    shape: tuple[int, ...]
    slots: tuple[Slot, ...]
    only: bool


@dataclass(slots=True)
class Form:
    """How one checkpoint stores what it calls by logical names, for all its layers.

    Attributes:
        stacks: by name below the layer.
        stored: own name below the layer of every tensor that is called otherwise here.
        separate: whether some experts have tensors of their own.
        made: the spelling of experts that are to be stacked although no input shows how: see `stacking`.
    """

    stacks: dict[str, Stack] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    separate: bool = False
    made: Spelling | None = None

    @property
    def stacked(self) -> bool:
        """Whether experts are stacked that could have tensors of their own."""
        return any(not stack.only for stack in self.stacks.values())


def separate_spelling(suffixes: Iterable[str], stacked: str | None = None) -> Spelling | None:
    """The spelling of the first expert that has tensors of its own; stacks are below `stacked`."""
    for suffix in suffixes:
        match = _MATRIX.fullmatch(suffix)
        if match is not None:
            block = match["block"]
            roles = next(r for r in _ROLES if match["role"] in r)
            return Spelling(block, roles, block if stacked is None else stacked)
    return None


def stacked_block(suffixes: Iterable[str]) -> str | None:
    """The block (``mlp.``) of the first stack that could also be one tensor per expert."""
    for suffix in suffixes:
        if suffix.endswith(_UNSTACKED):
            return suffix[: -len(_UNSTACKED[0])]
    return None


def stacks_of(
    layer: Mapping[str, TensorSpec], spelling: Spelling, experts: int | None = None
) -> Iterator[tuple[str, Stack]]:
    """Yield (name, stack) of every tensor of a layer that holds several experts.

    Args:
        layer: specs of the layer's tensors.
        spelling: how matrices are named that may also have tensors of their own.
        experts: their number by the config, for stacks whose shape does not tell.
    """
    for name, spec in layer.items():
        if not spec.dtype.arithmetic:
            continue
        first = next((first for first in _PAIRS if name.endswith(first)), None)
        second = None if first is None else name[: -len(first)] + _PAIRS[first]
        down = layer.get(second) if second is not None else None
        if spec.shape and spec.shape[0] > MAX_EXPERTS:
            continue
        if down is not None and second is not None and len(spec.shape) == len(down.shape) == 3:
            yield from _pair(name, spec, second, down, spelling, layer)
        elif experts and experts <= MAX_EXPERTS and (match := _FLAT.fullmatch(name)) and len(spec.shape) == 2:
            yield from _flat(name, spec, match, experts)


def _pair(
    name: str,
    spec: TensorSpec,
    second: str,
    down: TensorSpec,
    spelling: Spelling,
    layer: Mapping[str, TensorSpec],
) -> Iterator[tuple[str, Stack]]:
    count, a, b = spec.shape
    _, c, d = down.shape
    only = not name.endswith(_UNSTACKED)
    block = name[: -len(next(first for first in _PAIRS if name.endswith(first)))]
    biases = [n for n in (f"{name}_bias", f"{second}_bias") if n in layer]
    if a == 2 * d and b == c and not biases:
        named = Spelling(block, GATED, block) if only else spelling
        halves = [(View(e * a * b + i * d * b, d, b, b), e, i) for e in range(count) for i in (0, 1)]
        slots = tuple(Slot(named.name(e, i), (d, b), view) for view, e, i in halves)
        downs = tuple(Slot(named.name(e, 2), (c, d), View(e * c * d, c, d, d)) for e in range(count))
        yield name, Stack(spec.shape, slots, only)
        yield second, Stack(down.shape, downs, only)
    elif b == 2 * c and a == d and not biases:
        halves = [(View(e * a * b + i * c, a, c, b), e, i) for e in range(count) for i in (0, 1)]
        slots = tuple(
            Slot(f"{block}experts.{e}.{('gate', 'up')[i]}_proj", (a, c), view) for view, e, i in halves
        )
        yield name, Stack(spec.shape, slots, True)
        yield _whole_matrices(second, down, f"{block}experts.{{}}.down_proj")
    else:
        for stack in (name, second, *biases):
            short = stack[len(block) :].removeprefix("experts.")
            yield _whole_matrices(stack, layer[stack], f"{block}experts.{{}}.{short}")


def _whole_matrices(name: str, spec: TensorSpec, template: str) -> tuple[str, Stack]:
    """A stack of which each expert's part is one matrix (or vector), as it is."""
    count, *shape = spec.shape
    columns = shape[-1]
    rows = spec.numel // max(1, count * columns)
    slots = tuple(
        Slot(template.format(e), tuple(shape), View(e * rows * columns, rows, columns, columns))
        for e in range(count)
    )
    return name, Stack(spec.shape, slots, True)


def _flat(name: str, spec: TensorSpec, match: re.Match[str], experts: int) -> Iterator[tuple[str, Stack]]:
    """DBRX: the experts' matrices one below the other."""
    rows, columns = spec.shape
    if rows % experts == 0:
        each = rows // experts
        template = f"{match['block'] or ''}experts.{{}}.{match['role']}"
        slots = tuple(
            Slot(template.format(e), (each, columns), View(e * each * columns, each, columns, columns))
            for e in range(experts)
        )
        yield name, Stack(spec.shape, slots, True)


def stacking(layer: Mapping[str, TensorSpec], spelling: Spelling) -> tuple[dict[str, Stack], dict[str, str]]:
    """The stacks that a layer's separate experts make, and the new names of what is beside them.

    Experts of different shapes make none.
    """
    count = next(e for e in itertools.count() if spelling.name(e, 0) not in layer)
    names = [[spelling.name(e, r) for r in range(3)] for e in range(count)]
    shapes = [[layer[name].shape for name in three if name in layer] for three in names]
    if not count or len(shapes[0]) < 3 or any(s != shapes[0] for s in shapes):
        return {}, {}
    (inner, outer), _, (rows, columns) = shapes[0]
    gate_up = TensorSpec((count, 2 * inner, outer), DType.F32)
    down = TensorSpec((count, rows, columns), DType.F32)
    block = spelling.stacked
    stacks = {f"{block}experts.gate_up_proj": gate_up, f"{block}experts.down_proj": down}
    beside = {name: spelling.in_stack(name) for name in layer if not _MATRIX.fullmatch(name)}
    return dict(stacks_of(stacks, spelling)), beside


def respelled(name: str, spelling: Spelling, blocks: Iterable[str]) -> str:
    """The logical name of a tensor beside stacked experts, or of an expert with another spelling.

    `blocks` are those of the layer's experts: ``mlp.gate.weight`` becomes ``block_sparse_moe.gate.weight``.
    """
    match = _MATRIX.fullmatch(name)
    if match is not None:
        roles = next(r for r in _ROLES if match["role"] in r)
        return spelling.name(int(match["expert"]), roles.index(match["role"]))
    for block in blocks:
        if block != spelling.block and block and name.startswith(block) and "shared" not in name:
            return spelling.block + name[len(block) :]
    return name
