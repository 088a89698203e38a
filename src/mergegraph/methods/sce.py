"""Select, calculate, erase: variance picks elements, energy gives weights, signs vote."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods._task_vectors import INT8_MASK
from mergegraph.methods.base import MergeMethod, Parameter, Reference, Values

_FLOOR = 1e-6


def build(base: Any, models: tuple[Any, ...], shared: Values, _: tuple[Values, ...]) -> Any:
    """Merge the selected elements of the task vectors with weights from their mean squares."""
    deltas = [ops.delta(x, base) for x in models]
    share = float(shared.select_topk)
    if share < 1 and ops.numel(deltas[0]):
        deltas = _select(deltas, share)
    weights = ops.energy_weights(ops.squares(*deltas), count=ops.numel(deltas[0]))
    merged = ops.signed_mean(ops.elect_sign(*deltas), *deltas, weights, floor=_FLOOR)
    return ops.apply_delta(base, merged, 1.0)


def _select(deltas: list[Any], share: float) -> list[Any]:
    """Keep the elements that vary most between models: a share of those that vary at all."""
    if share <= 0:
        return [ops.trim(d, float("inf")) for d in deltas]
    spread = ops.variance(*deltas)
    rank = ops.rank_of_share(ops.nonzero(spread), share=share)
    limit = ops.unless_empty(ops.kth_largest_magnitude(spread, rank, share=share), rank)
    return [ops.keep_where(d, spread, limit) for d in deltas]


METHOD = MergeMethod(
    name="sce",
    summary="Merges the elements that vary most between models, weighted by energy, where signs agree.",
    formula=(
        "d_i = x_i - b at the ⌊select_topk · nonzero⌋ elements of largest variance, else 0\n"
        "a_i = mean d_i² / Σ_j mean d_j²;   m_i = [sign d_i = sign Σ d_j]\n"
        "out = b + Σ m_i a_i d_i / Σ m_i a_i"
    ),
    reference=Reference(
        "Wan et al. 2024, FuseChat: knowledge fusion of chat models",
        "https://arxiv.org/abs/2408.07990",
        "section 3.3, SCE",
    ),
    deviations=(
        "Weights are equal where the mean squares sum to less than 1e-6. Equal variances stay together."
    ),
    base="required",
    inputs=(1, None),
    parameters=(
        Parameter("select_topk", float, "shared", 1.0, doc="Share of the varying elements to keep."),
        INT8_MASK,
    ),
    build=build,
    example="""\
merge_method: sce
base_model: ./base
models:
  - model: ./model-a
  - model: ./model-b
parameters:
  select_topk: 0.5
dtype: bfloat16
""",
)
