"""Reductions of rows in 16 fixed lanes that stay in registers, as LLVM code.

LLVM cuts the lanes into whatever vectors the machine has, so the order of additions, and with it every bit,
is the same on every machine. A loop over an array of lanes would load and store each of them at each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

LANES = 16
"""Two registers of eight float64: enough sums are under way to hide how long one addition takes."""

_LANES = ir.VectorType(ir.DoubleType(), LANES)

Step = Callable[[Any, Sequence[Any], Any], Any]
"""(builder, the rows' vectors, lanes so far) → lanes with one more vector of each row."""
Join = Callable[[Any, Any, Any], Any]
"""(builder, lanes, lanes) → one of both."""


def _emitted(typed: Callable[..., Any]) -> Callable[..., Any]:
    """A function for compiled code: `typed` gives its signature for types, and what emits its code."""
    function: Callable[..., Any] = intrinsic(typed)
    return function


@_emitted
def dot_products(_, rows, count):  # type: ignore[no-untyped-def]
    """Dot products of all pairs in a tuple of rows, each row with itself first.

    Rows are contiguous arrays of one type, float32 or float64, and `count` is a multiple of `LANES`.
    """
    _check(rows.dtype)
    pairs = [(p, q) for p in range(rows.count) for q in range(p, rows.count)]
    steps = [_product(p, q, rows.dtype) for p, q in pairs]

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        sums = _reduce(context, builder, cgutils.unpack_tuple(builder, args[0]), rows.dtype, args[1], steps)
        return context.make_tuple(builder, signature.return_type, sums)

    return types.UniTuple(types.float64, len(pairs))(rows, count), code


@_emitted
def cross_products(_, left, right, count):  # type: ignore[no-untyped-def]
    """Dot products of each row of the tuple `left` with each of `right`, otherwise as `dot_products`."""
    _check(left.dtype)
    pairs = [(p, left.count + q) for p in range(left.count) for q in range(right.count)]
    steps = [_product(p, q, left.dtype) for p, q in pairs]

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        rows = [row for side in args[:2] for row in cgutils.unpack_tuple(builder, side)]
        sums = _reduce(context, builder, rows, left.dtype, args[2], steps)
        return context.make_tuple(builder, signature.return_type, sums)

    return types.UniTuple(types.float64, len(pairs))(left, right, count), code


@_emitted
def sum_of(_, row, count):  # type: ignore[no-untyped-def]
    """The sum of a row's first `count` elements, a multiple of `LANES`."""

    def step(builder: Any, vectors: Sequence[Any], lanes: Any) -> Any:
        return builder.fadd(lanes, vectors[0])

    return _of_one_row(row, count, step, _plus, 0.0)


@_emitted
def sum_of_magnitudes(_, row, count):  # type: ignore[no-untyped-def]
    """The sum of the magnitudes of a row's first `count` elements, a multiple of `LANES`."""

    def step(builder: Any, vectors: Sequence[Any], lanes: Any) -> Any:
        return builder.fadd(lanes, builder.call(_function(builder, "fabs", 1), vectors))

    return _of_one_row(row, count, step, _plus, 0.0)


@_emitted
def largest_of(_, row, count):  # type: ignore[no-untyped-def]
    """The largest number among a row's first `count` elements, a multiple of `LANES`; -inf without any."""

    def step(builder: Any, vectors: Sequence[Any], lanes: Any) -> Any:
        return _larger(builder, vectors[0], lanes)

    return _of_one_row(row, count, step, _larger, -math.inf)


@_emitted
def pointer_to(_, dtype, address):  # type: ignore[no-untyped-def]
    """A pointer to numbers of type `dtype` at an address."""
    result = types.CPointer(dtype.instance_type)

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[1], context.get_value_type(signature.return_type))

    return result(dtype, address), code


def _of_one_row(row: Any, count: Any, step: Step, join: Join, start: float) -> tuple[Any, Any]:
    """The signature and code of a function of one row."""
    _check(row)

    def code(context, builder, _, args):  # type: ignore[no-untyped-def]
        return _reduce(context, builder, args[:1], row, args[1], [step], join, start)[0]

    return types.float64(row, count), code


def _check(row: Any) -> None:
    """Refuse what is no row: elements are read one after the other."""
    if row.layout != "C" or row.dtype not in (types.float32, types.float64):
        raise TypingError(f"a row is a contiguous array of float32 or float64, not {row}: copy it first")


def _plus(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """`a` where it is larger, else `b`: an `a` that is not a number is left out."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _product(p: int, q: int, kind: Any) -> Step:
    """Add the product of two rows' vectors.

    The float64 product of two float32 is exact, so a fused multiplication and addition, which `fmuladd` is
    where the machine has one, gives the bits of the two operations.
    """

    def step(builder: Any, vectors: Sequence[Any], lanes: Any) -> Any:
        if kind.dtype.bitwidth == 32:
            return builder.call(_function(builder, "fmuladd", 3), [vectors[p], vectors[q], lanes])
        return builder.fadd(lanes, builder.fmul(vectors[p], vectors[q]))

    return step


def _function(builder: Any, name: str, arity: int) -> Any:
    """One of LLVM's own functions, on lanes."""
    kind = ir.FunctionType(_LANES, [_LANES] * arity)
    return cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.v{LANES}f64")


def _reduce(
    context: Any,
    builder: Any,
    rows: Sequence[Any],
    kind: Any,
    count: Any,
    steps: Sequence[Step],
    join: Join = _plus,
    start: float = 0.0,
) -> list[Any]:
    """Emit one loop over rows of array type `kind` that takes all `steps`, and join the lanes of each."""
    pointers = [context.make_array(kind)(context, builder, row).data for row in rows]
    before, test, body, after = builder.block, *(builder.append_basic_block() for _ in range(3))
    builder.branch(test)
    builder.position_at_end(test)
    index = builder.phi(count.type)
    index.add_incoming(count.type(0), before)
    states = [builder.phi(_LANES) for _ in steps]
    for lanes in states:
        lanes.add_incoming(_LANES([start] * LANES), before)
    builder.cbranch(builder.icmp_signed("<", index, count), body, after)
    builder.position_at_end(body)
    vectors = [_load(builder, pointer, index, kind.dtype.bitwidth) for pointer in pointers]
    for step, lanes in zip(steps, states, strict=True):
        lanes.add_incoming(step(builder, vectors, lanes), body)
    index.add_incoming(builder.add(index, count.type(LANES)), body)
    builder.branch(test)
    builder.position_at_end(after)
    return [_across(builder, lanes, join) for lanes in states]


def _load(builder: Any, pointer: Any, index: Any, bits: int) -> Any:
    """The next lanes of a row, in float64."""
    element = ir.FloatType() if bits == 32 else ir.DoubleType()
    place = builder.bitcast(builder.gep(pointer, [index]), ir.VectorType(element, LANES).as_pointer())
    vector = builder.load(place, align=bits // 8)
    return builder.fpext(vector, _LANES) if bits == 32 else vector


def _across(builder: Any, lanes: Any, join: Join) -> Any:
    """Join the upper half of the lanes to the lower one, until one is left."""
    width = LANES
    while width > 1:
        width //= 2
        select = ir.VectorType(ir.IntType(32), width)
        low, high = (
            builder.shuffle_vector(lanes, lanes, select(list(range(first, first + width))))
            for first in (0, width)
        )
        lanes = join(builder, low, high)
    return builder.extract_element(lanes, ir.IntType(32)(0))
