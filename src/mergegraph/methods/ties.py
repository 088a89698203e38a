"""Trim, elect signs, merge disjointly."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods._task_vectors import DENSITY, WEIGHT, common, let_signs_vote, sparse_deltas
from mergegraph.methods.base import MergeMethod, Reference, Values


def _trim(delta: Any, values: Values) -> Any:
    """Keep the largest magnitudes."""
    return ops.keep_largest(delta, float(values.density))


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Merge what is left of the task vectors after trimming, where their signs agree."""
    return let_signs_vote(base, sparse_deltas(base, models, shared, each, _trim), shared, each)


METHOD = MergeMethod(
    name="ties",
    summary="Task vectors trimmed to their largest elements, merged where their signs agree.",
    formula=(
        "d_i = x_i - b, trimmed to its ⌊density_i · N⌋ largest magnitudes\n"
        "δ_i = w_i d_i;   M = +1 where Σ δ_i ≥ 0, else -1;   m_i = [sign δ_i = M]\n"
        "out = b + λ Σ m_i δ_i / Σ m_i w_i          (no division with normalize: false)"
    ),
    reference=Reference(
        "Yadav et al. 2023, TIES-Merging: resolving interference when merging models",
        "https://arxiv.org/abs/2306.01708",
        "algorithm 1",
    ),
    deviations=(
        "Every element equal to the trim threshold is kept (as in the authors' code), so slightly more "
        "than the density may remain where magnitudes repeat."
    ),
    base="required",
    inputs=(1, None),
    parameters=(WEIGHT, DENSITY, *common(normalize=True, rescale=False)),
    build=build,
    example="""\
merge_method: ties
base_model: ./base
models:
  - model: ./model-a
    parameters: {weight: 0.5, density: 0.3}
  - model: ./model-b
    parameters: {weight: 0.5, density: 0.3}
dtype: bfloat16
""",
)
