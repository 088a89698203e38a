"""Drawing some neurons of an MLP anew, for drop-upcycling.

A neuron is a row of a gate or up projection ``[I, H]``, and a column of a down projection ``[H, I]``. Which
are chosen depends on a random stream alone, so that the three matrices of an expert agree.
"""

from __future__ import annotations

from collections.abc import Sequence

from mergegraph.errors import GraphError
from mergegraph.graph.node import Locality, Op, Real
from mergegraph.ops.rules import (
    Attrs,
    Code,
    Specs,
    W,
    elementwise,
    from_gram,
    small,
    split,
    stat,
    stats,
    tile,
)
from mergegraph.tensorspec import TensorSpec


def _neurons_spec(specs: Specs, attrs: Attrs) -> TensorSpec:
    tiles, last = split(specs)
    stats("neurons", last, 2, 2)
    if attrs["width"] < 1 or len(tiles) != 1:
        raise GraphError("neurons takes one matrix, and the length of its rows")
    return tile("neurons", tiles, W)


def _neurons_code(args: Sequence[str], attrs: Attrs, real: Real, _: str) -> Code:
    _, limit, stream = args
    neuron = f"e % {attrs['width']}" if attrs["down"] else f"e // {attrs['width']}"
    drawn = f"f64(uniform({stream}_0, {stream}_1, {neuron}))"
    chosen = f"{drawn} < f64({limit}_0) or ({drawn} == f64({limit}_0) and {neuron} <= f64({limit}_1))"
    return [], f"{real.one} if {chosen} else {real.zero}"


def _inside_code(args: Sequence[str], _: Attrs, real: Real, __: str) -> Code:
    x, chosen = args
    return [], f"{x} if {chosen} != {real.zero} else {real.zero}"


def _redraw_code(args: Sequence[str], _: Attrs, real: Real, __: str) -> Code:
    x, chosen, moments, stream = args
    drawn = f"{moments}_0 + {moments}_1 * {real.type}(normal({stream}_0, {stream}_1, e))"
    return [], f"{drawn} if {chosen} != {real.zero} else {x}"


def _moments_spec(specs: Specs, attrs: Attrs) -> TensorSpec:
    from_gram("moments")(specs, attrs)
    return stat(2)


_EW = Locality.ELEMENTWISE

lowest = Op("lowest", Locality.SMALL, small("lowest", 2, gives=2), "upcycling:lowest")
"""The `keep`-th lowest of the first `count` numbers of a stream, and its place."""
neurons = Op("neurons", _EW, _neurons_spec, "upcycling:neurons", _neurons_code, indexed=True)
"""One where an element belongs to a neuron whose number is at most `lowest`, else zero."""
inside = Op("inside", _EW, elementwise("inside", W, count=2), "upcycling:inside", _inside_code)
"""x where the second operand is not zero, else zero."""
moments = Op("moments", Locality.SMALL, _moments_spec, "upcycling:moments")
"""Mean and standard deviation of x inside a set, from the Gram matrix of x inside it and of the set."""
redraw = Op(
    "redraw",
    _EW,
    elementwise("redraw", W, count=2, small=lambda _: (2, 2)),
    "upcycling:redraw",
    _redraw_code,
    indexed=True,
)
"""x outside a set; inside, normal numbers of given mean and standard deviation."""
