"""Compiled folds: what reductions do with a block of elements, ``[operands, BLOCK]``.

Float sums go through fixed lanes (`fused_vector`), so their bits do not depend on the machine's vectors; what
is left of a block at its end is added after them, element by element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mergegraph.kernels.fused import f64, helper, i32, jit
from mergegraph.kernels.fused_vector import LANES, cross_products, dot_products, sum_of_magnitudes
from mergegraph.kernels.reduction import BLOCK, Array


@jit
def fold_gram2(block, count, state):  # type: ignore[no-untyped-def]
    """`fold_gram` of two rows: to compile what is known to be enough takes a third of the time."""
    full = count - count % LANES
    _add(state, dot_products((block[0], block[1]), full))
    _add_rest(block, full, count, state)


@jit
def fold_gram3(block, count, state):  # type: ignore[no-untyped-def]
    """`fold_gram` of three rows."""
    full = count - count % LANES
    _add(state, dot_products((block[0], block[1], block[2]), full))
    _add_rest(block, full, count, state)


@jit
def fold_gram4(block, count, state):  # type: ignore[no-untyped-def]
    """`fold_gram` of four rows."""
    full = count - count % LANES
    _add(state, dot_products((block[0], block[1], block[2], block[3]), full))
    _add_rest(block, full, count, state)


@jit
def fold_gram(block, count, state):  # type: ignore[no-untyped-def]
    """Add the dot products of all pairs of ``block[k, :count]`` to `state`, each row with itself first."""
    models = len(block)
    if models == 2:
        fold_gram2(block, count, state)
    elif models == 3:
        fold_gram3(block, count, state)
    elif models == 4:
        fold_gram4(block, count, state)
    else:
        full = count - count % LANES
        _gram_by_threes(block, full, state)
        _add_rest(block, full, count, state)


@helper
def _add_rest(block, full, count, state):  # type: ignore[no-untyped-def]
    at = 0
    for p in range(len(block)):
        for q in range(p, len(block)):
            for i in range(full, count):
                state[at] += f64(block[p, i]) * f64(block[q, i])
            at += 1


@jit
def _gram_by_threes(block, count, state):  # type: ignore[no-untyped-def]
    """The same for any number of rows: more than nine sums at a time would not stay in registers."""
    last = len(block) - 1
    for p in range(0, last + 1, 3):
        left = (block[p], block[min(p + 1, last)], block[min(p + 2, last)])
        for q in range(p, last + 1, 3):
            right = (block[q], block[min(q + 1, last)], block[min(q + 2, last)])
            sums = cross_products(left, right, count)
            for i in range(3):
                first = (p + i) * (2 * last + 1 - p - i) // 2  # place of row p + i in `state`, less p + i
                for j in range(3):
                    if p + i <= q + j <= last:
                        state[first + q + j] += sums[3 * i + j]


@helper
def _add(state, sums):  # type: ignore[no-untyped-def]
    for i in range(len(sums)):
        state[i] += sums[i]


@jit
def fold_l1(block, count, state):  # type: ignore[no-untyped-def]
    """Add ``Σ|block[0, :count]|`` to ``state[0]``."""
    full = count - count % LANES
    state[0] += sum_of_magnitudes(block[0], full)
    for i in range(full, count):
        state[0] += abs(f64(block[0, i]))


@jit
def fold_squares(block, count, state):  # type: ignore[no-untyped-def]
    """Add ``Σ block[k, :count]²`` to ``state[k]`` for every k."""
    full = count - count % LANES
    for k in range(len(block)):
        state[k] += dot_products((block[k],), full)[0]
        for i in range(full, count):
            state[k] += f64(block[k, i]) * f64(block[k, i])


@jit
def fold_columns(block, count, state, columns, begin):  # type: ignore[no-untyped-def]
    """Add ``a·a``, ``a·b`` and ``b·b`` of every column; the block starts at element `begin`.

    The sums of one kind stand together in `state`, column by column.
    """
    lo = 0
    while lo < count:
        c = (begin + lo) % columns
        m = min(columns - c, count - lo)
        x, y = block[0, lo : lo + m], block[1, lo : lo + m]
        _add_products(x, x, state[c : c + m])
        _add_products(x, y, state[columns + c : columns + c + m])
        _add_products(y, y, state[2 * columns + c : 2 * columns + c + m])
        lo += m


@helper
def _add_products(x, y, sums):  # type: ignore[no-untyped-def]
    for j in range(len(sums)):
        sums[j] += f64(x[j]) * f64(y[j])


@jit
def fold_nonzero(block, count, state):  # type: ignore[no-untyped-def]
    """Count the elements of ``block[0, :count]`` that are not zero."""
    total = i32(0)  # of the elements' size: wider counts would halve the vectors
    for i in range(count):
        total = i32(total + i32(block[0, i] != 0))
    state[0] += total


@jit
def fold_overlap(block, count, state, epsilon):  # type: ignore[no-untyped-def]
    """Count, for each k, where it alone is active (``state[2k]``) and where others are too."""
    limit = block.dtype.type(epsilon)
    sharing = np.zeros(count, np.int32)
    for k in range(len(block)):
        row = block[k]
        for i in range(count):
            sharing[i] += i32(0) if abs(row[i]) <= limit else i32(1)
    for k in range(len(block)):
        row = block[k]
        active, alone = i32(0), i32(0)
        for i in range(count):
            here = i32(0) if abs(row[i]) <= limit else i32(1)
            active = i32(active + here)
            alone = i32(alone + (here if sharing[i] == 1 else i32(0)))
        state[2 * k] += alone
        state[2 * k + 1] += active - alone


def gram_row(chunk: Array) -> Array:
    """The Gram row of one chunk ``[k, n]``, folded block by block as generated code does."""
    k = chunk.shape[0]
    return _by_blocks(fold_gram, chunk, np.zeros(k * (k + 1) // 2))


def l1_row(chunk: Array) -> Array:
    """The sum of magnitudes of one chunk ``[1, n]``, folded block by block."""
    return _by_blocks(fold_l1, chunk, np.zeros(1))


def squares_row(chunk: Array) -> Array:
    """The sums of squares of one chunk ``[k, n]``, folded block by block."""
    return _by_blocks(fold_squares, chunk, np.zeros(chunk.shape[0]))


def _by_blocks(fold: Callable[..., Any], chunk: Array, state: Array) -> Array:
    for begin in range(0, chunk.shape[1], BLOCK):
        block = np.ascontiguousarray(chunk[:, begin : begin + BLOCK])
        fold(block, block.shape[1], state)
    return state
