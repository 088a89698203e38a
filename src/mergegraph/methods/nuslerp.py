"""Spherical interpolation with weights, of models or of task vectors."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods.base import REQUIRED, MergeMethod, Parameter, Reference, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Interpolate as one vector, row by row, or column by column."""
    first, second = (float(p.weight) for p in each)
    total = first + second
    t = second / total if abs(total) >= 1e-6 else 0.5
    x, y = models if base is None else tuple(ops.delta(m, base) for m in models)
    if not shared.nuslerp_flatten and not shared.nuslerp_row_wise:
        found = ops.weighted_sum(x, y, ops.row_arc(x, y, t))
    elif shared.nuslerp_flatten or ops.columns(x) == 1:
        found = ops.weighted_sum(x, y, ops.arc(ops.gram(x, y), t))
    else:
        found = ops.column_sum(x, y, ops.column_arc(ops.column_products(x, y), t))
    return found if base is None else ops.apply_delta(base, found, 1.0)


METHOD = MergeMethod(
    name="nuslerp",
    summary="Spherical interpolation of two models, or of their task vectors, whole or by rows or columns.",
    formula=(
        "t = w_2 / (w_1 + w_2);   cos θ = a·b / (|a||b|)\n"
        "a, b = x_1, x_2, or task vectors with a base\n"
        "out = sin((1-t)θ)/sin θ · a + sin(tθ)/sin θ · b   (+ base)"
    ),
    reference=Reference(
        "Shoemake 1985, Animating rotation with quaternion curves",
        "https://dl.acm.org/doi/10.1145/325165.325242",
        "section 3.3",
    ),
    deviations=(
        "Vectors are rows (the last axis) with nuslerp_flatten: false, and columns (the first axis) with "
        "nuslerp_row_wise: true on top of it, as in the tool the names come from."
    ),
    base="optional",
    inputs=(2, 2),
    parameters=(
        Parameter("weight", float, "each", REQUIRED, doc="Weight of this model."),
        Parameter("nuslerp_flatten", bool, "shared", True, doc="See the whole tensor as one vector."),
        Parameter("nuslerp_row_wise", bool, "shared", False, doc="Vectors run along the first axis."),
    ),
    build=build,
    example="""\
merge_method: nuslerp
models:
  - model: ./model-a
    parameters: {weight: 0.7}
  - model: ./model-b
    parameters: {weight: 0.3}
dtype: bfloat16
""",
)
