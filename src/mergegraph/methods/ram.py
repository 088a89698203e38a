"""Reinforced agent merging: shared changes are averaged, unique ones kept whole."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods.base import MergeMethod, Parameter, Reference, Values

EPSILON = Parameter("epsilon", float, "shared", 1e-5, 0.0, doc="A change up to this size counts as none.")
REFERENCE = Reference(
    "Behavior knowledge merge in reinforced agentic models, 2026",
    "https://arxiv.org/abs/2601.13572",
    "RAM and RAM+",
)


def build(base: Any, models: tuple[Any, ...], shared: Values, _: tuple[Values, ...]) -> Any:
    """Average each element over the models that changed it."""
    deltas = [ops.delta(x, base) for x in models]
    ones = (1.0,) * len(deltas)
    merged = ops.overlap_mean(*deltas, ones, epsilon=float(shared.epsilon))
    return ops.apply_delta(base, merged, 1.0)


METHOD = MergeMethod(
    name="ram",
    summary="Adds each change averaged over the models that made it, so unique changes stay whole.",
    formula="active_i = [|x_i - b| > epsilon];   out = b + Σ active_i (x_i - b) / max(1, Σ active_i)",
    reference=REFERENCE,
    deviations="none",
    base="required",
    inputs=(1, None),
    parameters=(EPSILON,),
    build=build,
    example="""\
merge_method: ram
base_model: ./base
models:
  - model: ./model-a
  - model: ./model-b
dtype: bfloat16
""",
)
