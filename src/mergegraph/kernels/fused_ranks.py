"""Compiled dropping by magnitude rank: which elements of a row stay, without sorting the row.

A rank says with which probability its element stays, and a random number then decides. A histogram of the
leading magnitude bits bounds every rank, and where the random number lies outside of what the bounds give,
the exact rank would decide no differently. Only the few elements for which it may are ranked exactly.

Random numbers are compared as the 24-bit integers that they are made of: a rank's limit is how many of the
2**24 keep its element, those below it.
"""

from __future__ import annotations

import numpy as np

from mergegraph.kernels.fused import GOLDEN, bits24, f32, f64, i32, i64, jit, random24, state, u8, u32, u64

BINADES = 16
"""Powers of two below the largest magnitude that bins tell apart."""
MOST_BITS = 11
"""Most leading bits of the mantissa that bins tell apart."""
EACH = 4
"""Elements per bin, about: with fewer, bounds take longer than they save on doubts."""
ZEROS = 8
"""Bins that zeros take turns in: to count the same one again and again would wait for memory each time."""
FEW = 128
"""Magnitudes in doubt up to which each is counted in the row; with more of them the row is sorted."""
RARE = 16
"""The same where there are many, and hardly any equal ones."""


@jit
def row_drop32(block, count, out, first, low, spread, high, key):  # type: ignore[no-untyped-def]
    """Drop elements of a float32 row by rank; its first element is number `first` of the stream."""
    x = block[0, :count]
    masks = (u32(0x7FFFFFFF), u32(0x7F800000))
    _drop(x, x.view(np.uint32), masks, 23, out, first, (f32(low), f32(spread)), (high, key))


@jit
def row_drop64(block, count, out, first, low, spread, high, key):  # type: ignore[no-untyped-def]
    """Drop elements of a float64 row by rank; its first element is number `first` of the stream."""
    x = block[0, :count]
    masks = (u64(0x7FFFFFFFFFFFFFFF), u64(0x7FF0000000000000))
    _drop(x, x.view(np.uint64), masks, 52, out, first, (f64(low), f64(spread)), (high, key))


@jit
def row_kept(row, count, kept):  # type: ignore[no-untyped-def]
    """Note which elements of a row are not zero, one bit each, for `row_keep`.

    `kept` has ``ceil(count / 8)`` bytes. Bit k of byte i is element i of the k-th stretch of as many
    elements: so both directions are loops over elements side by side.
    """
    part = len(kept)
    kept[:] = 0
    for k in range(8):
        x = row[min(k * part, count) : min((k + 1) * part, count)]
        bit = u8(1 << k)
        for i in range(len(x)):
            kept[i] |= bit if x[i] != 0 else u8(0)


@jit
def row_keep(block, count, out, kept):  # type: ignore[no-untyped-def]
    """Zero the elements of a row that `row_kept` found to be zero."""
    part = len(kept)
    zero = out.dtype.type(0)
    for k in range(8):
        begin, end = min(k * part, count), min((k + 1) * part, count)
        x, y = block[0, begin:end], out[begin:end]
        bit = u8(1 << k)
        for i in range(len(x)):
            y[i] = x[i] if kept[i] & bit else zero


@jit
def _drop(x, bits, masks, mantissa, out, first, chances, stream):  # type: ignore[no-untyped-def]
    count = len(x)
    leading = 2
    while leading < MOST_BITS and EACH * (BINADES << leading) < count:
        leading += 1
    size = ZEROS + (BINADES << leading)
    # Room for all that follows, in groups of eight elements: six allocations would cost short rows more.
    groups = count // 8 + 1
    room = np.empty(7 * groups + size // 2 + 1, np.int64)
    marks = room[:groups]
    bins = room[groups : 3 * groups].view(np.uint16)
    gaps = room[3 * groups : 7 * groups].view(np.int32)
    limits = room[7 * groups :].view(np.int32)[: size + 1]
    marks[groups - 1], bins[count:], gaps[count:] = 0, 0, -1

    _into_bins(bits, masks, mantissa - leading, size, bins)
    widest = _bounds(x, bins[:count], limits, chances)
    for j in range(count):
        gaps[j] = limits[bins[j]]
    _decide(x, bits, masks, widest, first, stream, out, gaps, marks.view(np.uint8))
    doubts = gaps[: _doubts(marks, bins, limits, gaps)]
    if len(doubts) > 0 and not _settle(x, bits, first, chances, stream, out, doubts):
        _settle_sorted(x, bits, masks[0], first, chances, stream, out, doubts)


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
    last = i32(size - 1)
    base = i32(i32(top >> shift) - last)
    for j in range(len(bits)):
        b = bits[j] & magnitude
        # Sums of 32-bit integers are 64 bits wide here, unless told otherwise, and half as fast.
        digit = min(max(i32(i32(b >> shift) - base), i32(ZEROS)), last)
        bins[j] = digit if b != zero else i32(i32(j) & i32(ZEROS - 1))


@jit
def _bounds(x, bins, limits, chances):  # type: ignore[no-untyped-def]
    """For each bin, the limit of its lowest rank; return how far two neighbouring ones are apart at most."""
    limits[:] = 0
    for j in range(len(bins)):
        limits[bins[j]] += 1
    below = i32(0)
    for k in range(len(limits)):
        here = limits[k]
        limits[k] = below
        below = i32(below + here)
    for k in range(len(limits)):
        limits[k] = _limit(x, limits[k], chances)
    widest = i32(0)
    for k in range(len(limits) - 1):
        widest = max(widest, i32(limits[k + 1] - limits[k]))
    return widest


@jit
def _limit(x, rank, chances):  # type: ignore[no-untyped-def]
    """How many of the 2**24 random numbers keep an element of the row `x` that has this rank."""
    low, spread = chances
    real = x.dtype.type
    share = real(rank) / real(len(x) - 1) if len(x) > 1 else real(0.5)
    all_numbers = real(16777216.0)
    return i32(np.ceil(min(max((low + spread * share) * all_numbers, real(0)), all_numbers)))


@jit
def _decide(x, bits, masks, widest, first, stream, out, gaps, marks):  # type: ignore[no-untyped-def]
    """Keep what stays with any rank of its bin, zero the rest; mark what may have to stay after all.

    `gaps`, at first the limit of each bin's lowest rank, becomes how far the random number lies above it.
    """
    magnitude, infinite = masks
    none, zero = x.dtype.type(0), bits.dtype.type(0)
    wide = u32(widest)
    z = state(stream[0], stream[1], first)
    for j in range(len(x)):
        gap = i32(bits24(z) - gaps[j])
        z = u64(z + GOLDEN)
        b = bits[j] & magnitude
        # What is not finite stays: it has to be reported. What is zero has no rank that matters.
        finite = b < infinite
        ranked = finite & (b != zero)
        out[j] = none if ((gap >= i32(0)) & finite) | (b == zero) else x[j]
        marks[j] = (u32(gap) < wide) & ranked
        gaps[j] = gap if ranked else i32(-1)


@jit
def _doubts(marks, bins, limits, gaps):  # type: ignore[no-untyped-def]
    """Leave the numbers of those elements in front of `gaps` for which the exact rank matters; count them.

    Nothing branches on what is rare: to guess wrong takes as long as to look at an element.
    """
    hits = u64(0)
    for w in range(len(marks)):
        hit = marks[w] != 0
        marks[hits] = w
        hits = u64(hits + u64(hit))
    found = u64(0)
    for h in range(i64(hits)):
        for k in range(8):
            j = u64(8 * marks[h] + k)
            b = u64(bins[j])
            doubtful = u32(gaps[j]) < u32(limits[u64(b + u64(1))] - limits[b])
            gaps[found] = i32(j)
            found = u64(found + u64(doubtful))
    return i64(found)


@jit
def _settle(x, bits, first, chances, stream, out, doubts):  # type: ignore[no-untyped-def]
    """Give back those doubtful elements that their exact rank keeps, or return that this would take long.

    The rank of an element is how many are smaller, and how many of its equals stand before it. Doubts that
    are settled become -1.
    """
    word = bits.dtype.type
    magnitude = word(word(-1) >> word(1))
    magnitudes = settled = 0
    for k in range(len(doubts)):
        if doubts[k] < 0:
            continue
        magnitudes += 1
        rare = len(doubts) > FEW and settled < 2 * magnitudes
        if magnitudes > (RARE if rare else FEW):
            return False
        begin = doubts[k]
        own = bits[begin] & magnitude
        rank = _smaller(bits[:begin], own + word(1)) + _smaller(bits[begin:], own)
        for other in range(k, len(doubts)):
            j = doubts[other]
            if j < 0 or bits[j] & magnitude != own:
                continue
            rank += _equal(bits[begin:j], own)
            begin = j
            doubts[other] = -1
            settled += 1
            if random24(stream[0], stream[1], first + j) < _limit(x, rank, chances):
                out[j] = x[j]
    return True


@jit
def _smaller(bits, bound):  # type: ignore[no-untyped-def]
    """How many magnitudes are smaller: a difference below 0 sets the bit that no magnitude has."""
    word = bits.dtype.type
    magnitude = word(word(-1) >> word(1))
    least = word(bound)
    count = i32(0)
    for i in range(len(bits)):
        count = i32(count + i32(word((bits[i] & magnitude) - least) > magnitude))
    return count


@jit
def _equal(bits, own):  # type: ignore[no-untyped-def]
    """How many magnitudes are equal."""
    word = bits.dtype.type
    magnitude = word(word(-1) >> word(1))
    one = word(1)
    count = i32(0)
    for i in range(len(bits)):
        count = i32(count + i32(word(((bits[i] & magnitude) ^ own) - one) > magnitude))
    return count


@jit
def _settle_sorted(x, bits, magnitude, first, chances, stream, out, doubts):  # type: ignore[no-untyped-def]
    """The same for any number of magnitudes in doubt."""
    order = _order(bits, magnitude)
    ranks = np.empty(len(x), np.int32)
    for rank in range(len(x)):
        ranks[order[rank]] = rank
    for j in doubts:
        if j >= 0 and random24(stream[0], stream[1], first + j) < _limit(x, ranks[j], chances):
            out[j] = x[j]


@jit
def _order(bits, magnitude):  # type: ignore[no-untyped-def]
    """Positions by ascending magnitude, equal ones by position: a radix sort, 11 bits at a time."""
    count = len(bits)
    order, other = np.arange(count), np.empty(count, np.int64)
    for shift in range(0, 8 * bits.itemsize, 11):
        _by_digit(bits, magnitude, shift, order, other)
        order, other = other, order
    return order


@jit
def _by_digit(bits, magnitude, shift, order, other):  # type: ignore[no-untyped-def]
    """Put the positions `order` into `other`, sorted by 11 bits from `shift` on."""
    places = np.zeros(2049, np.int64)
    for i in range(len(bits)):
        places[1 + (((bits[i] & magnitude) >> shift) & 0x7FF)] += 1
    for digit in range(2048):
        places[digit + 1] += places[digit]
    for i in range(len(bits)):
        digit = ((bits[order[i]] & magnitude) >> shift) & 0x7FF
        other[places[digit]] = order[i]
        places[digit] += 1
