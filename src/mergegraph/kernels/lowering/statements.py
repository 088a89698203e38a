"""Lowering functions, statement by statement.

A function whose value is used is expanded in place. One that is called for what it does becomes a function of
LLVM, once for all calls with arguments of the same types.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

from llvmlite import ir

from mergegraph.kernels.lowering import arithmetic, memory
from mergegraph.kernels.lowering.expressions import Expressions
from mergegraph.kernels.lowering.kinds import (
    I64,
    Array,
    Items,
    Kind,
    Number,
    Operand,
    Unsupported,
    integer,
    parts_of,
    rebuilt,
    shape_of,
)
from mergegraph.kernels.lowering.scopes import STATUS, Frame, Hints, Scope
from mergegraph.kernels.lowering.sources import Known, stored_names

_MOST_ROUNDS = 16
"""Rounds of a loop that is written out, one after the other."""


class Program:
    """A module of LLVM under construction, with a function for each one that is called as a statement."""

    def __init__(self, hints: Hints) -> None:
        self.module = ir.Module("kernel")
        self.hints = hints
        self._functions: dict[Any, Any] = {}
        self._entered: list[ast.FunctionDef] = []

    def frame(self, name: str, takes: Sequence[Any]) -> Frame:
        """A new function."""
        return Frame(ir.Function(self.module, ir.FunctionType(STATUS, takes), name))

    @contextmanager
    def entered(self, known: Known) -> Iterator[None]:
        """While a function is lowered, which must not call itself."""
        assert known.function is not None
        if known.function in self._entered:
            raise Unsupported(f"{known.function.name} calls itself")
        self._entered.append(known.function)
        yield
        self._entered.pop()

    def called(self, known: Known, operands: Sequence[Operand]) -> Any:
        """The function of LLVM for a call with these operands."""
        assert known.function is not None
        key = _title(known, operands)
        if key not in self._functions:
            parts = list(chain.from_iterable(map(parts_of, operands)))
            frame = self.frame(f"{known.function.name}.{len(self._functions)}", [x.type for x in parts])
            frame.function.linkage = "internal"
            self._functions[key] = frame.function
            given = iter(frame.function.args)
            scope = Scope(known.module, key, frame, self.hints)
            with self.entered(known):
                Statements(self, scope).run(known.function, [rebuilt(x, given) for x in operands])
            frame.finish()
        return self._functions[key]


class Statements(Expressions):
    """Lowers the body of a function in a scope."""

    def __init__(self, program: Program, scope: Scope) -> None:
        self.program = program
        self.scope = scope

    def run(self, function: ast.FunctionDef, operands: Sequence[Operand]) -> None:
        """Lower a function, given its arguments."""
        names = [x.arg for x in function.args.args]
        if len(names) != len(operands):
            raise Unsupported(f"{len(operands)} arguments of {function.name}")
        changed = self.scope.stored = stored_names(function)
        for name, operand in zip(names, operands, strict=True):
            (self.scope.assign if name in changed else self.scope.bind)(name, operand)
        self.block(function.body)

    def expanded(self, known: Known, operands: Sequence[Operand]) -> Operand | None:
        """Put the body of a function here, and return what it returns."""
        assert known.function is not None
        frame, key = self.scope.frame, _title(known, operands)
        scope = Scope(known.module, key, frame, self.program.hints, exit=frame.builder.append_basic_block())
        with self.program.entered(known):
            Statements(self.program, scope).run(known.function, operands)
        if not self.builder.block.is_terminated:
            if scope.result is not None:
                raise Unsupported(f"{known.function.name} may return nothing")
            self.builder.branch(scope.exit)
        self.builder.position_at_end(scope.exit)
        return scope.taken()

    def block(self, statements: Sequence[ast.stmt]) -> None:
        """Lower statements, up to one that leaves."""
        for node in statements:
            if self.builder.block.is_terminated:
                return
            lower: Callable[[Any], None] | None = getattr(self, f"_{type(node).__name__}", None)
            if lower is None:
                raise Unsupported(f"{type(node).__name__} in {self.scope.title}")
            lower(node)

    def _nested(self, statements: Sequence[ast.stmt], then: Any) -> None:
        """Lower a nested block, and go on at `then`."""
        self.scope.open()
        self.block(statements)
        self.scope.close()
        if not self.builder.block.is_terminated:
            self.builder.branch(then)

    # ---- one method for each kind of statement ----

    def _Pass(self, _: ast.Pass) -> None:
        pass

    def _Expr(self, node: ast.Expr) -> None:
        if isinstance(node.value, ast.Constant):
            return
        if not isinstance(node.value, ast.Call) or node.value.keywords:
            raise Unsupported(ast.unparse(node))
        known = self.callee(node.value.func)
        if isinstance(known, Kind) or known.function is None:
            raise Unsupported(ast.unparse(node))
        operands = [self.value(argument) for argument in node.value.args]
        if known.inline:
            self.expanded(known, operands)
            return
        function = self.program.called(known, operands)
        status = self.builder.call(function, list(chain.from_iterable(map(parts_of, operands))))
        self.scope.frame.fail_if(self.builder.icmp_unsigned("!=", status, STATUS(0)))

    def _Assign(self, node: ast.Assign) -> None:
        operand = self.value(node.value)
        for target in node.targets:
            self._put(target, operand)

    def _AugAssign(self, node: ast.AugAssign) -> None:
        match node.target:
            case ast.Subscript(slice=ast.Slice()):
                raise Unsupported("arithmetic on a slice")
            case ast.Subscript(value=value, slice=at):
                array = self.array(value)
                places = [self.number(x) for x in (at.elts if isinstance(at, ast.Tuple) else [at])]
                old = memory.load(self.builder, array, *places)
                result = arithmetic.binary(self.builder, node.op, old, self.number(node.value))
                memory.store(self.builder, array, result, *places)
            case ast.Name(id=name):
                known = self.number(ast.Name(name, ast.Load()))
                result = arithmetic.binary(self.builder, node.op, known, self.number(node.value))
                self.scope.assign(name, result)
            case _:
                raise Unsupported(ast.unparse(node))

    def _put(self, target: ast.expr, operand: Operand) -> None:
        match target:
            case ast.Name():
                self.scope.assign(target.id, operand)
            case ast.Tuple() if isinstance(operand, Items) and len(operand.items) == len(target.elts):
                for part, item in zip(target.elts, operand.items, strict=True):
                    self._put(part, item)
            case ast.Subscript() if isinstance(operand, Number):
                self._put_element(self.array(target.value), target.slice, operand)
            case ast.Subscript() if isinstance(operand, Array):
                place = self.array(target)
                differ = self.builder.icmp_signed("!=", place.sizes[-1], operand.sizes[-1])
                self.scope.frame.fail_if(differ)  # numba would repeat a single element, or say so
                memory.copy(self.builder, place, operand)
            case _:
                raise Unsupported(f"an assignment to {ast.unparse(target)}")

    def _put_element(self, array: Array, at: ast.expr, value: Number) -> None:
        match at:
            case ast.Slice():
                memory.fill(self.builder, memory.part(self.builder, array, self.bounds(at)), value)
            case ast.Tuple(elts=places):
                memory.store(self.builder, array, value, *map(self.number, places))
            case _:
                memory.store(self.builder, array, value, self.number(at))

    def _Return(self, node: ast.Return) -> None:
        scope = self.scope
        if node.value is not None:
            operand = self.value(node.value)
            if scope.exit is not None:
                scope.give(operand)
        self.builder.branch(scope.frame.leave if scope.exit is None else scope.exit)

    def _Continue(self, _: ast.Continue) -> None:
        self.builder.branch(self.scope.around[-1][0])

    def _Break(self, _: ast.Break) -> None:
        self.builder.branch(self.scope.around[-1][1])

    def _If(self, node: ast.If) -> None:
        holds = self.truth(node.test)
        yes, after = self.builder.append_basic_block(), self.builder.append_basic_block()
        no = self.builder.append_basic_block() if node.orelse else after
        self.builder.cbranch(holds, yes, no)
        self.builder.position_at_end(yes)
        self._nested(node.body, after)
        if node.orelse:
            self.builder.position_at_end(no)
            self._nested(node.orelse, after)
        self.builder.position_at_end(after)

    def _While(self, node: ast.While) -> None:
        if node.orelse:
            raise Unsupported("else after a loop")
        test, body, after = (self.builder.append_basic_block() for _ in range(3))
        self.builder.branch(test)
        self.builder.position_at_end(test)
        self.builder.cbranch(self.truth(node.test), body, after)
        self.builder.position_at_end(body)
        self._looped(node, test, after)
        endless = isinstance(node.test, ast.Constant) and node.test.value is True
        if endless and not any(isinstance(x, ast.Break) for x in ast.walk(node)):
            self.builder.unreachable()

    def _For(self, node: ast.For) -> None:
        if node.orelse:
            raise Unsupported("else after a loop")
        match node.iter:
            case ast.Call(func=ast.Name(id="range"), args=arguments):
                numbers = [self.number(x) for x in arguments]
                start, end = (integer(0), numbers[0]) if len(numbers) == 1 else numbers[:2]
                step = numbers[2] if len(numbers) == 3 else integer(1)
                if not all(x.kind.signed and not x.kind.real for x in numbers):
                    raise Unsupported("a range of what is not signed")
                if self._written_out(node, start, end, step):
                    return
                self._counted(node, start, end, step, lambda i: Number(I64, i))
            case _:
                array = self.array(node.iter)
                end = Number(I64, array.sizes[0])
                self._counted(
                    node,
                    integer(0),
                    end,
                    integer(1),
                    lambda i: memory.load(self.builder, array, Number(I64, i)),
                )

    def _counted(
        self, node: ast.For, start: Number, end: Number, step: Number, item: Callable[[Any], Operand]
    ) -> None:
        if step.constant is not None and step.constant <= 0:
            raise Unsupported("a step that is not positive")
        builder = self.builder
        first, last, by = (arithmetic.convert(builder, x, I64).llvm for x in (start, end, step))
        before, (body, following, after) = builder.block, (builder.append_basic_block() for _ in range(3))
        builder.cbranch(builder.icmp_signed("<", first, last), body, after)
        builder.position_at_end(body)
        i = builder.phi(I64.llvm)
        i.add_incoming(first, before)
        self.scope.open()
        self._put(node.target, item(i))
        self._looped(node, following, after)
        self.scope.close()
        builder.position_at_end(following)
        more = builder.add(i, by, flags=["nsw"])
        i.add_incoming(more, following)
        builder.cbranch(builder.icmp_signed("<", more, last), body, after)
        builder.position_at_end(after)

    def _looped(self, node: ast.For | ast.While, following: Any, after: Any) -> None:
        """Lower the body of a loop, and go on to its next round at `following`."""
        self.scope.frame.loops += 1
        self.scope.around.append((following, after))
        self._nested(node.body, following)
        self.scope.around.pop()
        self.scope.frame.loops -= 1
        self.builder.position_at_end(after)

    def _written_out(self, node: ast.For, start: Number, end: Number, step: Number) -> bool:
        """Lower a loop over a tuple round by round: which item is meant has to be known."""
        if not isinstance(node.target, ast.Name) or not self._chooses_items(node):
            return False
        if start.constant is None or end.constant is None or step.constant is None:
            return False
        rounds = range(start.constant, end.constant, step.constant)
        if len(rounds) > _MOST_ROUNDS or any(isinstance(x, ast.Break | ast.Continue) for x in ast.walk(node)):
            return False
        name = node.target.id
        if name in self.scope.names or any(name in stored_names(part) for part in node.body):
            raise Unsupported(f"{name} counts, and is used for something else")
        for i in rounds:
            self.scope.bind(name, integer(i))
            self.scope.open()
            self.block(node.body)
            self.scope.close()
            if self.builder.block.is_terminated:
                break
        self.scope.names.pop(name)
        return True

    def _chooses_items(self, node: ast.For) -> bool:
        chosen = [x.value for x in ast.walk(node) if isinstance(x, ast.Subscript)]
        return any(isinstance(x, ast.Name) and self.scope.has_items(x.id) for x in chosen)


def _title(known: Known, operands: Sequence[Operand]) -> tuple[Any, ...]:
    """What tells a function with arguments of some types from all others."""
    assert known.function is not None
    return (known.module.name, known.function.name, *map(shape_of, operands))
