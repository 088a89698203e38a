"""Random masks from a counter: the same on every device, in any order, after any interruption."""

from __future__ import annotations

from collections.abc import Sequence

from mergegraph.graph.node import Locality, Node, Op, Real, node
from mergegraph.ops.rules import Attrs, Code, D, Specs, elementwise, stat
from mergegraph.tensorspec import TensorSpec


def _stream_spec(_: Specs, __: Attrs) -> TensorSpec:
    return stat(2)


def _drop_code(args: Sequence[str], _: Attrs, real: Real, __: str) -> Code:
    x, keep, stream = args
    # What is not finite stays: it has to be reported, not dropped.
    finite = f"{x} - {x} == {real.zero}"
    return [], f"{real.zero} if uniform({stream}_0, {stream}_1, e) >= {keep}_0 and {finite} else {x}"


def _noise_code(args: Sequence[str], _: Attrs, real: Real, __: str) -> Code:
    x, size, stream = args
    return [], f"{x} + {size}_0 * {real.type}(normal({stream}_0, {stream}_1, e))"


def _spread_code(args: Sequence[str], _: Attrs, real: Real, __: str) -> Code:
    x, size, stream = args
    number = f"{real.type}(uniform({stream}_0, {stream}_1, e))"
    return [], f"{x} + {size}_0 * ({number} + {number} - {real.one})"


STREAM = Op("stream", Locality.SMALL, _stream_spec, "random:stream")
drop = Op(
    "drop",
    Locality.ELEMENTWISE,
    elementwise("drop", D, count=1, small=lambda _: (1, 2)),
    "random:drop",
    _drop_code,
    indexed=True,
)
noise = Op(
    "noise",
    Locality.ELEMENTWISE,
    elementwise("noise", count=1, small=lambda _: (1, 2)),
    "random:noise",
    _noise_code,
    indexed=True,
)
"""x + size · N(0, 1)"""
spread = Op(
    "spread",
    Locality.ELEMENTWISE,
    elementwise("spread", count=1, small=lambda _: (1, 2)),
    "random:spread",
    _spread_code,
    indexed=True,
)
"""x + size · U(-1, 1)"""


def stream(slot: int) -> Node:
    """The random stream of the tensor bound to `slot`: it depends on seed, output tensor and model alone."""
    return node(STREAM, slot=slot)
