"""Random dropping of task vectors, added up."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods._task_vectors import DENSITY, WEIGHT, add_up, common, sparse_deltas
from mergegraph.methods.base import MergeMethod, Reference, Values


def _sparsify(delta: Any, values: Values) -> Any:
    """Keep each element with probability `density`."""
    density = float(values.density)
    return delta if density >= 1 else ops.drop(delta, density, values.stream)


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Sparsify the task vectors, then add them up."""
    return add_up(base, sparse_deltas(base, models, shared, each, _sparsify), shared, each)


METHOD = MergeMethod(
    name="dare_linear",
    summary="Task vectors with elements dropped at random and the rest rescaled, added up.",
    formula=(
        "d_i = (x_i - b) with each element kept with probability density_i\n"
        "d_i = d_i · |x_i - b|₁ / |d_i|₁     (rescale: true)\n"
        "out = b + λ Σ w_i d_i"
    ),
    reference=Reference(
        "Yu et al. 2024, Language models are super mario: absorbing abilities from homologous models as a free lunch",
        "https://arxiv.org/abs/2311.03099",
        "section 3.2, drop and rescale",
    ),
    deviations=(
        "Rescaling restores the L1 norm of each task vector instead of dividing by the density. "
        "Masks come from a counter-based generator, so they differ from those of other tools."
    ),
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
