"""Limiting, ranking and averaging parameters that compete for the same place."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mergegraph.errors import GraphError
from mergegraph.graph.node import Locality, Op, Real
from mergegraph.kernels.precision import IN_FLOAT32, IN_FLOAT64, LOG2_E, SATURATED
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
    most, count = _number(SATURATED, real), _number(attrs["count"], real)
    lines = [
        f"{tmp}p = {x} * {total}",
        f"{tmp}q = {most} if {tmp}p > {most} else {tmp}p",
        f"{tmp}g = ({real.zero} if {tmp}q < {real.zero} else {tmp}q) * {_number(2.0, real)}",
        *_exponential(f"{tmp}g", real),
        f"{tmp}t = {tmp}gp * {tmp}gs + ({tmp}gp - {real.one})",
        f"{tmp}e = {strength} * {strength} * {count}",
        *_exponential(f"{tmp}e", real),
    ]
    tangent = f"({tmp}t / ({tmp}t + {_number(2.0, real)}))"
    return lines, f"({tmp}ep * {tmp}es + {tmp}ep) * {tangent}"


def _exponential(x: str, real: Real) -> list[str]:
    """Statements that leave ``2**n`` in the local `x`p and ``exp(r) - 1`` in `x`s: see `Exponential`."""
    how, bits = (IN_FLOAT64, "u64") if real.type == "f64" else (IN_FLOAT32, "u32")
    high, low, rounding = (_number(value, real) for value in (how.high, how.low, how.rounding))
    series = [_number(1.0 / math.factorial(term), real) for term in range(how.terms, 0, -1)]
    return [
        f"{x}n = {real.type}({x} * {_number(LOG2_E, real)} + {rounding})",
        f"{x}b = {bits}({x}n.view({bits}) << {bits}({how.mantissa}))",
        f"{x}p = {bits}({x}b + {bits}({how.one})).view({real.type})",
        f"{x}n = {x}n - {rounding}",
        f"{x}r = ({x} - {x}n * {high}) - {x}n * {low}",
        f"{x}s = {series[0]}",
        *(f"{x}s = {x}s * {x}r + {factor}" for factor in series[1:]),
        f"{x}s = {x}s * {x}r",
    ]


def _number(value: float, real: Real) -> str:
    return f"{real.type}({float(value)!r})"


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
