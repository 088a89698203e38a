"""Compiled counting for exact selection: how many magnitudes lie above a bracket, and how many where in it.

A bracket is a run of magnitude bit patterns. Nearly all elements lie outside of it, and those are only
compared, eight or more at a time; the few inside are counted in bins.
"""

from __future__ import annotations

import numpy as np

from mergegraph.kernels.fused import i32, i64, jit, u32, u64
from mergegraph.kernels.reduction import BLOCK


@jit
def fold_select32(block, count, state, low, shift, span, guess):  # type: ignore[no-untyped-def]
    """Count the magnitudes of the float32 ``block[0, :count]``; see `mergegraph.kernels.select`."""
    if shift >= 0:
        bits = block[0, :count].view(np.uint32)
        _count(bits, u32(0x7FFFFFFF), state, u32(low), u32(shift), u32(span), u32(guess))


@jit
def fold_select64(block, count, state, low, shift, span, guess):  # type: ignore[no-untyped-def]
    """Count the magnitudes of the float64 ``block[0, :count]``; see `mergegraph.kernels.select`."""
    if shift >= 0:
        bits = block[0, :count].view(np.uint64)
        _count(bits, u64(0x7FFFFFFFFFFFFFFF), state, u64(low), u64(shift), u64(span), u64(guess))


@jit
def fold_magnitudes32(block, count, state, first):  # type: ignore[no-untyped-def]
    """Put the magnitudes of the float32 ``block[0, :count]`` into `state`, from place `first` on."""
    bits = block[0, :count].view(np.int32)
    for i in range(count):
        state[first + i] = bits[i] & i32(0x7FFFFFFF)


@jit
def fold_magnitudes64(block, count, state, first):  # type: ignore[no-untyped-def]
    """Put the magnitudes of the float64 ``block[0, :count]`` into `state`, from place `first` on."""
    bits = block[0, :count].view(np.int64)
    for i in range(count):
        state[first + i] = bits[i] & i64(0x7FFFFFFFFFFFFFFF)


@jit
def _count(bits, magnitude, state, low, shift, span, guess):  # type: ignore[no-untyped-def]
    bins = (len(state) - 1) // 2
    mask = bits.dtype.type(bits.dtype.type(bits.dtype.type(1) << shift) - bits.dtype.type(1))
    if span == magnitude:
        for i in range(len(bits)):
            _put(state, bins, bits.dtype.type(bits[i] & magnitude), shift, mask)
        return
    for begin in range(0, len(bits), BLOCK):
        _count_few(bits[begin : begin + BLOCK], magnitude, state, bins, mask, (low, shift, span, guess))


@jit
def _count_few(bits, magnitude, state, bins, mask, bracket):  # type: ignore[no-untyped-def]
    low, shift, span, guess = bracket
    top = bits.dtype.type(low + span)
    marks = np.empty(BLOCK, np.uint8)
    above, equal = np.int32(0), np.int32(0)
    for i in range(len(bits)):
        m = bits.dtype.type(bits[i] & magnitude)
        # Sums of 32-bit integers are 64 bits wide here, unless told otherwise, and half as fast.
        above = np.int32(above + np.int32(m > top))
        equal = np.int32(equal + np.int32(m == guess))
        marks[i] = np.uint8((bits.dtype.type(m - low) <= span) & (m != guess))
    marks[len(bits) : -(-len(bits) // 8) * 8] = 0
    places = np.empty(BLOCK + 8, np.int32)
    found = _places(marks.view(np.uint64)[: -(-len(bits) // 8)], places)
    for f in range(found):
        m = bits.dtype.type(bits[places[f]] & magnitude)
        _put(state, bins, bits.dtype.type(m - low), shift, mask)
    state[0] += above
    if equal > 0:
        offset = bits.dtype.type(guess - low)
        state[1 + i64(offset >> shift)] += equal
        state[1 + bins + i64(offset >> shift)] += equal if bits.dtype.type(offset & mask) != 0 else 0


@jit
def _places(words, places):  # type: ignore[no-untyped-def]
    """Where marks are set, eight to a word; return how many. No branch depends on a single mark."""
    found = i64(0)
    for w in range(len(words)):
        word = words[w]
        if word != 0:
            for i in range(8):
                places[found] = np.int32(8 * w + i)
                found += i64((word >> u64(8 * i)) & u64(1))
    return found


@jit
def _put(state, bins, offset, shift, mask):  # type: ignore[no-untyped-def]
    """Count an offset in its bin, and once more if it is not the first pattern of the bin."""
    state[1 + i64(offset >> shift)] += 1
    state[1 + bins + i64(offset >> shift)] += 1 if offset & mask != 0 else 0
