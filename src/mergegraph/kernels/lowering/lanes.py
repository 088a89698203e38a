"""Reductions of rows in 16 fixed lanes that stay in registers, as LLVM code.

LLVM cuts the lanes into whatever vectors the machine has, so the order of additions, and with it every bit,
is the same on every machine. A loop over an array of lanes would load and store each of them at each step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir

from mergegraph.kernels.lowering.arithmetic import external

LANES = 16
"""Two registers of eight float64: enough sums are under way to hide how long one addition takes."""

_LANES = ir.VectorType(ir.DoubleType(), LANES)

Step = Callable[[Any, Sequence[Any], Any], Any]
"""(builder, the rows' vectors, lanes so far) → lanes with one more vector of each row."""
Join = Callable[[Any, Any, Any], Any]
"""(builder, lanes, lanes) → one of both."""


class Rows(NamedTuple):
    """Rows of float32 or float64 (`bits`), and how many elements of each count, a multiple of `LANES`."""

    pointers: Sequence[Any]
    bits: int
    count: Any


def products(builder: Any, rows: Rows, pairs: Sequence[tuple[int, int]]) -> list[Any]:
    """The dot products of pairs of rows."""
    return _reduced(builder, rows, [_product(p, q, rows.bits) for p, q in pairs], _plus, 0.0)


def pairs_of(count: int) -> list[tuple[int, int]]:
    """All pairs of `count` rows, each row with itself first."""
    return [(p, q) for p in range(count) for q in range(p, count)]


def pairs_between(left: int, right: int) -> list[tuple[int, int]]:
    """Each of `left` rows with each of `right` more."""
    return [(p, left + q) for p in range(left) for q in range(right)]


def total(builder: Any, rows: Rows) -> Any:
    """The sum of a row."""
    return _reduced(builder, rows, [lambda b, vectors, lanes: b.fadd(lanes, vectors[0])], _plus, 0.0)[0]


def total_of_magnitudes(builder: Any, rows: Rows) -> Any:
    """The sum of a row's magnitudes."""

    def step(builder: Any, vectors: Sequence[Any], lanes: Any) -> Any:
        return builder.fadd(lanes, builder.call(_function(builder, "fabs", 1), vectors))

    return _reduced(builder, rows, [step], _plus, 0.0)[0]


def largest(builder: Any, rows: Rows) -> Any:
    """The largest number of a row; -inf without any."""

    def step(builder: Any, vectors: Sequence[Any], lanes: Any) -> Any:
        return _larger(builder, vectors[0], lanes)

    return _reduced(builder, rows, [step], _larger, -math.inf)[0]


def _plus(builder: Any, a: Any, b: Any) -> Any:
    return builder.fadd(a, b)


def _larger(builder: Any, a: Any, b: Any) -> Any:
    """`a` where it is larger, else `b`: an `a` that is not a number is left out."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _product(p: int, q: int, bits: int) -> Step:
    """Add the product of two rows' vectors.

    The float64 product of two float32 is exact, so a fused multiplication and addition, which `fmuladd` is
    where the machine has one, gives the bits of the two operations.
    """

    def step(builder: Any, vectors: Sequence[Any], lanes: Any) -> Any:
        if bits == 32:
            return builder.call(_function(builder, "fmuladd", 3), [vectors[p], vectors[q], lanes])
        return builder.fadd(lanes, builder.fmul(vectors[p], vectors[q]))

    return step


def _function(builder: Any, name: str, arity: int) -> Any:
    """One of LLVM's own functions, on lanes."""
    return external(builder, f"llvm.{name}.v{LANES}f64", _LANES, [_LANES] * arity)


def _reduced(builder: Any, rows: Rows, steps: Sequence[Step], join: Join, start: float) -> list[Any]:
    """Emit one loop over rows that takes all `steps`, and join the lanes of each."""
    count = rows.count
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
    vectors = [_load(builder, pointer, index, rows.bits) for pointer in rows.pointers]
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
