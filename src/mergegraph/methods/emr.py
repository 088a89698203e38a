"""Elect one task vector for all models, mask it for each, rescale it for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergegraph import ops
from mergegraph.graph.node import Locality, Op, Real
from mergegraph.methods._weights import shares
from mergegraph.methods.base import MergeMethod, Parameter, Reference, Values
from mergegraph.ops.rules import Attrs, Code, D, elementwise


def _strongest(*tensors: Any) -> Any:
    """The element of largest magnitude; the first of equals."""
    found = tensors[0]
    for x in tensors[1:]:
        found = found.where((found != found) | (x.abs() <= found.abs()), x)  # a NaN is the largest
    return found


def _strongest_code(args: Sequence[str], _: Attrs, __: Real, tmp: str) -> Code:
    lines, found = [], args[0]
    for i, x in enumerate(args[1:]):
        lines.append(f"{tmp}w{i} = {found} if {found} != {found} or abs({x}) <= abs({found}) else {x}")
        found = f"{tmp}w{i}"
    return lines, found


def _masked(x: Any, mask: Any) -> Any:
    """`x` where `mask` is not zero, else 0."""
    return x.where(mask != 0, x.new_zeros(()))


def _masked_code(args: Sequence[str], _: Attrs, real: Real, __: str) -> Code:
    return [], f"{args[0]} if {args[1]} != {real.zero} else {real.zero}"


_EW = Locality.ELEMENTWISE
_STRONGEST = Op("strongest", _EW, elementwise("strongest", D), _strongest, _strongest_code)
_MASKED = Op("masked", _EW, elementwise("masked", D, count=2), _masked, _masked_code)


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """The weighted mean of the models that election, masks and rescaling give back."""
    weights = tuple(shares(each, "emr takes a mean, so change one of them"))
    deltas = [ops.delta(x, base) for x in models]
    sign = ops.elect_sign(*deltas)
    agreeing = [ops.disjoint_merge(sign, d, (1.0,), normalize=False) for d in deltas]
    unified = _STRONGEST(*agreeing)
    restored = [ops.restore_l1(_MASKED(unified, a), d) for a, d in zip(agreeing, deltas, strict=True)]
    merged = ops.weighted_sum(*restored, weights)
    return ops.apply_delta(base, merged, float(shared.lambda_))


METHOD = MergeMethod(
    name="emr",
    summary="The largest changes in the elected direction, masked and rescaled for each model, averaged.",
    formula=(
        "d_i = x_i - b;   γ = sign Σ d_i;   m_i = [sign d_i = γ]\n"
        "u = γ max_i m_i |d_i|;   s_i = Σ|d_i| / Σ|m_i u| over the tensor\n"
        "out = b + λ Σ w_i s_i m_i u / Σ w_i"
    ),
    reference=Reference(
        "Huang et al. 2024, EMR-Merging: tuning-free high-performance model merging",
        "https://arxiv.org/abs/2405.17461",
        "elect, mask and rescale",
    ),
    deviations=(
        "The paper keeps a mask and a factor for each task and applies them when a task is chosen. One "
        "model has to come out, so the task models are averaged; with weight 1 for one model and 0 for "
        "all others it is the paper's model of that task. Factors are those of each tensor, not of the "
        "whole model."
    ),
    base="required",
    inputs=(1, None),
    parameters=(
        Parameter(
            "weight", float, "each", 1.0, doc="Weight of this model's task; all take part in electing."
        ),
        Parameter("lambda", float, "shared", 1.0, doc="Factor on the merged task vector."),
    ),
    build=build,
    example="""\
merge_method: emr
base_model: ./base
models:
  - model: ./model-a
  - model: ./model-b
dtype: bfloat16
""",
)
