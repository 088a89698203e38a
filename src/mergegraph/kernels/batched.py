"""Folds of a whole tile at once, for devices where every call and every answer is a round trip.

Each adds to state that stays on the device: one row per chunk of ``chunk`` elements, or one row in all. Sums
add up halves of a chunk, element by element, until one number is left. That order is given by the chunk alone
(a library's own sum may split its work by the size of the whole tile), so bits do not depend on tiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from mergegraph.kernels.reduction import Array, Attrs, Span
from mergegraph.kernels.select import bracket_of

_SPREAD = 4096
"""Bins for what is not counted."""


def gram(state: Tensor, tensors: Sequence[Tensor], span: Span, _: Sequence[Array], __: Attrs) -> None:
    """Add the upper triangle of the k×k dot products of each chunk, row by row."""
    at = 0
    for i, a in enumerate(tensors):
        for b in tensors[i:]:
            state[:, at] += _sums(a.double() * b.double(), span.chunk)
            at += 1


def l1(state: Tensor, tensors: Sequence[Tensor], span: Span, _: Sequence[Array], __: Attrs) -> None:
    """Add the sum of magnitudes of each chunk."""
    state[:, 0] += _sums(tensors[0].double().abs(), span.chunk)


def squares(state: Tensor, tensors: Sequence[Tensor], span: Span, _: Sequence[Array], __: Attrs) -> None:
    """Add the sum of squares of each chunk of each tensor."""
    for k, x in enumerate(tensors):
        state[:, k] += _sums(x.double().square(), span.chunk)


def columns(state: Tensor, tensors: Sequence[Tensor], span: Span, _: Sequence[Array], attrs: Attrs) -> None:
    """Add ``a·a``, ``a·b`` and ``b·b`` of every column, chunk after chunk.

    A chunk is laid out in lines of one row each; what it does not cover of its first and last line is zero.
    """
    (a, b), count, (begin, chunk) = tensors, attrs["columns"], span
    parts, lines = -(-len(a) // chunk), (count + chunk - 2) // count + 1
    steps = torch.arange(parts, device=a.device)
    place = ((begin + chunk * steps) % count)[:, None] + torch.arange(chunk, device=a.device)
    for i, (x, y) in enumerate(((a, a), (a, b), (b, b))):
        products = _chunks(x.double() * y.double(), chunk)
        grid = products.new_zeros(parts, lines * count).scatter_(1, place, products)
        for sums in halved(grid.view(parts, lines, count).transpose(1, 2)):
            state[0, i * count : (i + 1) * count] += sums


def histogram(
    state: Tensor, tensors: Sequence[Tensor], _: Span, stats: Sequence[Array], attrs: Attrs
) -> None:
    """Count magnitudes above and in a bracket; see `mergegraph.kernels.select`."""
    width, bins = attrs["width"], 1 << attrs["bits"]
    low, shift, span, guess = bracket_of(stats, attrs)
    if shift < 0:
        return
    bits = tensors[0].contiguous().view(torch.int64 if width == 63 else torch.int32)
    magnitudes = bits & ((1 << width) - 1)
    # Additions to one place wait for each other. So the pattern that many elements may have is counted by a
    # sum, as is what lies above, and what is not to be counted is spread over bins that nobody looks at.
    state[0, 0] += (magnitudes > low + span).sum()
    alike, found = (magnitudes == guess).sum(), guess - low
    state[0, 1 + (found >> shift)] += alike
    if found & ((1 << shift) - 1):
        state[0, 1 + bins + (found >> shift)] += alike
    offsets = magnitudes - low
    idle = (offsets < 0) | (offsets > span) | (magnitudes == guess)
    spread = torch.arange(len(bits), dtype=bits.dtype, device=bits.device) & (_SPREAD - 1)
    places = torch.where(idle, spread + bins, offsets >> shift)
    _count(state[0, 1 : 1 + bins], places)
    idle |= (offsets & ((1 << shift) - 1)) == 0
    _count(state[0, 1 + bins :], torch.where(idle, spread + bins, places))


def magnitudes(
    state: Tensor, tensors: Sequence[Tensor], span: Span, _: Sequence[Array], attrs: Attrs
) -> None:
    """Put the bits of all magnitudes into the places of their elements."""
    width = attrs["width"]
    bits = tensors[0].contiguous().view(torch.int64 if width == 63 else torch.int32)
    state[0, span.begin : span.begin + len(bits)] = bits & ((1 << width) - 1)


def _count(counts: Tensor, places: Tensor) -> None:
    """Add one to the count of each place; places beyond them are dropped."""
    found = torch.zeros(len(counts) + _SPREAD, dtype=counts.dtype, device=counts.device)
    one = torch.ones(1, dtype=counts.dtype, device=counts.device)
    counts += found.scatter_add_(0, places.long(), one.expand(len(places)))[: len(counts)]


def nonzero(state: Tensor, tensors: Sequence[Tensor], _: Span, __: Sequence[Array], ___: Attrs) -> None:
    """Count the elements that are not zero."""
    state[0, 0] += (tensors[0] != 0).sum()


def overlap(state: Tensor, tensors: Sequence[Tensor], _: Span, __: Sequence[Array], attrs: Attrs) -> None:
    """Count the elements active in one tensor alone and in several, tensor by tensor."""
    active = torch.stack([~(x.abs() <= attrs["epsilon"]) for x in tensors])
    alone = active.sum(dim=0, dtype=torch.int32) == 1
    state[0] += torch.stack([(active & alone).sum(dim=1), (active & ~alone).sum(dim=1)], dim=1).reshape(-1)


def halved(x: Tensor) -> Tensor:
    """Sums over the last axis, by adding its second half to its first; what is in `x` is lost."""
    width = x.shape[-1]
    if width == 0:
        return x.sum(dim=-1)
    while width > 1:
        half = (width + 1) // 2
        x[..., : width - half] += x[..., half:width]
        width = half
    return x[..., 0]


def _sums(values: Tensor, chunk: int) -> Tensor:
    return halved(_chunks(values, chunk))


def _chunks(values: Tensor, chunk: int) -> Tensor:
    """``[chunks, chunk]``, filled up with zeros."""
    missing = -len(values) % chunk
    return (pad(values, (0, missing)) if missing else values).view(-1, chunk)
