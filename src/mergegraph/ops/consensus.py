"""Trimming task vectors, electing signs, merging what agrees."""

from __future__ import annotations

from collections.abc import Sequence

from mergegraph.errors import GraphError
from mergegraph.graph.node import Locality, Op, Real
from mergegraph.ops.rules import Attrs, Code, D, like_tiles, split, tile, widths
from mergegraph.tensorspec import TensorSpec


def _disjoint_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    tiles, small = split(specs)
    widths("disjoint_merge", small, len(tiles) - 1)
    return tile("disjoint_merge", tiles, D, D)


def _elect_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    return tile("elect_sign", specs, D, D)


def _variance_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    return tile("variance", specs, D, D)


def _keep_where_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    tiles, small = split(specs)
    widths("keep_where", small, 1)
    if len(tiles) != 2:
        raise GraphError("keep_where takes a tensor and a score for each of its elements")
    return tile("keep_where", tiles, D, D)


def _overlap_spec(specs: Sequence[TensorSpec], attrs: Attrs) -> TensorSpec:
    tiles, small = split(specs)
    widths("overlap_mean", small, len(tiles))
    return tile("overlap_mean", tiles, D, D)


def _one(_: int) -> tuple[int, ...]:
    return (1,)


# NaN never passes a comparison, so conditions are written such that it stays: it has to be reported,
# not trimmed away.


def _trim_code(args: Sequence[str], _: Attrs, real: Real, __: str) -> Code:
    return [], f"{real.zero} if abs({args[0]}) < {args[1]}_0 else {args[0]}"


def _cap_code(args: Sequence[str], _: Attrs, real: Real, __: str) -> Code:
    return [], f"{real.zero} if abs({args[0]}) > {args[1]}_0 else {args[0]}"


def _keep_where_code(args: Sequence[str], _: Attrs, real: Real, __: str) -> Code:
    return [], f"{real.zero} if {args[1]} < {args[2]}_0 else {args[0]}"


def _elect_code(args: Sequence[str], _: Attrs, real: Real, __: str) -> Code:
    return [], f"{real.one} if {' + '.join(args)} >= {real.zero} else -{real.one}"


def _disjoint_code(args: Sequence[str], attrs: Attrs, real: Real, tmp: str) -> Code:
    # Selects on products, not nested conditions: LLVM vectorises these, but not branches.
    sign, *xs, w = args
    agrees = [f"{x} * {sign} > {real.zero}" for x in xs]
    total = " + ".join(f"({x} if {agree} else {real.zero})" for x, agree in zip(xs, agrees, strict=True))
    if not attrs["normalize"]:
        return [], total
    weights = " + ".join(f"({w}_{i} if {agree} else {real.zero})" for i, agree in enumerate(agrees))
    lines = [f"{tmp}n = {weights}"]
    if attrs["floor"]:
        floor = f"{real.type}({attrs['floor']!r})"
        lines.append(f"{tmp}d = {floor} if {tmp}n < {floor} else {tmp}n")
    else:
        lines.append(f"{tmp}d = {tmp}n if {tmp}n != {real.zero} else {real.one}")
    return lines, f"({total}) / {tmp}d"


def _variance_code(args: Sequence[str], _: Attrs, real: Real, tmp: str) -> Code:
    count = f"{real.type}({len(args)}.0)"
    lines = [f"{tmp}m = ({' + '.join(args)}) / {count}"]
    lines += [f"{tmp}q{i} = {x} - {tmp}m" for i, x in enumerate(args)]
    return lines, f"({' + '.join(f'{tmp}q{i} * {tmp}q{i}' for i in range(len(args)))}) / {count}"


def _overlap_code(args: Sequence[str], attrs: Attrs, real: Real, tmp: str) -> Code:
    *xs, factor = args
    eps = f"{real.type}({attrs['epsilon']!r})"
    count = " + ".join(f"({real.one} if abs({x}) > {eps} else {real.zero})" for x in xs)
    total = " + ".join(f"({x} if abs({x}) > {eps} else {real.zero})" for x in xs)
    alone = " + ".join(f"({x} * {factor}_{i} if abs({x}) > {eps} else {real.zero})" for i, x in enumerate(xs))
    lines = [
        f"{tmp}c = {count}",
        f"{tmp}t = {total}",
        f"{tmp}u = {alone}",
        f"{tmp}d = {tmp}c if {tmp}c > {real.one} else {real.one}",
    ]
    return lines, f"{tmp}u if {tmp}c == {real.one} else {tmp}t / {tmp}d"


_EW = Locality.ELEMENTWISE

trim = Op("trim", _EW, like_tiles("trim", D, _one), "consensus:trim", _trim_code)
cap = Op("cap", _EW, like_tiles("cap", D, _one), "consensus:cap", _cap_code)
keep_where = Op("keep_where", _EW, _keep_where_spec, "consensus:keep_where", _keep_where_code)
elect_sign = Op("elect_sign", _EW, _elect_spec, "consensus:elect_sign", _elect_code)
variance = Op("variance", _EW, _variance_spec, "consensus:variance", _variance_code)
disjoint_merge = Op(
    "disjoint_merge", _EW, _disjoint_spec, "consensus:disjoint_merge", _disjoint_code
)
overlap_mean = Op("overlap_mean", _EW, _overlap_spec, "consensus:overlap_mean", _overlap_code)
