"""What all methods on task vectors share: sparsify each, then add them up or let their signs vote."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mergegraph import ops
from mergegraph.methods.base import REQUIRED, Parameter, Values

Sparsify = Callable[[Any, Values], Any]
"""(task vector, the model's values) → the task vector with some elements zeroed."""

_NO_SUM = 1e-8

WEIGHT = Parameter(
    "weight", float, "each", REQUIRED, doc="Weight of this model's task vector; may be negative."
)
DENSITY = Parameter("density", float, "each", 1.0, 0.0, doc="Fraction of elements to keep; 1 keeps all.")
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


def add_up(base: Any, deltas: list[Any], shared: Values, each: Iterable[Values]) -> Any:
    """``b + λ Σ w_i d_i``, over ``Σ w_i`` if normalised."""
    weights = [float(p.weight) for p in each]
    total = sum(weights)
    if shared.normalize and abs(total) >= _NO_SUM:
        weights = [w / total for w in weights]
    return ops.apply_delta(base, ops.weighted_sum(*deltas, tuple(weights)), float(shared.lambda_))


def let_signs_vote(base: Any, deltas: list[Any], shared: Values, each: Iterable[Values]) -> Any:
    """``b + λ Σ m_i w_i d_i``, over ``Σ m_i w_i`` if normalised; m_i: its sign is that of the weighted sum."""
    weights = tuple(float(p.weight) for p in each)
    weighted = [ops.scale(d, w) for d, w in zip(deltas, weights, strict=True)]
    sign = ops.elect_sign(*weighted)
    merged = ops.disjoint_merge(sign, *weighted, weights, normalize=bool(shared.normalize))
    return ops.apply_delta(base, merged, float(shared.lambda_))
