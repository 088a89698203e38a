"""Barycentric interpolation of several models on a hypersphere."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods._weights import shares
from mergegraph.methods.base import REQUIRED, MergeMethod, Parameter, Reference, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Interpolate the models, or their task vectors if there is a base, through their Gram matrix."""
    if len(models) == 1:
        return models[0]
    if shared.normalize_weights:
        weights = shares(each, "set normalize_weights: false")
    else:
        weights = [float(p.weight) for p in each]
    vectors = models if base is None else tuple(ops.delta(x, base) for x in models)
    found = ops.sphere_mean(ops.gram(*vectors), tuple(weights), eps=float(shared.eps))
    mean = ops.weighted_sum(*vectors, found)
    return mean if base is None else ops.apply_delta(base, mean, 1.0)


METHOD = MergeMethod(
    name="multislerp",
    summary="Spherical interpolation of any number of models, in the tangent space at their mean direction.",
    formula=(
        "u_i = T_i / |T_i|;   m = Σ w_i u_i, normalised          (T_i = x_i, or x_i - b with a base)\n"
        "g = Σ w_i (u_i - (u_i·m) m);   s = |g|\n"
        "out = (m cos s + g/s sin s) Σ w_i |T_i|   (+ b)"
    ),
    reference=Reference(
        "Buss and Fillmore 2001, Spherical averages and applications to spherical splines",
        "https://dl.acm.org/doi/10.1145/502122.502124",
        "section 3, one step of the iteration",
    ),
    deviations="Where the directions cancel, or all vectors are zero, the weighted sum is taken.",
    base="optional",
    inputs=(1, None),
    parameters=(
        Parameter("weight", float, "each", REQUIRED, doc="Weight of this model."),
        Parameter("normalize_weights", bool, "shared", True, doc="Divide the weights by their sum."),
        Parameter("eps", float, "shared", 1e-8, 0.0, doc="Guards divisions by tiny norms."),
    ),
    build=build,
    example="""\
merge_method: multislerp
models:
  - model: ./model-a
    parameters: {weight: 0.5}
  - model: ./model-b
    parameters: {weight: 0.5}
dtype: bfloat16
""",
)
