"""Dropping by magnitude rank, merged by sign."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods._task_vectors import DENSITY, WEIGHT, common, let_signs_vote, sparse_deltas
from mergegraph.methods.base import MergeMethod, Parameter, Reference, Values


def _sparsify(delta: Any, values: Values) -> Any:
    """Keep elements with a probability that grows with their rank in the row, around the density."""
    density, epsilon = float(values.density), float(values.epsilon)
    if density >= 1:
        return delta
    if density <= 0:
        return ops.trim(delta, float("inf"))
    if density + epsilon >= 1 or density - epsilon <= 0:
        raise ValueError(f"density {density:g} ± epsilon {epsilon:g} must lie strictly between 0 and 1")
    chance = ops.line(ops.row_ranks(delta), (density - epsilon, 2 * epsilon))
    return ops.drop_by(delta, chance, values.stream)


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Sparsify the task vectors, then merge where their signs agree."""
    return let_signs_vote(base, sparse_deltas(base, models, shared, each, _sparsify), shared, each)


METHOD = MergeMethod(
    name="della",
    summary="Task vectors with small elements dropped more often, rescaled, merged where their signs agree.",
    formula=(
        "p = density_i - epsilon_i + 2 epsilon_i rank,   rank in [0, 1] of |x_i - b| within its row\n"
        "d_i = (x_i - b) with each element kept with probability p, rescaled to its L1 norm\n"
        "out = b + λ Σ m_i w_i d_i / Σ m_i w_i,     m_i = [sign(w_i d_i) = sign(Σ w_j d_j)]"
    ),
    reference=Reference(
        "Deep et al. 2024, DELLA-merging: reducing interference in model merging through magnitude-based sampling",
        "https://arxiv.org/abs/2406.11617",
        "section 3, MagPrune",
    ),
    deviations=(
        "Equal magnitudes rank by position; a row of one element is kept with the density itself. Rescaling "
        "restores the L1 norm. Masks come from a counter-based generator, so they differ from those of other tools."
    ),
    base="required",
    inputs=(1, None),
    parameters=(
        WEIGHT,
        DENSITY,
        Parameter("epsilon", float, "each", 0.15, 0.0, doc="Half the spread of the keep probabilities."),
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
