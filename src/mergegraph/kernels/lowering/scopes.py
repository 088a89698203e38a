"""Where code is put while a function is lowered, and what its names stand for there."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from llvmlite import ir

from mergegraph.kernels.lowering import memory
from mergegraph.kernels.lowering.arithmetic import common, convert
from mergegraph.kernels.lowering.kinds import (
    BOOL,
    BYTES,
    Array,
    DType,
    Items,
    Kind,
    Number,
    Operand,
    Scalar,
    Unsupported,
    parts_of,
    rebuilt,
    shape_of,
)
from mergegraph.kernels.lowering.sources import Module

_MOST_ON_STACK = 1 << 16
"""Bytes of arrays that a function keeps on the stack."""
STATUS = ir.IntType(32)
"""What functions return: 0, or 1 where they failed."""

Hints = dict[tuple[Any, str], Scalar]
"""(function, variable) → the widest integer that it was found to hold."""


class Retry(Exception):
    """A variable turned out to hold wider integers than its first: start again with `Hints`."""


class Frame:
    """One function of LLVM under construction. It returns 0, or 1 where there was no memory for an array.

    Args:
        function: of LLVM, without a body.
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        self.entry = ir.IRBuilder(function.append_basic_block("entry"))
        """Builds before everything else, what is on the stack."""
        self.builder = ir.IRBuilder(function.append_basic_block("start"))
        self.loops = 0
        """How many loops are open around what is being built."""
        self._start = self.builder.block
        self._failed: Any = None
        self._stack = _MOST_ON_STACK
        self._scratch: list[Any] = []
        self.leave = function.append_basic_block("leave")
        """Where the function ends when all is done."""

    def variable(self, kind: Any) -> Any:
        """A place on the stack for a value of an LLVM type."""
        return self.entry.alloca(kind)

    def array(self, kind: Scalar, sizes: tuple[Number, ...], *, zero: bool) -> Array:
        """Scratch memory until the function returns."""
        if self.loops:
            raise Unsupported("an allocation in a loop")
        array = memory.on_stack(self.entry, kind, sizes, self._stack)
        if array is not None:
            self._stack -= kind.nbytes * math.prod(size.constant or 0 for size in sizes)
        else:
            array = memory.allocated(self.builder, kind, sizes)
            place = self.variable(BYTES)
            self.entry.store(ir.Constant(BYTES, None), place)
            taken = self.builder.bitcast(array.data, BYTES)
            self.builder.store(taken, place)
            self._scratch.append(place)
            self.fail_if(self.builder.icmp_unsigned("==", taken, ir.Constant(BYTES, None)))
        if zero:
            nbytes = self.builder.mul(array.sizes[0], ir.IntType(64)(kind.nbytes))
            for size in array.sizes[1:]:
                nbytes = self.builder.mul(nbytes, size)
            memory.clear(self.builder, array.data, nbytes)
        return array

    def fail_if(self, condition: Any) -> None:
        """Leave with 1 where `condition` holds."""
        if self._failed is None:
            self._failed = self.function.append_basic_block("failed")
        following = self.builder.append_basic_block()
        self.builder.cbranch(condition, self._failed, following)
        self.builder.position_at_end(following)

    def finish(self) -> None:
        """End the function."""
        if not self.builder.block.is_terminated:
            self.builder.branch(self.leave)
        for block, status in ((self.leave, 0), (self._failed, 1)):
            if block is not None:
                end = ir.IRBuilder(block)
                for place in self._scratch:
                    memory.free(end, end.load(place))
                end.ret(STATUS(status))
        self.entry.branch(self._start)


@dataclass(slots=True, eq=False)
class _Variable:
    """A name's place on the stack: `like` has its types, `places` its parts."""

    like: Operand
    places: list[Any]
    region: list[str]


@dataclass(eq=False)
class Scope:
    """The names of a function that is being lowered, or of what is expanded in its place."""

    module: Module
    title: Any
    frame: Frame
    hints: Hints
    names: dict[str, Operand | _Variable] = field(default_factory=dict)
    stored: frozenset[str] = frozenset()
    """Names that the function gives values: they are its own, wherever they have none yet."""
    exit: Any = None
    """Where a return goes, and None for the end of the frame."""
    result: _Variable | None = None
    around: list[tuple[Any, Any]] = field(default_factory=list)
    """Of each open loop, where its next round begins, and where it is left to."""
    _regions: list[list[str]] = field(default_factory=lambda: [[]])

    def bind(self, name: str, operand: Operand) -> None:
        """Let a name stand for a value that is never assigned again."""
        self.names[name] = operand

    def get(self, name: str) -> Operand | None:
        """The value of a name of this function."""
        found = self.names.get(name)
        return self._loaded(found) if isinstance(found, _Variable) else found

    def is_local(self, name: str) -> bool:
        """Whether a name is the function's own."""
        return name in self.names or name in self.stored

    def has_items(self, name: str) -> bool:
        """Whether a name stands for a tuple."""
        found = self.names.get(name)
        return isinstance(found.like if isinstance(found, _Variable) else found, Items)

    def assign(self, name: str, operand: Operand) -> None:
        """Give a name a new value."""
        if isinstance(operand, Kind | DType):
            if self.names.setdefault(name, operand) != operand:
                raise Unsupported(f"{name} is several types")
            return
        hint = self.hints.get((self.title, name))
        if hint is not None:
            if not isinstance(operand, Number) or operand.kind.real or common(operand.kind, hint) != hint:
                raise Unsupported(f"{name} has types that are not of one kind")
            operand = convert(self.frame.builder, operand, hint)
        found = self.names.get(name)
        if isinstance(found, _Variable):
            if shape_of(found.like) != shape_of(operand):
                operand = self._widened(name, found, operand)
            if shape_of(found.like) == shape_of(operand):
                self._store(found, operand)
                return
            # Another type from here on: to the end of this block, behind which nobody could tell which.
            if found.region is not self._regions[-1]:
                if any(found.region is region for region in self._regions):
                    raise Unsupported(f"{name} has two types")
                self._regions[-1].append(name)
        self.names[name] = variable = self._variable(operand)
        self._store(variable, operand)

    def open(self) -> None:
        """Enter a nested block of statements."""
        self._regions.append([])

    def close(self) -> None:
        """Leave it again."""
        for name in self._regions.pop():
            self.names.pop(name, None)

    def give(self, operand: Operand) -> None:
        """Make `operand` what the function returns."""
        if self.result is None:
            self.result = self._variable(operand)
        if shape_of(self.result.like) != shape_of(operand):
            raise Unsupported("results of different types")
        self._store(self.result, operand)

    def taken(self) -> Operand | None:
        """What the function returned."""
        return None if self.result is None else self._loaded(self.result)

    def _widened(self, name: str, found: _Variable, operand: Operand) -> Operand:
        """An integer in the type of its variable, if it fits there."""
        old = found.like
        if not (isinstance(old, Number) and isinstance(operand, Number)):
            return operand
        if old.kind.real or operand.kind.real or BOOL in (old.kind, operand.kind):
            return operand
        wide = common(old.kind, operand.kind)
        if wide != old.kind:
            self.hints[self.title, name] = wide
            raise Retry
        return convert(self.frame.builder, operand, wide)

    def _variable(self, like: Operand) -> _Variable:
        places = [self.frame.variable(part.type) for part in parts_of(like)]
        return _Variable(like, places, self._regions[-1])

    def _store(self, variable: _Variable, operand: Operand) -> None:
        for place, part in zip(variable.places, parts_of(operand), strict=True):
            self.frame.builder.store(part, place)

    def _loaded(self, variable: _Variable) -> Operand:
        return rebuilt(variable.like, iter([self.frame.builder.load(place) for place in variable.places]))
