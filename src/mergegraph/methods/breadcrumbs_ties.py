"""Task vectors without their outliers, merged by sign."""

from __future__ import annotations

from typing import Any

from mergegraph.methods._task_vectors import (
    BREADCRUMBS,
    DENSITY,
    GAMMA,
    TIES_AT_THRESHOLDS,
    WEIGHT,
    common,
    let_signs_vote,
    sparse_deltas,
    without_tails,
)
from mergegraph.methods.base import MergeMethod, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Sparsify the task vectors, then merge where their signs agree."""
    return let_signs_vote(base, sparse_deltas(base, models, shared, each, without_tails), shared, each)


METHOD = MergeMethod(
    name="breadcrumbs_ties",
    summary="Task vectors without their largest and smallest elements, merged where their signs agree.",
    formula=(
        "d_i = x_i - b without its ⌊gamma_i N⌋ largest magnitudes; of the rest the ⌊density_i N⌋ largest\n"
        "out = b + λ Σ m_i w_i d_i,     m_i = [sign(w_i d_i) = sign(Σ w_j d_j)]"
    ),
    reference=BREADCRUMBS,
    deviations=TIES_AT_THRESHOLDS,
    base="required",
    inputs=(1, None),
    parameters=(
        WEIGHT,
        DENSITY,
        GAMMA,
        *common(normalize=False, rescale=False),
    ),
    build=build,
    example="""\
merge_method: breadcrumbs_ties
base_model: ./base
models:
  - model: ./model-a
    parameters: {weight: 0.5, density: 0.5, gamma: 0.01}
  - model: ./model-b
    parameters: {weight: 0.5, density: 0.5, gamma: 0.01}
dtype: bfloat16
""",
)
