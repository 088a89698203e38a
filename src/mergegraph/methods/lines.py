"""Task vectors scaled up linearly from the first layer to the last."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods._task_vectors import WEIGHT, add_up
from mergegraph.methods.base import MergeMethod, Parameter, Reference, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Task arithmetic with a factor that depends on depth alone."""
    factor = float(shared.alpha) + float(shared.beta) * float(shared.position)
    return add_up(base, [ops.delta(x, base) for x in models], shared.including("lambda", factor), each)


METHOD = MergeMethod(
    name="lines",
    summary="Task arithmetic that changes deep layers more than shallow ones.",
    formula=(
        "d_i = x_i - b;   λ = alpha + beta l / (L - 1) in layer l = 0 … L - 1\n"
        "out = b + λ Σ w_i d_i            (divided by Σ w_i with normalize: true)"
    ),
    reference=Reference(
        "Wang et al. 2025, LiNeS: post-training layer scaling prevents forgetting and enhances model merging",
        "https://arxiv.org/abs/2410.17146",
        "the layer-wise scaling, applied to a sum of task vectors",
    ),
    deviations=(
        "Tensors before the layers (embeddings) count as the first layer, tensors after them (final "
        "norm, head) as the last; the authors scale both by alpha. alpha is given, not derived from "
        "norms of the task vectors. L counts the layers of the output."
    ),
    base="required",
    inputs=(1, None),
    parameters=(
        WEIGHT,
        Parameter("alpha", float, "shared", 0.5, doc="Factor in the first layer."),
        Parameter("beta", float, "shared", 0.5, doc="What the factor grows by until the last layer."),
        Parameter("normalize", bool, "shared", False, doc="Divide by the sum of the weights."),
    ),
    build=build,
    example="""\
merge_method: lines
base_model: ./base
models:
  - model: ./model-a
    parameters: {weight: 0.5}
  - model: ./model-b
    parameters: {weight: 0.5}
parameters:
  alpha: 0.3
  beta: 0.7
dtype: bfloat16
""",
    positional=True,
)
