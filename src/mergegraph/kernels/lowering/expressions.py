"""Lowering expressions: from the tree of one to the operand that it gives."""

from __future__ import annotations

import ast
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from mergegraph.kernels.lowering import arithmetic, memory
from mergegraph.kernels.lowering.calls import Calls
from mergegraph.kernels.lowering.kinds import (
    BOOL,
    F64,
    I64,
    U64,
    Array,
    DType,
    Items,
    Kind,
    Number,
    Operand,
    Unsupported,
    integer,
)
from mergegraph.kernels.lowering.sources import Known

_PLAIN = (
    ast.BinOp,
    ast.UnaryOp,
    ast.Compare,
    ast.IfExp,
    ast.BoolOp,
    ast.Name,
    ast.Constant,
    ast.operator,
    ast.unaryop,
    ast.cmpop,
    ast.boolop,
    ast.expr_context,
)


class Expressions(Calls):
    """Lowers expressions in a scope."""

    @abstractmethod
    def expanded(self, known: Known, operands: Sequence[Operand]) -> Operand | None:
        """Put the body of a function here, and return what it returns."""

    def value(self, node: ast.expr) -> Operand:
        """The operand that an expression gives."""
        lower: Callable[[Any], Operand] | None = getattr(self, f"_{type(node).__name__}", None)
        if lower is None:
            raise Unsupported(f"{type(node).__name__} in {self.scope.title}")
        return lower(node)

    def number(self, node: ast.expr) -> Number:
        """The number that an expression gives."""
        found = self.value(node)
        if not isinstance(found, Number):
            raise Unsupported(f"{ast.unparse(node)} is no number")
        return found

    def array(self, node: ast.expr) -> Array:
        """The array that an expression gives."""
        found = self.value(node)
        if not isinstance(found, Array):
            raise Unsupported(f"{ast.unparse(node)} is no array")
        return found

    def truth(self, node: ast.expr) -> Any:
        """Whether an expression holds, as LLVM's truth value."""
        if isinstance(node, ast.BoolOp):
            return self._holds(node)
        return arithmetic.truth(self.builder, self.number(node))

    def bounds(self, node: ast.Slice) -> memory.Bounds:
        """The ends of a slice."""
        if node.step is not None:
            raise Unsupported("steps")
        return memory.Bounds(*(None if end is None else self.number(end) for end in (node.lower, node.upper)))

    # ---- one method for each kind of node ----

    def _Constant(self, node: ast.Constant) -> Operand:
        match node.value:
            case bool():
                return integer(int(node.value), BOOL)
            case int() if abs(node.value) < 1 << 64:
                return integer(node.value, I64 if node.value < 1 << 63 else U64)
            case float():
                return Number(F64, F64.llvm(node.value))
        raise Unsupported(repr(node.value))

    def _Name(self, node: ast.Name) -> Operand:
        found = self.scope.get(node.id)
        if found is not None:
            return found
        if self.scope.is_local(node.id):
            raise Unsupported(f"{node.id} may have no value, or more than one type")
        return self.known(self.scope.module.look_up(node.id))

    def _Attribute(self, node: ast.Attribute) -> Operand:
        outside = self.outside(node)
        if outside is not None:
            return self.known(outside)
        found = self.value(node.value)
        match found, node.attr:
            case ((Array() | Number()), "dtype"):
                return DType(found.element if isinstance(found, Array) else found.kind)
            case DType(scalar), "type":
                return Kind(scalar)
            case Array(), "itemsize":
                return integer(found.element.nbytes)
            case Array(), "shape":
                return Items(tuple(Number(I64, size) for size in found.sizes))
        raise Unsupported(ast.unparse(node))

    def _Tuple(self, node: ast.Tuple) -> Operand:
        return Items(tuple(self.value(item) for item in node.elts))

    def _BinOp(self, node: ast.BinOp) -> Operand:
        return arithmetic.binary(self.builder, node.op, self.number(node.left), self.number(node.right))

    def _UnaryOp(self, node: ast.UnaryOp) -> Operand:
        return arithmetic.unary(self.builder, node.op, self.number(node.operand))

    def _Compare(self, node: ast.Compare) -> Operand:
        if not all(map(_is_plain, node.comparators[1:])):
            raise Unsupported("comparisons in a row of what may not be computed")
        left, found = self.number(node.left), None
        for op, other in zip(node.ops, node.comparators, strict=True):
            right = self.number(other)
            holds = arithmetic.compare(self.builder, op, left, right)
            found = holds if found is None else self.builder.and_(found, holds)
            left = right
        return Number(BOOL, found)

    def _BoolOp(self, node: ast.BoolOp) -> Operand:
        return Number(BOOL, self._holds(node, strictly=True))

    def _holds(self, node: ast.BoolOp, *, strictly: bool = False) -> Any:
        """Whether all, or any, of several expressions hold; `strictly`: it is one of them that is wanted."""
        every = isinstance(node.op, ast.And)
        if strictly and not all(isinstance(x, ast.Compare | ast.BoolOp) or _is_not(x) for x in node.values):
            raise Unsupported("one of several values")
        found = self.truth(node.values[0])
        for other in node.values[1:]:
            if _is_plain(other):
                found = (self.builder.and_ if every else self.builder.or_)(found, self.truth(other))
                continue
            before, more, after = self.builder.block, *(self.builder.append_basic_block() for _ in range(2))
            self.builder.cbranch(found, *((more, after) if every else (after, more)))
            self.builder.position_at_end(more)
            last = self.truth(other)
            end = self.builder.block
            self.builder.branch(after)
            self.builder.position_at_end(after)
            found = self.builder.phi(BOOL.llvm)
            found.add_incoming(BOOL.llvm(0 if every else 1), before)
            found.add_incoming(last, end)
        return found

    def _IfExp(self, node: ast.IfExp) -> Operand:
        holds = self.truth(node.test)
        if _is_plain(node.body) and _is_plain(node.orelse):
            a, b = self.number(node.body), self.number(node.orelse)
            kind = arithmetic.common(a.kind, b.kind)
            a, b = (arithmetic.convert(self.builder, x, kind) for x in (a, b))
            return Number(kind, self.builder.select(holds, a.llvm, b.llvm))
        yes, no, after = (self.builder.append_basic_block() for _ in range(3))
        self.builder.cbranch(holds, yes, no)
        found, ends = [], []
        for block, arm in ((yes, node.body), (no, node.orelse)):
            self.builder.position_at_end(block)
            found.append(self.number(arm))
            ends.append(self.builder.block)
        kind = arithmetic.common(found[0].kind, found[1].kind)
        for i, end in enumerate(ends):
            self.builder.position_at_end(end)
            found[i] = arithmetic.convert(self.builder, found[i], kind)
            self.builder.branch(after)
        self.builder.position_at_end(after)
        chosen = self.builder.phi(kind.llvm)
        for x, end in zip(found, ends, strict=True):
            chosen.add_incoming(x.llvm, end)
        return Number(kind, chosen)

    def _Subscript(self, node: ast.Subscript) -> Operand:
        found = self.value(node.value)
        if isinstance(found, Items):
            at = self.number(node.slice).constant
            if at is None or not 0 <= at < len(found.items):
                raise Unsupported(f"{ast.unparse(node)}: which one is not known")
            return found.items[at]
        if not isinstance(found, Array):
            raise Unsupported(f"{ast.unparse(node.value)} has no elements")
        return self._selected(found, node.slice)

    def _selected(self, array: Array, at: ast.expr) -> Operand:
        match at:
            case ast.Slice():
                return memory.part(self.builder, array, self.bounds(at))
            case ast.Tuple(elts=[first, ast.Slice() as second]):
                return memory.part(
                    self.builder, memory.row(self.builder, array, self.number(first)), self.bounds(second)
                )
            case ast.Tuple(elts=places):
                return memory.load(self.builder, array, *map(self.number, places))
        if len(array.sizes) == 2:
            return memory.row(self.builder, array, self.number(at))
        return memory.load(self.builder, array, self.number(at))

    def _Call(self, node: ast.Call) -> Operand:
        if node.keywords:
            raise Unsupported("arguments by name")
        if isinstance(node.func, ast.Attribute) and node.func.attr == "view":
            return self.viewed(self.value(node.func.value), node.args)
        known = self.callee(node.func)
        if isinstance(known, Kind):
            (argument,) = node.args
            return arithmetic.convert(self.builder, self.number(argument), known.scalar)
        if known.function is None:
            return self.built_in(known.outside, node.args)
        operands = [self.value(argument) for argument in node.args]
        if known.emitted:
            return self.emitted(known.function.name, operands)
        result = self.expanded(known, operands)
        if result is None:
            raise Unsupported(f"{known.function.name} returns nothing")
        return result


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _is_plain(node: ast.expr) -> bool:
    """Whether an expression may be computed wanted or not: nothing in it can fail, or takes long."""
    for part in ast.walk(node):
        if isinstance(part, ast.Call):
            if not isinstance(part.func, ast.Name) or part.func.id not in _CHEAP:
                return False
        elif not isinstance(part, _PLAIN) or isinstance(part, ast.FloorDiv | ast.Mod):
            return False
    return True


_CHEAP = {"abs", "f32", "f64", "i32", "i64", "u8", "u16", "u32", "u64"}
