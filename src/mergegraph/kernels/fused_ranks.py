"""Compiled dropping by magnitude rank: which elements of a row stay, without sorting the row.

A rank says with which probability its element stays, and a random number then decides. A histogram of the
leading magnitude bits bounds every rank, and where the random number lies outside of what the bounds give,
the exact rank would decide no differently. Only the few elements for which it may are ranked exactly.
"""

from __future__ import annotations

import numpy as np

from mergegraph.kernels.fused import f32, f64, jit, u32, u64, uniform

BINADES = 16
"""Powers of two below the largest magnitude that bins tell apart."""
MOST_BITS = 11
"""Most leading bits of the mantissa that bins tell apart."""
FEW = 96
"""Magnitudes in doubt up to which each is counted in the row; with more of them the row is sorted."""
RARE = 16
"""The same where there are many, and hardly any equal ones."""


@jit
def row_drop32(block, count, out, first, low, spread, high, key):  # type: ignore[no-untyped-def]
    """Drop elements of a float32 row by rank; its first element is number `first` of the stream."""
    bits = block[0, :count].view(np.uint32)
    masks = (u32(0x7FFFFFFF), u32(0x7F800000))
    chances = (f32(low), f32(spread))
    _drop(block[0, :count], bits, masks, 23, out, first, chances, (f32(high), f32(key)))


@jit
def row_drop64(block, count, out, first, low, spread, high, key):  # type: ignore[no-untyped-def]
    """Drop elements of a float64 row by rank; its first element is number `first` of the stream."""
    bits = block[0, :count].view(np.uint64)
    masks = (u64(0x7FFFFFFFFFFFFFFF), u64(0x7FF0000000000000))
    chances = (f64(low), f64(spread))
    _drop(block[0, :count], bits, masks, 52, out, first, chances, (f64(high), f64(key)))


@jit
def _drop(x, bits, masks, mantissa, out, first, chances, stream):  # type: ignore[no-untyped-def]
    count = len(x)
    leading = 2
    while leading < MOST_BITS and BINADES << leading < count // 2:
        leading += 1
    size = BINADES << leading
    bins = np.empty(count, np.int32)
    _into_bins(bits, masks, mantissa - leading, size, bins)
    starts = np.zeros(size + 1, np.int32)
    edges = np.empty(size + 1, x.dtype)
    _bounds(bins, starts, edges, chances)
    doubts = np.empty(count, np.int32)
    found = _decide(x, bins, edges, first, stream, out, doubts)
    if found > 0 and not _settle(x, bits, masks[0], first, chances, stream, out, doubts[:found]):
        _settle_sorted(x, bits, masks[0], first, chances, stream, out, doubts[:found])


@jit
def _into_bins(bits, masks, shift, size, bins):  # type: ignore[no-untyped-def]
    """Number the bins by the leading magnitude bits, relative to the largest finite magnitude."""
    magnitude, infinite = masks
    zero = bits.dtype.type(0)
    top = zero
    for j in range(len(bits)):
        b = bits[j] & magnitude
        top = b if b > top else top
    if top >= infinite:
        top = zero
        for j in range(len(bits)):
            b = bits[j] & magnitude
            top = b if b > top and b < infinite else top
    last = np.int32(size - 1)
    base = np.int32(np.int32(top >> shift) - last)
    for j in range(len(bits)):
        # Sums of 32-bit integers are 64 bits wide here, unless told otherwise, and half as fast.
        digit = np.int32(np.int32((bits[j] & magnitude) >> shift) - base)
        bins[j] = min(max(digit, np.int32(0)), last)


@jit
def _bounds(bins, starts, edges, chances):  # type: ignore[no-untyped-def]
    """For each bin, its lowest rank, and the chance to stay of an element of this rank."""
    for j in range(len(bins)):
        starts[bins[j]] += 1
    below = 0
    for k in range(len(starts)):
        here = starts[k]
        starts[k] = below
        edges[k] = below
        below += here
    _to_chances(edges, len(bins), chances)


@jit
def _to_chances(ranks, count, chances):  # type: ignore[no-untyped-def]
    """Replace ranks in a row of `count` elements by the chances to stay."""
    low, spread = chances
    if count < 2:
        ranks[:] = low + spread * ranks.dtype.type(0.5)
        return
    last = ranks.dtype.type(count - 1)
    for k in range(len(ranks)):
        ranks[k] = low + spread * (ranks[k] / last)


@jit
def _decide(x, bins, edges, first, stream, out, doubts):  # type: ignore[no-untyped-def]
    """Keep what stays with any rank of its bin, zero the rest; return how many may have to stay after all."""
    count = len(x)
    high, key = stream
    zero = out.dtype.type(0)
    widest = zero
    for k in range(len(edges) - 1):
        widest = max(widest, edges[k + 1] - edges[k])
    least = np.empty(count, edges.dtype)
    for j in range(count):
        least[j] = edges[bins[j]]
    marks = np.zeros(-(-count // 8) * 8, np.uint8)
    for j in range(count):
        u, v = uniform(high, key, first + j), x[j]
        # What is not finite stays: it has to be reported. What is zero has no rank that matters.
        dropped = (u >= least[j]) & (v - v == zero)
        out[j] = zero if dropped | (v == zero) else v
        marks[j] = dropped & (u - least[j] <= widest) & (v != zero)
    found = 0
    words = marks.view(np.uint64)
    for w in range(len(words)):
        if words[w] != 0:
            for j in range(8 * w, min(8 * w + 8, count)):
                if marks[j] and uniform(high, key, first + j) < edges[bins[j] + 1]:
                    doubts[found] = j
                    found += 1
    return found


@jit
def _settle(x, bits, magnitude, first, chances, stream, out, doubts):  # type: ignore[no-untyped-def]
    """Give back those doubtful elements that their exact rank keeps, or return that this would take long.

    The rank of an element is how many are smaller, and how many of its equals stand before it.
    """
    done = np.zeros(len(doubts), np.bool_)
    chance = np.empty(1, x.dtype)
    magnitudes = settled = 0
    for k in range(len(doubts)):
        if done[k]:
            continue
        magnitudes += 1
        rare = len(doubts) > FEW and settled < 2 * magnitudes
        if magnitudes > (RARE if rare else FEW):
            return False
        own, begin = bits[doubts[k]] & magnitude, 0
        rank = np.int32(0)
        for i in range(len(bits)):
            rank = np.int32(rank + np.int32((bits[i] & magnitude) < own))
        for other in range(k, len(doubts)):
            j = doubts[other]
            if bits[j] & magnitude != own:
                continue
            between = bits[begin:j]
            for i in range(len(between)):
                rank = np.int32(rank + np.int32((between[i] & magnitude) == own))
            begin, done[other] = j, True
            settled += 1
            chance[0] = rank
            _to_chances(chance, len(x), chances)
            if uniform(stream[0], stream[1], first + j) < chance[0]:
                out[j] = x[j]
    return True


@jit
def _settle_sorted(x, bits, magnitude, first, chances, stream, out, doubts):  # type: ignore[no-untyped-def]
    """The same for any number of magnitudes in doubt."""
    order = _order(bits, magnitude)
    ranks = np.empty(len(x), x.dtype)
    for rank in range(len(x)):
        ranks[order[rank]] = rank
    _to_chances(ranks, len(x), chances)
    for j in doubts:
        if uniform(stream[0], stream[1], first + j) < ranks[j]:
            out[j] = x[j]


@jit
def _order(bits, magnitude):  # type: ignore[no-untyped-def]
    """Positions by ascending magnitude, equal ones by position: a radix sort, 11 bits at a time."""
    count = len(bits)
    order, other = np.arange(count), np.empty(count, np.int64)
    for shift in range(0, 8 * bits.itemsize, 11):
        places = np.zeros(2049, np.int64)
        for i in range(count):
            places[1 + (((bits[i] & magnitude) >> shift) & 0x7FF)] += 1
        for digit in range(2048):
            places[digit + 1] += places[digit]
        for i in range(count):
            digit = ((bits[order[i]] & magnitude) >> shift) & 0x7FF
            other[places[digit]] = order[i]
            places[digit] += 1
        order, other = other, order
    return order
