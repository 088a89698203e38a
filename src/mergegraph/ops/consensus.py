"""Trimming task vectors, electing signs, merging what agrees."""

from __future__ import annotations

from collections.abc import Sequence

from mergegraph.errors import GraphError
from mergegraph.graph.node import Locality, Op, Real
from mergegraph.ops.rules import Attrs, Code, D, Rule, Specs, elementwise, split, stats, tile
from mergegraph.tensorspec import TensorSpec


def _signed(name: str) -> Rule:
    """A sign and at least one delta, then a weight for each delta."""

    def rule(specs: Specs, _: Attrs) -> TensorSpec:
        tiles, last = split(specs)
        if len(tiles) < 2:
            raise GraphError(f"{name} takes a sign and at least one delta")
        stats(name, last, len(tiles) - 1)
        return tile(name, tiles, D)

    return rule


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
    agrees = [f"not {x} * {sign} <= {real.zero}" for x in xs]
    total = " + ".join(f"({x} if {agree} else {real.zero})" for x, agree in zip(xs, agrees, strict=True))
    if not attrs["normalize"]:
        return [], total
    weights = " + ".join(f"({w}_{i} if {agree} else {real.zero})" for i, agree in enumerate(agrees))
    lines = [f"{tmp}n = {weights}", f"{tmp}d = {tmp}n if {tmp}n != {real.zero} else {real.one}"]
    return lines, f"({total}) / {tmp}d"


def _signed_mean_code(args: Sequence[str], attrs: Attrs, real: Real, tmp: str) -> Code:
    sign, *xs, w = args
    floor = f"{real.type}({attrs['floor']!r})"
    agrees = [f"not {x} * {sign} <= {real.zero}" for x in xs]
    total = " + ".join(
        f"({w}_{i} * {x} if {agree} else {real.zero})"
        for i, (x, agree) in enumerate(zip(xs, agrees, strict=True))
    )
    weight = " + ".join(f"({w}_{i} if {agree} else {real.zero})" for i, agree in enumerate(agrees))
    lines = [f"{tmp}n = {weight}", f"{tmp}d = {floor} if {tmp}n < {floor} else {tmp}n"]
    return lines, f"({total}) / {tmp}d"


def _variance_code(args: Sequence[str], _: Attrs, real: Real, tmp: str) -> Code:
    count = f"{real.type}({len(args)}.0)"
    # Seen from the first tensor, so that equal elements have no variance at all.
    lines = [f"{tmp}g{i} = {x} - {args[0]}" for i, x in enumerate(args)]
    lines += [f"{tmp}m = ({' + '.join(f'{tmp}g{i}' for i in range(len(args)))}) / {count}"]
    lines += [f"{tmp}q{i} = {tmp}g{i} - {tmp}m" for i in range(len(args))]
    return lines, f"({' + '.join(f'{tmp}q{i} * {tmp}q{i}' for i in range(len(args)))}) / {count}"


def _agreed_spec(specs: Specs, _: Attrs) -> TensorSpec:
    """A total and at least one delta, then a threshold for each delta."""
    tiles, last = split(specs)
    if len(tiles) < 2:
        raise GraphError("agreed takes a total and at least one delta")
    stats("agreed", last, len(tiles) - 1)
    return tile("agreed", tiles, D)


def _agreed_code(args: Sequence[str], attrs: Attrs, real: Real, tmp: str) -> Code:
    total, *xs, w = args
    count = " + ".join(
        f"({real.zero} if abs({x}) < {w}_{i} * abs({total} - {x}) else {real.one})" for i, x in enumerate(xs)
    )
    lines = [f"{tmp}c = {count}", f"{tmp}f = {total} - {total}"]
    few = f"{tmp}c < {real.type}({attrs['least']}.0) and {tmp}f == {real.zero}"
    return lines, f"{real.zero} if {few} else {total}"


def _overlap_code(args: Sequence[str], attrs: Attrs, real: Real, tmp: str) -> Code:
    *xs, factor = args
    eps = f"{real.type}({attrs['epsilon']!r})"
    count = " + ".join(f"({real.zero} if abs({x}) <= {eps} else {real.one})" for x in xs)
    total = " + ".join(f"({real.zero} if abs({x}) <= {eps} else {x})" for x in xs)
    alone = " + ".join(
        f"({real.zero} if abs({x}) <= {eps} else {x} * {factor}_{i})" for i, x in enumerate(xs)
    )
    lines = [
        f"{tmp}c = {count}",
        f"{tmp}t = {total}",
        f"{tmp}u = {alone}",
        f"{tmp}d = {tmp}c if {tmp}c > {real.one} else {real.one}",
    ]
    return lines, f"{tmp}u if {tmp}c == {real.one} else {tmp}t / {tmp}d"


_EW = Locality.ELEMENTWISE
_threshold = elementwise("a threshold op", D, count=1, small=lambda _: (1,))

trim = Op("trim", _EW, _threshold, "consensus:trim", _trim_code)
cap = Op("cap", _EW, _threshold, "consensus:cap", _cap_code)
keep_where = Op(
    "keep_where",
    _EW,
    elementwise("keep_where", D, count=2, small=lambda _: (1,)),
    "consensus:keep_where",
    _keep_where_code,
)
elect_sign = Op("elect_sign", _EW, elementwise("elect_sign", D), "consensus:elect_sign", _elect_code)
disjoint_merge = Op(
    "disjoint_merge", _EW, _signed("disjoint_merge"), "consensus:disjoint_merge", _disjoint_code
)
signed_mean = Op("signed_mean", _EW, _signed("signed_mean"), "consensus:signed_mean", _signed_mean_code)
agreed = Op("agreed", _EW, _agreed_spec, "consensus:agreed", _agreed_code)
variance = Op("variance", _EW, elementwise("variance", D), "consensus:variance", _variance_code)
overlap_mean = Op(
    "overlap_mean",
    _EW,
    elementwise("overlap_mean", D, small=lambda n: (n,)),
    "consensus:overlap_mean",
    _overlap_code,
)
