"""Reductions of rows in fixed lanes, as functions for numba: see `mergegraph.kernels.lowering.lanes`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from mergegraph.kernels.lowering import lanes
from mergegraph.kernels.lowering.lanes import LANES as LANES
from mergegraph.kernels.lowering.lanes import Rows


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
    pairs = lanes.pairs_of(rows.count)

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        found = _rows(context, builder, cgutils.unpack_tuple(builder, args[0]), rows.dtype, args[1])
        return context.make_tuple(builder, signature.return_type, lanes.products(builder, found, pairs))

    return types.UniTuple(types.float64, len(pairs))(rows, count), code


@_emitted
def cross_products(_, left, right, count):  # type: ignore[no-untyped-def]
    """Dot products of each row of the tuple `left` with each of `right`, otherwise as `dot_products`."""
    _check(left.dtype)
    pairs = lanes.pairs_between(left.count, right.count)

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        both = [row for side in args[:2] for row in cgutils.unpack_tuple(builder, side)]
        found = _rows(context, builder, both, left.dtype, args[2])
        return context.make_tuple(builder, signature.return_type, lanes.products(builder, found, pairs))

    return types.UniTuple(types.float64, len(pairs))(left, right, count), code


@_emitted
def sum_of(_, row, count):  # type: ignore[no-untyped-def]
    """The sum of a row's first `count` elements, a multiple of `LANES`."""
    return _of_one_row(row, count, lanes.total)


@_emitted
def sum_of_magnitudes(_, row, count):  # type: ignore[no-untyped-def]
    """The sum of the magnitudes of a row's first `count` elements, a multiple of `LANES`."""
    return _of_one_row(row, count, lanes.total_of_magnitudes)


@_emitted
def largest_of(_, row, count):  # type: ignore[no-untyped-def]
    """The largest number among a row's first `count` elements, a multiple of `LANES`; -inf without any."""
    return _of_one_row(row, count, lanes.largest)


@_emitted
def pointer_to(_, dtype, address):  # type: ignore[no-untyped-def]
    """A pointer to numbers of type `dtype` at an address."""
    result = types.CPointer(dtype.instance_type)

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.inttoptr(args[1], context.get_value_type(signature.return_type))

    return result(dtype, address), code


def _of_one_row(row: Any, count: Any, emit: Callable[[Any, Rows], Any]) -> tuple[Any, Any]:
    """The signature and code of a function of one row."""
    _check(row)

    def code(context, builder, _, args):  # type: ignore[no-untyped-def]
        return emit(builder, _rows(context, builder, args[:1], row, args[1]))

    return types.float64(row, count), code


def _rows(context: Any, builder: Any, rows: Sequence[Any], kind: Any, count: Any) -> Rows:
    """Rows of array type `kind`."""
    pointers = [context.make_array(kind)(context, builder, row).data for row in rows]
    return Rows(pointers, kind.dtype.bitwidth, count)


def _check(row: Any) -> None:
    """Refuse what is no row: elements are read one after the other."""
    if row.layout != "C" or row.dtype not in (types.float32, types.float64):
        raise TypingError(f"a row is a contiguous array of float32 or float64, not {row}: copy it first")
