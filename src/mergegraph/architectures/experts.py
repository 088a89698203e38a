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

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mergegraph.checkpoint.view import View
from mergegraph.tensorspec import TensorSpec

Roles = tuple[str, str, str]
"""What gate, up and down matrices are called."""

GATED: Roles = ("gate_proj.weight", "up_proj.weight", "down_proj.weight")
"""The commonest names."""
_ROLES: tuple[Roles, ...] = (GATED, ("w1.weight", "w3.weight", "w2.weight"))
MAX_EXPERTS = 4_096
"""Longer first axes are something else: headers come from strangers."""
_MATRIX = re.compile(
    r"(?P<block>(?:.*\.)?)experts\.(?P<expert>0|[1-9][0-9]{0,8})\."
    r"(?P<role>(?:gate_proj|up_proj|down_proj|w1|w2|w3)\.weight)"
)
_PAIRS = {
    "experts.gate_up_proj": "experts.down_proj",
    "experts.up_proj": "experts.down_proj",
    "experts.fc1.weight": "experts.fc2.weight",
    "input_linear.weight": "output_linear.weight",
}
"""What a stack of gate and up projections (or of up projections, where there are no gates) is called, and
the stack of down projections beside it."""
_UNSTACKED = "experts.gate_up_proj"
_UNGATED = "experts.up_proj"
"""Stacks that also exist with one tensor per expert; of the others loaders know this form only."""
_FLAT = re.compile(r"(?P<block>.*\.)?experts\.mlp\.(?P<role>w1|v1|w2)")


@dataclass(frozen=True, slots=True)
class Slot:
    """One matrix of a stack: its logical name, its shape, and where in the stack it lies."""

    name: str
    shape: tuple[int, ...]
    view: View


@dataclass(frozen=True, slots=True)
class Kind:
    """How a stored tensor holds matrices of every expert, of whatever number and size.

    Attributes:
        names: logical names of an expert's matrices, with ``{e}`` for its number.
        layout: they lie below one another (``rows``) or side by side (``columns``); ``flat``: below one
            another, as all experts do, without an axis of experts.
        only: there is no other form of it.
        group: stacks of one group are all written, or none of them.
    """

    names: tuple[str, ...]
    layout: Literal["rows", "columns", "flat"]
    only: bool
    group: str

    def stack(self, count: int, shape: tuple[int, ...]) -> Stack:
        """The stack of `count` experts whose matrices have `shape`."""
        columns, several = shape[-1], len(self.names)
        rows = math.prod(shape[:-1])
        each = several * rows * columns
        slots = []
        for e in range(count):
            for i, name in enumerate(self.names):
                aside = self.layout == "columns"
                first = i * columns if aside else i * rows * columns
                view = View(e * each + first, rows, columns, several * columns if aside else columns)
                slots.append(Slot(numbered(name, e), shape, view))
        if self.layout == "flat":
            return Stack((count * rows, columns), tuple(slots), self)
        if self.layout == "columns":
            return Stack((count, *shape[:-1], several * columns), tuple(slots), self)
        inner = shape if several == 1 else (several * shape[0], *shape[1:])
        return Stack((count, *inner), tuple(slots), self)

    def of(self, layer: Mapping[str, TensorSpec]) -> Stack | None:
        """The stack that the logical tensors of a layer make; None if they make none.

        Experts of different shapes make none, and neither do some that lack one among them.
        """
        head, _, tail = self.names[0].partition("{e}")
        like = [n for n in layer if n.startswith(head) and n.endswith(tail)]
        count = sum(n[len(head) : len(n) - len(tail)].isdecimal() for n in like)
        wanted = [numbered(name, e) for e in range(count) for name in self.names]
        if not wanted or any(name not in layer for name in wanted):
            return None
        shape = layer[wanted[0]].shape
        if not shape or any(layer[name].shape != shape for name in wanted):
            return None
        if len(self.names) > 1 and len(shape) != 2:
            return None
        return self.stack(count, shape)


@dataclass(frozen=True, slots=True)
class Stack:
    """A stored tensor that holds a matrix for every expert."""

    shape: tuple[int, ...]
    slots: tuple[Slot, ...]
    kind: Kind

    @property
    def only(self) -> bool:
        """Whether there is no other form of it."""
        return self.kind.only


@dataclass(frozen=True, slots=True)
class Spelling:
    """How experts are named: ``{block}experts.{e}.{role}``, and below `stacked` where they are stacked.

    `beside` has the tensors beside experts whose names follow no rule: as beside experts with tensors of
    their own → as beside stacked ones. `aliases`: any other spelling → the one beside separate experts.
    `gated`: they have gate projections.
    """

    block: str
    roles: Roles
    stacked: str
    beside: Mapping[str, str] = field(default_factory=dict, hash=False)
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)
    gated: bool = True

    def holds(self, block: str) -> bool:
        """Whether experts in `block` are those spelled here: a layer may have others, for images."""
        return block in (self.block, self.stacked)

    def name(self, expert: int, role: int) -> str:
        """Name of a matrix; roles are numbered gate, up, down."""
        return f"{self.block}experts.{expert}.{self.roles[role]}"

    def template(self, role: int) -> str:
        """The same for any expert."""
        return f"{self.block}experts.{{e}}.{self.roles[role]}"

    def kinds(self, stacked: str | None = None) -> dict[str, Kind]:
        """The stacks below a block that experts make."""
        block = self.stacked if stacked is None else stacked
        if not self.gated:
            return self.ungated(block)
        gated = (self.template(0), self.template(1))
        return {
            f"{block}{_UNSTACKED}": Kind(gated, "rows", False, block),
            f"{block}{_PAIRS[_UNSTACKED]}": Kind((self.template(2),), "rows", False, block),
        }

    def ungated(self, block: str) -> dict[str, Kind]:
        """The stacks below a block that experts without gates make."""
        return {
            f"{block}{_UNGATED}": Kind((self.template(1),), "rows", False, block),
            f"{block}{_PAIRS[_UNGATED]}": Kind((self.template(2),), "rows", False, block),
        }

    def in_stack(self, name: str) -> str:
        """What a tensor of a layer with experts is called where experts are stacked, or is a part of."""
        match = _MATRIX.fullmatch(name)
        if match is not None and self.holds(match["block"]):
            first = "gate_up_proj" if self.gated else "up_proj"
            kind = "down_proj" if match["role"] == self.roles[2] else first
            return f"{self.stacked}experts.{kind}"
        if name in self.beside:
            return self.beside[name]
        beside = self.block != self.stacked and bool(self.block) and name.startswith(self.block)
        return self.stacked + name[len(self.block) :] if beside else name


@dataclass(slots=True)
class Form:
    """How one checkpoint stores what it calls by logical names, for all its layers.

    Attributes:
        kinds: of its stacks, by name below the layer.
        stored: own name below the layer of every tensor that is called otherwise here.
        inside: the stack that each logical matrix is a part of, names below the layer.
        separate: whether some experts have tensors of their own.
        made: the spelling of experts that are to be stacked although no input shows how.
    """

    kinds: dict[str, Kind] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    inside: dict[str, str] = field(default_factory=dict)
    separate: bool = False
    made: Spelling | None = None

    @property
    def stacked(self) -> bool:
        """Whether experts are stacked that could have tensors of their own."""
        return any(not kind.only for kind in self.kinds.values())


def numbered(template: str, expert: int) -> str:
    """A logical name, of one expert."""
    return template.replace("{e}", str(expert))


def separate_spelling(suffixes: Iterable[str], stacked: str | None = None) -> Spelling | None:
    """The spelling of the first expert that has tensors of its own; stacks are below `stacked`."""
    matches = [match for suffix in suffixes if (match := _MATRIX.fullmatch(suffix)) is not None]
    if not matches:
        return None
    block = matches[0]["block"]
    roles = next(r for r in _ROLES if matches[0]["role"] in r)
    gated = any(m["block"] == block and m["role"] == roles[0] for m in matches)
    return Spelling(block, roles, block if stacked is None else stacked, gated=gated)


def stacked_block(suffixes: Iterable[str]) -> str | None:
    """The block (``mlp.``) of the first stack that could also be one tensor per expert."""
    for suffix in suffixes:
        if _ends(suffix, _UNSTACKED):
            return suffix[: -len(_UNSTACKED)]
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
        first = next((first for first in _PAIRS if _ends(name, first)), None)
        second = None if first is None else name[: -len(first)] + _PAIRS[first]
        down = layer.get(second) if second is not None else None
        if down is not None and second is not None and _beside(spec, down):
            yield from _pair(name, spec, second, down, spelling, layer)
        elif experts and experts <= MAX_EXPERTS and (match := _FLAT.fullmatch(name)) and len(spec.shape) == 2:
            yield from _flat(name, spec, match, experts)


def _ends(name: str, tail: str) -> bool:
    """Whether `name` ends with the steps of `tail`: ``shared_experts`` are no ``experts``."""
    return name == tail or name.endswith(f".{tail}")


def _beside(spec: TensorSpec, down: TensorSpec) -> bool:
    """Whether two tensors can be the stacks of the same experts."""
    if not len(spec.shape) == len(down.shape) == 3 or not down.dtype.arithmetic:
        return False
    return 0 < spec.shape[0] == down.shape[0] <= MAX_EXPERTS


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
    first = next(first for first in _PAIRS if _ends(name, first))
    block = name[: -len(first)]
    biases = [n for n in (f"{name}_bias", f"{second}_bias") if n in layer and _per_expert(layer[n], count)]
    # Experts of images stand beside those of text: each keeps its own names.
    alike = spelling.holds(block) and first in (_UNSTACKED, _UNGATED)
    own = spelling if alike else Spelling(block, GATED, block)
    if first == _UNGATED and (a, b) == (d, c) and not biases:
        for stacked, kind in own.ungated(block).items():
            yield stacked, kind.stack(count, layer[stacked].shape[1:])
    elif first != _UNGATED and a == 2 * d and b == c and not biases:
        kinds = {name: (own.template(0), own.template(1)), second: (own.template(2),)}
        only = first != _UNSTACKED
        yield name, Kind(kinds[name], "rows", only, block).stack(count, (d, b))
        yield second, Kind(kinds[second], "rows", only, block).stack(count, (c, d))
    elif first != _UNGATED and b == 2 * c and a == d and not biases:
        halves = (f"{block}experts.{{e}}.gate_proj", f"{block}experts.{{e}}.up_proj")
        yield name, Kind(halves, "columns", True, block).stack(count, (a, c))
        yield second, Kind((f"{block}experts.{{e}}.down_proj",), "rows", True, block).stack(count, (c, d))
    else:
        for stack in (name, second, *biases):
            short = stack[len(block) :].removeprefix("experts.")
            kind = Kind((f"{block}experts.{{e}}.{short}",), "rows", True, block)
            yield stack, kind.stack(count, layer[stack].shape[1:])


def _per_expert(bias: TensorSpec, count: int) -> bool:
    return len(bias.shape) == 2 and bias.shape[0] == count and bias.dtype.arithmetic


def _flat(name: str, spec: TensorSpec, match: re.Match[str], experts: int) -> Iterator[tuple[str, Stack]]:
    """DBRX: the experts' matrices one below the other."""
    rows, columns = spec.shape
    if rows % experts == 0:
        block = match["block"] or ""
        kind = Kind((f"{block}experts.{{e}}.{match['role']}",), "flat", True, block)
        yield name, kind.stack(experts, (rows // experts, columns))


def stacking(layer: Mapping[str, TensorSpec], kinds: Mapping[str, Kind]) -> dict[str, Stack]:
    """The stacks of `kinds` that the logical tensors of a layer make: of a group all, or none."""
    found = {name: kind.of(layer) for name, kind in kinds.items()}
    # Layers that hold no expert of a kind at all have no part in its group.
    failed = {kinds[name].group for name, stack in found.items() if stack is None}
    whole = ((name, stack) for name, stack in found.items() if stack is not None)
    return {name: stack for name, stack in whole if stack.kind.group not in failed}


def respelled(name: str, spelling: Spelling, blocks: Collection[str]) -> str:
    """The logical name of a tensor beside stacked experts, or of an expert with another spelling.

    `blocks` are those of the layer's experts: ``mlp.gate.weight`` becomes ``block_sparse_moe.gate.weight``.
    """
    if name in spelling.aliases:
        return spelling.aliases[name]
    match = _MATRIX.fullmatch(name)
    if match is not None:
        roles = next(r for r in _ROLES if match["role"] in r)
        own = spelling if match["block"] in blocks else Spelling(match["block"], roles, match["block"])
        return own.name(int(match["expert"]), roles.index(match["role"]))
    for block in blocks:
        if block != spelling.block and block and name.startswith(block) and "shared" not in name:
            return spelling.block + name[len(block) :]
    return name
