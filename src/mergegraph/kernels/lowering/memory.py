"""What arrays do: elements, rows, slices, views and scratch memory.

Indices are not negative. The bounds of slices are cut to the array, as Python does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir

from mergegraph.kernels.lowering.arithmetic import convert, external
from mergegraph.kernels.lowering.kinds import BYTES, I64, Array, Number, Scalar, Unsupported, integer

_WORD = I64.llvm


class Bounds(NamedTuple):
    """A slice: None where it begins or ends with the array."""

    begin: Number | None
    end: Number | None


def index(builder: Any, value: Number) -> Any:
    """A number that counts elements."""
    if value.kind.real or (value.constant is not None and value.constant < 0):
        raise Unsupported("an index that is negative or no integer")
    return convert(builder, value, I64).llvm


def element(builder: Any, array: Array, *at: Number) -> Any:
    """The address of an element."""
    if len(at) != len(array.sizes):
        raise Unsupported(f"{len(at)} indices of {len(array.sizes)} dimensions")
    place = index(builder, at[0])
    if len(at) == 2:
        place = builder.add(builder.mul(place, array.sizes[1]), index(builder, at[1]))
    return builder.gep(array.data, [place])


def load(builder: Any, array: Array, *at: Number) -> Number:
    """An element."""
    return Number(array.element, builder.load(element(builder, array, *at)))


def store(builder: Any, array: Array, value: Number, *at: Number) -> None:
    """Change an element."""
    builder.store(convert(builder, value, array.element).llvm, element(builder, array, *at))


def row(builder: Any, array: Array, at: Number) -> Array:
    """A row of a matrix."""
    if len(array.sizes) != 2:
        raise Unsupported("a row of what is no matrix")
    begin = builder.mul(index(builder, at), array.sizes[1])
    return Array(array.element, builder.gep(array.data, [begin]), array.sizes[1:])


def part(builder: Any, array: Array, bounds: Bounds) -> Array:
    """A slice of an array of one dimension."""
    if len(array.sizes) != 1:
        raise Unsupported("a slice of rows")
    (size,) = array.sizes
    begin = _WORD(0) if bounds.begin is None else _least(builder, index(builder, bounds.begin), size)
    end = size if bounds.end is None else _least(builder, index(builder, bounds.end), size)
    length = builder.sub(end, begin)
    if bounds.begin is not None and bounds.end is not None:
        length = builder.select(builder.icmp_signed("<", length, _WORD(0)), _WORD(0), length)
    return Array(array.element, builder.gep(array.data, [begin]), (length,))


def _least(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed("<", a, b), a, b)


def view(builder: Any, array: Array, kind: Scalar) -> Array:
    """The bytes of an array as elements of another type."""
    *rows, last = array.sizes
    old, new = array.element.nbytes, kind.nbytes
    if old > new:
        last = builder.mul(last, _WORD(old // new))
    elif old < new:
        last = builder.sdiv(last, _WORD(new // old))
    return Array(kind, builder.bitcast(array.data, kind.llvm.as_pointer()), (*rows, last))


def fill(builder: Any, array: Array, value: Number) -> None:
    """Set all elements of an array of one dimension."""
    if len(array.sizes) != 1:
        raise Unsupported("filling a matrix")
    number = convert(builder, value, array.element)
    if number.constant == 0:
        clear(builder, array.data, builder.mul(array.sizes[0], _WORD(array.element.nbytes)))
        return
    _for_each(builder, array, lambda _: number.llvm)


def count_up(builder: Any, array: Array) -> None:
    """Set each element to its number."""
    _for_each(builder, array, lambda i: i)


def _for_each(builder: Any, array: Array, made: Callable[[Any], Any]) -> None:
    (size,) = array.sizes
    before, body, after = builder.block, *(builder.append_basic_block() for _ in range(2))
    builder.cbranch(builder.icmp_signed(">", size, _WORD(0)), body, after)
    builder.position_at_end(body)
    i = builder.phi(_WORD)
    i.add_incoming(_WORD(0), before)
    builder.store(made(i), builder.gep(array.data, [i]))
    following = builder.add(i, _WORD(1))
    i.add_incoming(following, body)
    builder.cbranch(builder.icmp_signed("<", following, size), body, after)
    builder.position_at_end(after)


def copy(builder: Any, target: Array, source: Array) -> None:
    """Set the elements of an array of one dimension to those of another."""
    if target.element != source.element or not len(target.sizes) == len(source.sizes) == 1:
        raise Unsupported("a copy between arrays of different types")
    takes = [BYTES, BYTES, _WORD, ir.IntType(1)]
    function = external(builder, "llvm.memmove.p0.p0.i64", ir.VoidType(), takes)
    addresses = [builder.bitcast(array.data, BYTES) for array in (target, source)]
    nbytes = builder.mul(target.sizes[0], _WORD(target.element.nbytes))
    builder.call(function, [*addresses, nbytes, ir.IntType(1)(0)])


def clear(builder: Any, pointer: Any, nbytes: Any) -> None:
    """Zero bytes."""
    takes = [BYTES, ir.IntType(8), _WORD, ir.IntType(1)]
    function = external(builder, "llvm.memset.p0.i64", ir.VoidType(), takes)
    arguments = [builder.bitcast(pointer, BYTES), ir.IntType(8)(0), nbytes, ir.IntType(1)(0)]
    builder.call(function, arguments)


def on_stack(entry: Any, kind: Scalar, sizes: tuple[Number, ...], most: int) -> Array | None:
    """An array on the stack, made where `entry` builds; None if it may take more than `most` bytes."""
    count = 1
    for size in sizes:
        if size.constant is None or size.constant < 0:
            return None
        count *= size.constant
    if count * kind.nbytes > most:
        return None
    data = entry.alloca(kind.llvm, size=_WORD(count))
    return Array(
        kind, data, tuple(integer(size.constant).llvm for size in sizes if size.constant is not None)
    )


def allocated(builder: Any, kind: Scalar, sizes: tuple[Number, ...]) -> Array:
    """A new array of what `malloc` gives; its address is 0 where there is no memory left."""
    lengths = tuple(index(builder, size) for size in sizes)
    count = lengths[0] if len(lengths) == 1 else builder.mul(*lengths)
    limits = [1 << 56] if len(lengths) == 1 else [1 << 16, 1 << 40]
    nbytes = builder.add(builder.mul(count, _WORD(kind.nbytes)), _WORD(1))  # of 0 bytes it may give nothing
    for length, limit in zip(lengths, limits, strict=True):
        # More than there can be is as much as there is not, or the product would not show it.
        over = builder.icmp_unsigned(">", length, _WORD(limit))
        nbytes = builder.select(over, _WORD((1 << 63) - 1), nbytes)
    memory = builder.call(external(builder, "malloc", BYTES, [_WORD]), [nbytes])
    return Array(kind, builder.bitcast(memory, kind.llvm.as_pointer()), lengths)


def free(builder: Any, memory: Any) -> None:
    """Give back what `allocated` took, or nothing if it is 0."""
    builder.call(external(builder, "free", ir.VoidType(), [BYTES]), [memory])
