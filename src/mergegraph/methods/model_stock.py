"""Model Stock: how far to trust the mean of fine-tunes, by the angle between them."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods.base import MergeMethod, Parameter, Reference, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, _: tuple[Values, ...]) -> Any:
    """Weight the mean task vector by the task vectors' cosines, for the whole tensor or row by row."""
    deltas = [ops.delta(x, base) for x in models]
    weights = ops.row_stock(*deltas) if shared.filter_wise else ops.stock(ops.gram(*deltas))
    return ops.apply_delta(base, ops.weighted_sum(*deltas, weights), 1.0)


METHOD = MergeMethod(
    name="model_stock",
    summary="Interpolates between the base and the mean of fine-tunes, by the angle between task vectors.",
    formula=(
        "d_i = x_i - b;   cos θ = mean over pairs of d_i·d_j / (|d_i||d_j|)\n"
        "t = N cos θ / (1 + (N-1) cos θ);   out = b + t · mean d_i"
    ),
    reference=Reference(
        "Jang et al. 2024, Model Stock: all we need is just a few fine-tuned models",
        "https://arxiv.org/abs/2403.19522",
        "equation 5",
    ),
    deviations="Where the denominator vanishes the base is kept.",
    base="required",
    inputs=(2, None),
    parameters=(
        Parameter("filter_wise", bool, "shared", False, doc="One angle per row instead of per tensor."),
    ),
    build=build,
    example="""\
merge_method: model_stock
base_model: ./base
models:
  - model: ./model-a
  - model: ./model-b
dtype: bfloat16
""",
)
