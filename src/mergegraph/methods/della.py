"""Dropping by magnitude rank, merged by sign."""

from __future__ import annotations

from typing import Any

from mergegraph.methods._task_vectors import (
    DELLA,
    DELLA_DEVIATIONS,
    DENSITY,
    EPSILON,
    WEIGHT,
    by_rank,
    common,
    let_signs_vote,
    sparse_deltas,
)
from mergegraph.methods.base import MergeMethod, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Sparsify the task vectors, then merge where their signs agree."""
    return let_signs_vote(base, sparse_deltas(base, models, shared, each, by_rank), shared, each)


METHOD = MergeMethod(
    name="della",
    summary="Task vectors with small elements dropped more often, rescaled, merged where their signs agree.",
    formula=(
        "p = density_i - epsilon_i + 2 epsilon_i rank,   rank in [0, 1] of |x_i - b| within its row\n"
        "d_i = (x_i - b) with each element kept with probability p, rescaled to its L1 norm\n"
        "out = b + λ Σ m_i w_i d_i / Σ m_i w_i,     m_i = [sign(w_i d_i) = sign(Σ w_j d_j)]"
    ),
    reference=DELLA,
    deviations=DELLA_DEVIATIONS,
    base="required",
    inputs=(1, None),
    parameters=(
        WEIGHT,
        DENSITY,
        EPSILON,
        *common(normalize=True, rescale=True),
    ),
    build=build,
    example="""\
merge_method: della
base_model: ./base
models:
  - model: ./model-a
    parameters: {weight: 0.5, density: 0.5, epsilon: 0.1}
  - model: ./model-b
    parameters: {weight: 0.5, density: 0.5, epsilon: 0.1}
dtype: bfloat16
""",
    random=True,
)
