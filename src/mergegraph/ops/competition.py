"""Limiting, ranking and averaging parameters that compete for the same place."""

from __future__ import annotations

from collections.abc import Sequence

from mergegraph.errors import GraphError
from mergegraph.graph.node import Locality, Op, Real
from mergegraph.kernels.precision import SATURATED, TERMS, doublings
from mergegraph.ops.rules import Attrs, Code, D, Specs, elementwise, tensors, tile
from mergegraph.tensorspec import TensorSpec


def _average_spec(specs: Specs, _: Attrs) -> TensorSpec:
    if len(specs) % 2:
        raise GraphError("average_by takes as many weights as tensors")
    return tile("average_by", tensors("average_by", specs), D)


def _limit_code(args: Sequence[str], _: Attrs, real: Real, tmp: str) -> Code:
    x, low, high = args
    lines = [
        f"{tmp}a = abs({x})",
        f"{tmp}w = {low}_0 if {tmp}a < {low}_0 else ({high}_0 if {tmp}a > {high}_0 else {tmp}a)",
        f"{tmp}m = {tmp}w if {tmp}a - {tmp}a == {real.zero} else {tmp}a",
    ]
    return lines, f"-{tmp}m if {x} < {real.zero} else ({tmp}m if {x} > {real.zero} else {x})"


def _stretch_code(args: Sequence[str], _: Attrs, real: Real, tmp: str) -> Code:
    x, low, high = args
    lines = [
        f"{tmp}a = abs({x})",
        f"{tmp}g = {high}_0 - {low}_0",
        f"{tmp}e = {real.zero} if {tmp}a == {real.zero} else {real.one}",
        f"{tmp}d = {real.one} if {tmp}g == {real.zero} else {tmp}g",
        f"{tmp}i = {tmp}e if {tmp}g == {real.zero} else ({tmp}a - {low}_0) / {tmp}d",
    ]
    above = f"{real.one} if {tmp}a > {high}_0 else {tmp}i"
    return lines, f"{real.zero} if {tmp}a < {low}_0 else ({above})"


def _contest_code(args: Sequence[str], attrs: Attrs, real: Real, tmp: str) -> Code:
    strength, x, total = args
    count = float(attrs["count"])
    lines = [
        f"{tmp}p = f64({x}) * f64({total})",
        f"{tmp}q = {SATURATED} if {tmp}p > {SATURATED} else {tmp}p",
        f"{tmp}r = (0.0 if {tmp}q < 0.0 else {tmp}q) * 2.0",
        f"{tmp}s = {count} * (f64({strength}) * f64({strength}))",
        *_growth(f"{tmp}g", f"{tmp}r", 2 * SATURATED),
        *_growth(f"{tmp}h", f"{tmp}s", count),
    ]
    return lines, f"{real.type}(({tmp}h + 1.0) * ({tmp}g / ({tmp}g + 2.0)))"


def _growth(result: str, x: str, most: float) -> list[str]:
    """Statements that leave ``exp(x) - 1`` in `result`, for x from 0 to `most`."""
    times = doublings(most)
    lines = [f"{result}y = {x} * {0.5**times!r}", f"{result} = {result}y * {1.0 / TERMS!r}"]
    for term in range(TERMS - 1, 0, -1):
        lines.append(f"{result} = ({result} + 1.0) * ({result}y * {1.0 / term!r})")
    return lines + [f"{result} = {result} * ({result} + 2.0)"] * times


def _average_code(args: Sequence[str], _: Attrs, real: Real, tmp: str) -> Code:
    half = len(args) // 2
    total = " + ".join(f"{x} * {w}" for x, w in zip(args[:half], args[half:], strict=True))
    lines = [f"{tmp}w = {' + '.join(args[half:])}"]
    return lines, f"({total}) / ({real.one} if {tmp}w == {real.zero} else {tmp}w)"


_EW = Locality.ELEMENTWISE
_between = elementwise("an op between two magnitudes", D, count=1, small=lambda _: (1, 1))

limit = Op("limit", _EW, _between, "competition:limit", _limit_code)
stretch = Op("stretch", _EW, _between, "competition:stretch", _stretch_code)
contest = Op("contest", _EW, elementwise("contest", D, count=3), "competition:contest", _contest_code)
average_by = Op("average_by", _EW, _average_spec, "competition:average_by", _average_code)
