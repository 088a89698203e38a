"""What an expression can be while code is made of it: a number, an array, several of them, or a type."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llvmlite import ir


class Unsupported(Exception):
    """Code that this package does not know how to lower, or would lower differently from numba."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """A type of numbers."""

    name: str
    bits: int
    real: bool = False
    signed: bool = False

    @property
    def llvm(self) -> Any:
        """How LLVM calls it."""
        if self.real:
            return ir.FloatType() if self.bits == 32 else ir.DoubleType()
        return ir.IntType(self.bits)

    @property
    def nbytes(self) -> int:
        """Bytes of one in memory."""
        return self.bits // 8


BYTES = ir.IntType(8).as_pointer()
"""The type of addresses of whatever there is."""
BOOL = Scalar("bool", 1)
I32, I64 = (Scalar(f"int{bits}", bits, signed=True) for bits in (32, 64))
U64 = Scalar("uint64", 64)
F32, F64 = (Scalar(f"float{bits}", bits, real=True, signed=True) for bits in (32, 64))
SCALARS = {
    kind.name: kind
    for kind in (
        I32,
        I64,
        U64,
        F32,
        F64,
        *(Scalar(f"uint{bits}", bits) for bits in (8, 16, 32)),
        *(Scalar(f"int{bits}", bits, signed=True) for bits in (8, 16)),
    )
}
"""The numbers that arrays hold, by their numpy names."""


@dataclass(frozen=True, slots=True)
class Number:
    """A value of a scalar type.

    `constant` is which integer, where the text itself says so. `made` is what a wide integer was computed
    from with an operator for which the low bits of the operands are enough: LLVM's name of it, and they.
    """

    kind: Scalar
    llvm: Any
    constant: int | None = None
    made: tuple[str, Number, Number] | None = None


@dataclass(frozen=True, slots=True)
class Array:
    """A contiguous array: where it begins, and how long it is in each dimension, in C order."""

    element: Scalar
    data: Any
    sizes: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Items:
    """A tuple."""

    items: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of numbers as a value: called, it converts to it."""

    scalar: Scalar


@dataclass(frozen=True, slots=True)
class DType:
    """What ``array.dtype`` gives."""

    scalar: Scalar


Operand = Number | Array | Items | Kind | DType


def shape_of(operand: Operand) -> tuple[Any, ...]:
    """Everything about an operand that is known while compiling: equal for those that one function takes."""
    match operand:
        case Number():
            return ("number", operand.kind)
        case Array():
            return ("array", operand.element, len(operand.sizes))
        case Items():
            return ("items", *map(shape_of, operand.items))
        case Kind() | DType():
            return (type(operand), operand.scalar)


def parts_of(operand: Operand) -> Iterator[Any]:
    """The LLVM values that an operand consists of."""
    match operand:
        case Number():
            yield operand.llvm
        case Array():
            yield operand.data
            yield from operand.sizes
        case Items():
            for item in operand.items:
                yield from parts_of(item)


def rebuilt(operand: Operand, parts: Iterator[Any]) -> Operand:
    """An operand of the same shape from other LLVM values, taken from `parts`."""
    match operand:
        case Number():
            return Number(operand.kind, next(parts))
        case Array():
            return Array(operand.element, next(parts), tuple(next(parts) for _ in operand.sizes))
        case Items():
            return Items(tuple(rebuilt(item, parts) for item in operand.items))
        case _:
            return operand


def integer(value: int, kind: Scalar = I64) -> Number:
    """A constant integer, cut to the width of `kind`."""
    value &= (1 << kind.bits) - 1
    if kind.signed and value >> (kind.bits - 1):
        value -= 1 << kind.bits
    return Number(kind, ir.Constant(kind.llvm, value), value)
