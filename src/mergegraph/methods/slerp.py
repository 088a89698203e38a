"""Spherical interpolation between two models."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods.base import REQUIRED, MergeMethod, Parameter, Reference, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, _: tuple[Values, ...]) -> Any:
    """Combine base and model with coefficients that need only their dot products."""
    (model,) = models
    weights = ops.slerp(ops.gram(base, model), float(shared.t))
    return ops.weighted_sum(base, model, weights)


METHOD = MergeMethod(
    name="slerp",
    summary="Spherical linear interpolation between the base model and one other.",
    formula=(
        "cos θ = a·b / (|a||b|)\n"
        "out = sin((1-t)θ)/sin θ · a + sin(tθ)/sin θ · b      (a: base model)\n"
        "out = (1-t) a + t b                                  (|cos θ| > 0.9995)"
    ),
    reference=Reference(
        "Shoemake 1985, Animating rotation with quaternion curves",
        "https://dl.acm.org/doi/10.1145/325165.325242",
        "section 3.3, on whole tensors seen as vectors",
    ),
    deviations=(
        "Coefficients are applied to the un-normalised tensors; nearly parallel and anti-parallel ones "
        "are interpolated linearly."
    ),
    base="required",
    inputs=(1, 1),
    parameters=(
        Parameter("t", float, "shared", REQUIRED, doc="Position from the base (0) to the other (1)."),
    ),
    build=build,
    example="""\
merge_method: slerp
base_model: ./model-a
models:
  - model: ./model-b
parameters:
  t: 0.4
dtype: bfloat16
""",
)
