"""What can be called, and what names outside of a function stand for."""

from __future__ import annotations

import ast
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from mergegraph.kernels.lowering import arithmetic, lanes, memory
from mergegraph.kernels.lowering.kinds import (
    F64,
    I64,
    SCALARS,
    Array,
    Items,
    Kind,
    Number,
    Operand,
    Unsupported,
    integer,
)
from mergegraph.kernels.lowering.scopes import Scope
from mergegraph.kernels.lowering.sources import Known

_NUMBERS = {"math.pi": math.pi, "numpy.nan": math.nan, "numpy.inf": math.inf}
_ROOTS = {"math.sqrt": "sqrt", "numpy.sqrt": "sqrt", "numpy.ceil": "ceil"}
_ROOTS |= {f"math.{name}": name for name in ("log", "sin", "cos")}
_KINDS = {f"numpy.{name}": Kind(kind) for name, kind in SCALARS.items()}


class Calls(ABC):
    """Lowers calls in a scope."""

    scope: Scope

    @property
    def builder(self) -> Any:
        """Where instructions go."""
        return self.scope.frame.builder

    @abstractmethod
    def value(self, node: ast.expr) -> Operand:
        """The operand that an expression gives."""

    @abstractmethod
    def number(self, node: ast.expr) -> Number:
        """The number that an expression gives."""

    def callee(self, node: ast.expr) -> Known | Kind:
        """The function, or the type, that is called."""
        outside = self.outside(node)
        if outside is None and isinstance(node, ast.Name) and not self.scope.is_local(node.id):
            outside = self.scope.module.look_up(node.id)
        if outside is not None and outside.expression is None and outside.outside not in _KINDS:
            return outside
        found = self.value(node)
        if not isinstance(found, Kind):
            raise Unsupported(f"{ast.unparse(node)} cannot be called")
        return found

    def outside(self, node: ast.expr) -> Known | None:
        """What an attribute of an imported module is."""
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
            return None
        if self.scope.is_local(node.value.id):
            return None
        known = self.scope.module.look_up(node.value.id)
        if known.function is not None or known.expression is not None:
            return None
        return Known(known.module, outside=f"{known.outside}.{node.attr}")

    def known(self, known: Known) -> Operand:
        """The value of a name of a module."""
        if known.expression is not None:
            if not isinstance(known.expression, ast.Constant | ast.Call | ast.Name | ast.Attribute):
                raise Unsupported("what a module computes")
            before, self.scope = self.scope, Scope(known.module, known.module.name, self.scope.frame, {})
            try:
                return self.value(known.expression)
            finally:
                self.scope = before
        if known.outside in _KINDS:
            return _KINDS[known.outside]
        if known.outside in _NUMBERS:
            return Number(F64, F64.llvm(_NUMBERS[known.outside]))
        raise Unsupported(known.outside or "a function as a value")

    def viewed(self, found: Operand, arguments: Sequence[ast.expr]) -> Operand:
        """``x.view(kind)``."""
        kind = self.value(*arguments)
        if not isinstance(kind, Kind) or not isinstance(found, Number | Array):
            raise Unsupported("a view")
        if isinstance(found, Array):
            return memory.view(self.builder, found, kind.scalar)
        return arithmetic.reinterpreted(self.builder, found, kind.scalar)

    def built_in(self, name: str, nodes: Sequence[ast.expr]) -> Operand:
        """A function of Python, or of numpy or math."""
        if name in ("numpy.empty", "numpy.zeros", "numpy.arange"):
            return self._made(name, nodes)
        if name == "len":
            (found,) = (self.value(node) for node in nodes)
            if isinstance(found, Items):
                return integer(len(found.items))
            if isinstance(found, Array):
                return Number(I64, found.sizes[0])
        values = [self.number(node) for node in nodes]
        match name, values:
            case (("min" | "max"), [_, _, *_]):
                return arithmetic.smallest(self.builder, values, ast.Lt() if name == "min" else ast.Gt())
            case "abs", [value]:
                return arithmetic.magnitude(self.builder, value)
            case "numpy.isfinite", [value]:
                return arithmetic.is_finite(self.builder, value)
            case "math.acos", [value] if value.kind == F64:
                function = arithmetic.external(self.builder, "acos", F64.llvm, [F64.llvm])
                return Number(F64, self.builder.call(function, [value.llvm]))
            case _, [value] if name in _ROOTS:
                return arithmetic.intrinsic(self.builder, _ROOTS[name], value)
        raise Unsupported(f"{name} of {len(values)}")

    def _made(self, name: str, nodes: Sequence[ast.expr]) -> Operand:
        """Scratch memory."""
        shape = self.value(nodes[0])
        sizes = shape.items if isinstance(shape, Items) else (shape,)
        numbers = tuple(size for size in sizes if isinstance(size, Number))
        kind = self.value(nodes[1]) if len(nodes) > 1 else Kind(I64 if name == "numpy.arange" else F64)
        if len(numbers) != len(sizes) or len(sizes) > 2 or not isinstance(kind, Kind):
            raise Unsupported("an array of this shape")
        array = self.scope.frame.array(kind.scalar, numbers, zero=name == "numpy.zeros")
        if name == "numpy.arange":
            memory.count_up(self.builder, array)
        return array

    def emitted(self, name: str, operands: Sequence[Operand]) -> Operand:
        """A reduction in lanes: rows, or tuples of them, and how many elements of each."""
        *given, count = operands
        sides = [x.items if isinstance(x, Items) else (x,) for x in given]
        rows = [x for side in sides for x in side if isinstance(x, Array) and x.element.real]
        if (
            not isinstance(count, Number)
            or len(rows) != sum(map(len, sides))
            or len({x.element for x in rows}) != 1
        ):
            raise Unsupported(f"{name} of this")
        wanted = lanes.Rows([x.data for x in rows], rows[0].element.bits, memory.index(self.builder, count))
        match name:
            case "dot_products":
                found = lanes.products(self.builder, wanted, lanes.pairs_of(len(rows)))
            case "cross_products":
                found = lanes.products(
                    self.builder, wanted, lanes.pairs_between(len(sides[0]), len(sides[1]))
                )
            case "sum_of":
                return Number(F64, lanes.total(self.builder, wanted))
            case "sum_of_magnitudes":
                return Number(F64, lanes.total_of_magnitudes(self.builder, wanted))
            case "largest_of":
                return Number(F64, lanes.largest(self.builder, wanted))
            case _:
                raise Unsupported(name)
        return Items(tuple(Number(F64, x) for x in found))
