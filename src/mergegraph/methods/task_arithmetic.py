"""Adding weighted task vectors to a base model."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods.base import REQUIRED, MergeMethod, Parameter, Reference, Values

_NO_SUM = 1e-8


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """``b + λ Σ w_i (x_i - b)``, over ``Σ w_i`` if normalised."""
    weights = [float(p.weight) for p in each]
    total = sum(weights)
    if shared.normalize and abs(total) >= _NO_SUM:
        weights = [w / total for w in weights]
    deltas = [ops.delta(x, base) for x in models]
    return ops.apply_delta(base, ops.weighted_sum(*deltas, tuple(weights)), float(shared.lambda_))


METHOD = MergeMethod(
    name="task_arithmetic",
    summary="Base model plus a weighted sum of task vectors.",
    formula="d_i = x_i - b\nout = b + λ Σ w_i d_i            (divided by Σ w_i with normalize: true)",
    reference=Reference(
        "Ilharco et al. 2023, Editing models with task arithmetic",
        "https://arxiv.org/abs/2212.04089",
        "section 2, task addition and negation",
    ),
    deviations="none",
    base="required",
    inputs=(1, None),
    parameters=(
        Parameter(
            "weight", float, "each", REQUIRED, doc="Weight of this model's task vector; may be negative."
        ),
        Parameter("normalize", bool, "shared", False, doc="Divide by the sum of the weights."),
        Parameter("lambda", float, "shared", 1.0, doc="Factor on the merged task vector."),
        Parameter("density", float, "each", 1.0, doc="Accepted for compatibility; has no effect."),
        Parameter("rescale", bool, "shared", False, doc="Accepted for compatibility; has no effect."),
        Parameter("int8_mask", bool, "shared", False, doc="Accepted for compatibility; has no effect."),
    ),
    build=build,
    example="""\
merge_method: task_arithmetic
base_model: ./base
models:
  - model: ./model-a
    parameters: {weight: 0.5}
  - model: ./model-b
    parameters: {weight: 0.3}
dtype: bfloat16
""",
)
