"""Compiled folds: what reductions do with a block of elements, ``[operands, BLOCK]``.

Float sums go through 64 fixed lanes, so their bits do not depend on the machine's vector width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mergegraph.kernels.fused import BLOCK, f64, jit, u32, u64
from mergegraph.kernels.reduction import Array


@jit
def fold_gram(block, count, state):  # type: ignore[no-untyped-def]
    """Add the pairwise dot products of ``block[k, :count]`` to `state`, in 64 fixed lanes."""
    lanes = np.zeros(64)
    at = 0
    for p in range(block.shape[0]):
        for q in range(p, block.shape[0]):
            a, b = block[p], block[q]
            for lane in range(64):
                lanes[lane] = 0.0
            full = count - count % 64
            for i in range(0, full, 64):
                for lane in range(64):
                    lanes[lane] += f64(a[i + lane]) * f64(b[i + lane])
            for i in range(full, count):
                lanes[i - full] += f64(a[i]) * f64(b[i])
            total = 0.0
            for lane in range(64):
                total += lanes[lane]
            state[at] += total
            at += 1


@jit
def fold_l1(block, count, state):  # type: ignore[no-untyped-def]
    """Add ``Σ|block[0, :count]|`` to ``state[0]``, in 64 fixed lanes."""
    lanes = np.zeros(64)
    full = count - count % 64
    for i in range(0, full, 64):
        for lane in range(64):
            lanes[lane] += abs(f64(block[0, i + lane]))
    for i in range(full, count):
        lanes[i - full] += abs(f64(block[0, i]))
    for lane in range(64):
        state[0] += lanes[lane]


@jit
def fold_squares(block, count, state):  # type: ignore[no-untyped-def]
    """Add ``Σ block[k, :count]²`` to ``state[k]`` for every k, in 64 fixed lanes."""
    lanes = np.zeros(64)
    full = count - count % 64
    for k in range(block.shape[0]):
        for lane in range(64):
            lanes[lane] = 0.0
        for i in range(0, full, 64):
            for lane in range(64):
                lanes[lane] += f64(block[k, i + lane]) * f64(block[k, i + lane])
        for i in range(full, count):
            lanes[i - full] += f64(block[k, i]) * f64(block[k, i])
        for lane in range(64):
            state[k] += lanes[lane]


@jit
def fold_columns(block, count, state, columns, begin):  # type: ignore[no-untyped-def]
    """Add ``a·a``, ``a·b`` and ``b·b`` of every column; the block starts at element `begin`.

    The sums of one kind stand together in `state`, column by column.
    """
    lo = 0
    while lo < count:
        c = (begin + lo) % columns
        m = min(columns - c, count - lo)
        for j in range(m):
            a, b = f64(block[0, lo + j]), f64(block[1, lo + j])
            state[c + j] += a * a
            state[columns + c + j] += a * b
            state[2 * columns + c + j] += b * b
        lo += m


@jit
def fold_nonzero(block, count, state):  # type: ignore[no-untyped-def]
    """Count the elements of ``block[0, :count]`` that are not zero."""
    total = 0
    for i in range(count):
        total += 1 if block[0, i] != 0 else 0
    state[0] += total


@jit
def fold_overlap(block, count, state, epsilon):  # type: ignore[no-untyped-def]
    """Count, for each k, where it alone is active (``state[2k]``) and where others are too."""
    for i in range(count):
        active = 0
        for k in range(block.shape[0]):
            active += 0 if abs(block[k, i]) <= epsilon else 1
        shared = 1 if active > 1 else 0
        for k in range(block.shape[0]):
            if not abs(block[k, i]) <= epsilon:
                state[2 * k + shared] += 1


@jit
def fold_histogram32(block, count, state, shift):  # type: ignore[no-untyped-def]
    """Count the magnitude bits above `shift` of the float32 ``block[0, :count]``."""
    bits_of = block[0].view(np.uint32)
    for i in range(count):
        state[u32(bits_of[i] & u32(0x7FFFFFFF)) >> u32(shift)] += 1


@jit
def fold_histogram64(block, count, state, shift):  # type: ignore[no-untyped-def]
    """Count the magnitude bits above `shift` of the float64 ``block[0, :count]``."""
    bits_of = block[0].view(np.uint64)
    for i in range(count):
        state[(bits_of[i] & u64(0x7FFFFFFFFFFFFFFF)) >> u64(shift)] += 1


@jit
def fold_histogram_within32(block, count, state, shift, bits, prefix):  # type: ignore[no-untyped-def]
    """Count the next `bits` bits of the float32 elements whose bits above them equal `prefix`."""
    bits_of, wanted, mask = block[0].view(np.uint32), u32(prefix), u32((1 << bits) - 1)
    for i in range(count):
        magnitude = u32(bits_of[i] & u32(0x7FFFFFFF))
        if u32(magnitude >> u32(shift + bits)) == wanted:
            state[u32(magnitude >> u32(shift)) & mask] += 1


@jit
def fold_histogram_within64(block, count, state, shift, bits, prefix):  # type: ignore[no-untyped-def]
    """Count the next `bits` bits of the float64 elements whose bits above them equal `prefix`."""
    bits_of, wanted, mask = block[0].view(np.uint64), u64(prefix), u64((1 << bits) - 1)
    for i in range(count):
        magnitude = bits_of[i] & u64(0x7FFFFFFFFFFFFFFF)
        if magnitude >> u64(shift + bits) == wanted:
            state[(magnitude >> u64(shift)) & mask] += 1


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
