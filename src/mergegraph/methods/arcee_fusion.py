"""Fusing in only the changes that stand out."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods.base import MergeMethod, Reference, Values


def build(base: Any, models: tuple[Any, ...], _: Values, __: tuple[Values, ...]) -> Any:
    """Take over the elements whose importance lies beyond the upper fence of the distribution."""
    (model,) = models
    delta = ops.delta(model, base)
    count = ops.numel(delta)
    if count == 0:
        return base
    importance = ops.importance(delta, ops.row_divergence(model, base))
    quartiles = [
        ops.kth_largest_magnitude(importance, count - int(share * (count - 1))) for share in (0.25, 0.5, 0.75)
    ]
    fence = ops.quartile_fence(*quartiles)
    return ops.apply_delta(base, ops.keep_where(delta, importance, fence), 1.0)


METHOD = MergeMethod(
    name="arcee_fusion",
    summary="Takes over only those of another model's changes whose importance stands out.",
    formula=(
        "importance = |x - b| · KL(softmax(x) ‖ softmax(b)) per row\n"
        "fence = median + 1.5 (upper - lower quartile);   out = b + (x - b) [importance ≥ fence]"
    ),
    reference=Reference(
        "Goddard et al. 2024, Arcee's MergeKit: a toolkit for merging large language models",
        "https://arxiv.org/abs/2403.13257",
        "the method's description in the toolkit",
    ),
    deviations="Quartiles are exact for tensors of every size; divergences below 0 (rounding) count as 0.",
    base="required",
    inputs=(1, 1),
    parameters=(),
    build=build,
    example="""\
merge_method: arcee_fusion
base_model: ./model-a
models:
  - model: ./model-b
dtype: bfloat16
""",
)
