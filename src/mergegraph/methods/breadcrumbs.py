"""Task vectors without their outliers, added up."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods._task_vectors import DENSITY, WEIGHT, add_up, common, sparse_deltas
from mergegraph.methods.base import MergeMethod, Parameter, Reference, Values


def _sparsify(delta: Any, values: Values) -> Any:
    """Drop the largest and the smallest magnitudes."""
    return ops.keep_middle(delta, float(values.density), float(values.gamma))


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Sparsify the task vectors, then add them up."""
    return add_up(base, sparse_deltas(base, models, shared, each, _sparsify), shared, each)


METHOD = MergeMethod(
    name="breadcrumbs",
    summary="Task vectors without their largest and smallest elements, added up.",
    formula=(
        "d_i = x_i - b without its ⌊gamma_i N⌋ largest magnitudes; of the rest the ⌊density_i N⌋ largest\n"
        "out = b + λ Σ w_i d_i"
    ),
    reference=Reference(
        "Davari and Belilovsky 2024, Model breadcrumbs: scaling multi-task model merging with sparse masks",
        "https://arxiv.org/abs/2312.06795",
        "section 3.1, masking both tails",
    ),
    deviations=(
        "Elements equal to either threshold are all kept, so slightly more than the density may remain "
        "where magnitudes repeat."
    ),
    base="required",
    inputs=(1, None),
    parameters=(
        WEIGHT,
        DENSITY,
        Parameter("gamma", float, "each", 0.01, 0.0, doc="Fraction of the largest elements to drop."),
        *common(normalize=False, rescale=False),
    ),
    build=build,
    example="""\
merge_method: breadcrumbs
base_model: ./base
models:
  - model: ./model-a
    parameters: {weight: 0.5, density: 0.5, gamma: 0.01}
  - model: ./model-b
    parameters: {weight: 0.5, density: 0.5, gamma: 0.01}
dtype: bfloat16
""",
)
