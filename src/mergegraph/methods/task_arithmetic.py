"""Adding weighted task vectors to a base model."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods._task_vectors import INT8_MASK, WEIGHT, add_up
from mergegraph.methods.base import MergeMethod, Parameter, Reference, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """``b + λ Σ w_i (x_i - b)``, over ``Σ w_i`` if normalised."""
    return add_up(base, [ops.delta(x, base) for x in models], shared, each)


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
        WEIGHT,
        Parameter("normalize", bool, "shared", False, doc="Divide by the sum of the weights."),
        Parameter("lambda", float, "shared", 1.0, doc="Factor on the merged task vector."),
        Parameter("density", float, "each", 1.0, doc="Accepted for compatibility; has no effect."),
        Parameter("rescale", bool, "shared", False, doc="Accepted for compatibility; has no effect."),
        INT8_MASK,
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
