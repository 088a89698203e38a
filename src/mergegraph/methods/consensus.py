"""Changes that matter to several models at once."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods.base import MergeMethod, Parameter, Reference, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Keep the sum of the task vectors where it is near enough to so many of them."""
    deltas = [ops.delta(x, base) for x in models]
    total = ops.weighted_sum(*deltas, tuple(float(p.weight) for p in each))
    thresholds = tuple(float(p.threshold) for p in each)
    kept = ops.agreed(total, *deltas, thresholds, least=min(int(shared.k), len(models)))
    return ops.apply_delta(base, kept, float(shared.lambda_))


METHOD = MergeMethod(
    name="consensus",
    summary="Sum of the task vectors where it matters to several models; what one or none needs is dropped.",
    formula=(
        "d_i = x_i - b;   d = Σ w_i d_i;   m_i = [|d_i| ≥ threshold_i |d - d_i|]\nout = b + λ d [Σ m_i ≥ k]"
    ),
    reference=Reference(
        "Wang et al. 2024, Localizing task information for improved model merging and compression",
        "https://arxiv.org/abs/2405.07813",
        "TALL-masks and Consensus Merging",
    ),
    deviations=(
        "The thresholds are given, not chosen per task by validation. A k above the number of models "
        "means all of them, so that a tensor which few models have is merged over those."
    ),
    base="required",
    inputs=(1, None),
    parameters=(
        Parameter("weight", float, "each", 1.0, doc="Weight of this model's task vector in the sum."),
        Parameter(
            "threshold",
            float,
            "each",
            0.4,
            0.0,
            doc="How near the sum must come: the smaller, the more counts.",
        ),
        Parameter("k", int, "shared", 2, 0, doc="Models that a change must matter to; 0 keeps everything."),
        Parameter("lambda", float, "shared", 1.0, doc="Factor on the merged task vector."),
    ),
    build=build,
    example="""\
merge_method: consensus
base_model: ./base
models:
  - model: ./model-a
  - model: ./model-b
parameters:
  k: 2
  lambda: 0.5
dtype: bfloat16
""",
)
