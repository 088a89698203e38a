"""Random dropping of task vectors, added up."""

from __future__ import annotations

from typing import Any

from mergegraph.methods._task_vectors import (
    DARE,
    DARE_DEVIATIONS,
    DENSITY,
    WEIGHT,
    add_up,
    at_random,
    common,
    sparse_deltas,
)
from mergegraph.methods.base import MergeMethod, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Sparsify the task vectors, then add them up."""
    return add_up(base, sparse_deltas(base, models, shared, each, at_random), shared, each)


METHOD = MergeMethod(
    name="dare_linear",
    summary="Task vectors with elements dropped at random and the rest rescaled, added up.",
    formula=(
        "d_i = (x_i - b) with each element kept with probability density_i\n"
        "d_i = d_i · |x_i - b|₁ / |d_i|₁     (rescale: true)\n"
        "out = b + λ Σ w_i d_i"
    ),
    reference=DARE,
    deviations=DARE_DEVIATIONS,
    base="required",
    inputs=(1, None),
    parameters=(WEIGHT, DENSITY, *common(normalize=False, rescale=True)),
    build=build,
    example="""\
merge_method: dare_linear
base_model: ./base
models:
  - model: ./model-a
    parameters: {weight: 0.5, density: 0.5}
  - model: ./model-b
    parameters: {weight: 0.5, density: 0.5}
dtype: bfloat16
""",
    random=True,
)
