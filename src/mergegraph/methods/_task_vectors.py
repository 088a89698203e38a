"""What all methods on task vectors share: sparsify each, then add them up or let their signs vote."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mergegraph import ops
from mergegraph.methods.base import REQUIRED, Parameter, Reference, Values

Sparsify = Callable[[Any, Values], Any]
"""(task vector, the model's values) → the task vector with some elements zeroed."""

_NO_SUM = 1e-8

WEIGHT = Parameter(
    "weight", float, "each", REQUIRED, doc="Weight of this model's task vector; may be negative."
)
DENSITY = Parameter("density", float, "each", 1.0, 0.0, doc="Fraction of elements to keep; 1 keeps all.")
GAMMA = Parameter("gamma", float, "each", 0.01, 0.0, doc="Fraction of the largest elements to drop.")
EPSILON = Parameter("epsilon", float, "each", 0.15, 0.0, doc="Half the spread of the keep probabilities.")
INT8_MASK = Parameter("int8_mask", bool, "shared", False, doc="Accepted for compatibility; has no effect.")


def common(*, normalize: bool, rescale: bool) -> tuple[Parameter, ...]:
    """The shared parameters, with a method's own defaults."""
    return (
        Parameter("normalize", bool, "shared", normalize, doc="Divide by the sum of the weights that count."),
        Parameter("lambda", float, "shared", 1.0, doc="Factor on the merged task vector."),
        Parameter("rescale", bool, "shared", rescale, doc="Restore each task vector's L1 norm afterwards."),
        INT8_MASK,
    )


def sparse_deltas(
    base: Any, models: Iterable[Any], shared: Values, each: Iterable[Values], sparsify: Sparsify
) -> list[Any]:
    """Task vectors, each sparsified and, if asked for, restored to its L1 norm."""
    found = []
    for model, values in zip(models, each, strict=True):
        delta = ops.delta(model, base)
        kept = sparsify(delta, values)
        found.append(ops.restore_l1(kept, delta) if shared.rescale and kept is not delta else kept)
    return found


def without_tails(delta: Any, values: Values) -> Any:
    """Breadcrumbs: drop the largest and the smallest magnitudes."""
    return ops.keep_middle(delta, float(values.density), float(values.gamma))


def at_random(delta: Any, values: Values) -> Any:
    """DARE: keep each element with probability `density`."""
    density = float(values.density)
    return delta if density >= 1 else ops.drop(delta, density, values.stream)


def by_rank(delta: Any, values: Values) -> Any:
    """DELLA: keep elements with a probability that grows with their rank in the row, around the density.

    Raises:
        ValueError: the density lies so near 0 or 1 that some probability would not be one.
    """
    density, epsilon = float(values.density), float(values.epsilon)
    if density >= 1:
        return delta
    if density <= 0:
        return ops.trim(delta, float("inf"))
    if density + epsilon >= 1 or density - epsilon <= 0:
        raise ValueError(f"density {density:g} ± epsilon {epsilon:g} must lie strictly between 0 and 1")
    return ops.drop_by_rank(delta, (density - epsilon, 2 * epsilon), values.stream)


def add_up(base: Any, deltas: list[Any], shared: Values, each: Iterable[Values]) -> Any:
    """``b + λ Σ w_i d_i``, over ``Σ w_i`` if normalised."""
    weights = [float(p.weight) for p in each]
    total = sum(weights)
    if shared.normalize and abs(total) >= _NO_SUM:
        weights = [w / total for w in weights]
    return ops.apply_delta(base, ops.weighted_sum(*deltas, tuple(weights)), float(shared.lambda_))


def let_signs_vote(base: Any, deltas: list[Any], shared: Values, each: Iterable[Values]) -> Any:
    """``b + λ Σ m_i w_i d_i``, over ``Σ m_i w_i`` if normalised.

    m_i is 1 where the sign of ``w_i d_i`` is that of the sum of all, else 0.
    """
    weights = tuple(float(p.weight) for p in each)
    weighted = [ops.scale(d, w) for d, w in zip(deltas, weights, strict=True)]
    sign = ops.elect_sign(*weighted)
    merged = ops.disjoint_merge(sign, *weighted, weights, normalize=bool(shared.normalize))
    return ops.apply_delta(base, merged, float(shared.lambda_))


BREADCRUMBS = Reference(
    "Davari and Belilovsky 2024, Model breadcrumbs: scaling multi-task model merging with sparse masks",
    "https://arxiv.org/abs/2312.06795",
    "section 3.1, masking both tails",
)
DARE = Reference(
    "Yu et al. 2024, Language models are super mario: absorbing abilities from homologous models "
    "as a free lunch",
    "https://arxiv.org/abs/2311.03099",
    "section 3.2, drop and rescale",
)
DELLA = Reference(
    "Deep et al. 2024, DELLA-merging: reducing interference in model merging through magnitude-based "
    "sampling",
    "https://arxiv.org/abs/2406.11617",
    "section 3, MagPrune",
)
TIES_AT_THRESHOLDS = (
    "Elements equal to either threshold are all kept, so slightly more than the density may remain "
    "where magnitudes repeat."
)
DARE_DEVIATIONS = (
    "Rescaling restores the L1 norm of each task vector instead of dividing by the density. "
    "Masks come from a counter-based generator, so they differ from those of other tools."
)
DELLA_DEVIATIONS = (
    "Equal magnitudes rank by position; a row of one element is kept with the density itself. "
    "Rescaling restores the L1 norm. Masks come from a counter-based generator, so they differ from "
    "those of other tools."
)
