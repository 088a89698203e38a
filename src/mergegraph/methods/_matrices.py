"""What methods on the singular vectors of task vectors share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mergegraph import ops
from mergegraph.methods.base import Parameter, Values

Merge = Callable[[list[Any]], Any]
"""Weighted task vectors that are matrices → the merged one."""

PARAMETERS = (
    Parameter("weight", float, "each", 1.0, doc="Weight of this model's task vector; may be negative."),
    Parameter("lambda", float, "shared", 1.0, doc="Factor on the merged task vector."),
    Parameter(
        "decompose",
        bool,
        "shared",
        True,
        doc="Decompose matrices; false takes the mean, as for other tensors.",
    ),
)
AND_THE_REST = (
    "Tensors that are not matrices, and those with decompose: false, take the mean of the task "
    "vectors, as in the authors' code. "
)


def merged(base: Any, models: Iterable[Any], shared: Values, each: Iterable[Values], matrices: Merge) -> Any:
    """``b + λ d``, where d is what `matrices` makes of matrices, and the mean of other task vectors."""
    deltas, weights = [ops.delta(x, base) for x in models], [float(p.weight) for p in each]
    if shared.decompose and ops.matrix_rank(deltas[0]):
        found = matrices([d if w == 1 else ops.scale(d, w) for d, w in zip(deltas, weights, strict=True)])
    else:
        found = ops.weighted_sum(*deltas, tuple(w / len(weights) for w in weights))
    return ops.apply_delta(base, found, float(shared.lambda_))
