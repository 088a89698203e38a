"""Random dropping of task vectors, merged by sign."""

from __future__ import annotations

from typing import Any

from mergegraph.methods._task_vectors import (
    DARE,
    DARE_DEVIATIONS,
    DENSITY,
    WEIGHT,
    at_random,
    common,
    let_signs_vote,
    sparse_deltas,
)
from mergegraph.methods.base import MergeMethod, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Sparsify the task vectors, then merge where their signs agree."""
    return let_signs_vote(base, sparse_deltas(base, models, shared, each, at_random), shared, each)


METHOD = MergeMethod(
    name="dare_ties",
    summary="Task vectors with elements dropped at random, rescaled, and merged where their signs agree.",
    formula=(
        "d_i = (x_i - b) with each element kept with probability density_i\n"
        "d_i = d_i · |x_i - b|₁ / |d_i|₁     (rescale: true)\n"
        "out = b + λ Σ m_i w_i d_i,     m_i = [sign(w_i d_i) = sign(Σ w_j d_j)]"
    ),
    reference=DARE,
    deviations=DARE_DEVIATIONS,
    base="required",
    inputs=(1, None),
    parameters=(WEIGHT, DENSITY, *common(normalize=False, rescale=True)),
    build=build,
    example="""\
merge_method: dare_ties
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
