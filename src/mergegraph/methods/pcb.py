"""Parameters compete within their model and between models; the winners are averaged."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods.base import MergeMethod, Parameter, Reference, Values

_OUTLIERS = 10_000
"""One in so many magnitudes at either end is an outlier."""
_MOST = 80
"""The exponential of the number of models must be a float32."""


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Average the task vectors with the scores of their largest winners as weights."""
    deltas = [ops.delta(x, base) for x in models]
    if ops.numel(deltas[0]) == 0:
        return base
    total = ops.weighted_sum(*deltas, (1.0,) * len(deltas))
    limited, shares = [], []
    for delta, own in zip(deltas, each, strict=True):
        kept, strength = _strength(delta)
        score = ops.contest(strength, delta, total, count=len(deltas))
        limited.append(kept)
        shares.append(_largest(score, float(own.ratio)))
    return ops.apply_delta(base, ops.average_by(*limited, *shares), float(shared.lambda_))


def _strength(delta: Any) -> tuple[Any, Any]:
    """A task vector with its outliers limited, and its magnitudes between them from 0 to 1."""
    count = ops.numel(delta)
    low = ops.kth_largest_magnitude(delta, count - count // _OUTLIERS)
    high = ops.kth_largest_magnitude(delta, 1 + count // _OUTLIERS)
    return ops.limit(delta, low, high), ops.stretch(delta, low, high)


def _largest(score: Any, ratio: float) -> Any:
    """Scores as weights: 0 up to the smallest that is kept, 1 for the largest."""
    count = ops.numel(score)
    last = max(1, count - int((1 - ratio) * count))
    return ops.stretch(score, ops.kth_largest_magnitude(score, last), ops.kth_largest_magnitude(score, 1))


METHOD = MergeMethod(
    name="pcb",
    summary="Average of the parameters that win a competition within and between models.",
    formula=(
        "d_i = x_i - b;   β_i = exp(n (|d_i| from 0 to 1)²) · tanh(d_i Σ d_j), at least 0, for n models\n"
        "|d_i| from 0 to 1 and the d_i of the mean are without outliers, one in 10,000 at either end\n"
        "a_i = β_i from 0 to 1, between the ⌈ratio · N⌉-th largest and the largest\n"
        "out = b + λ Σ a_i d_i / Σ a_i"
    ),
    reference=Reference(
        "Du et al. 2024, Parameter competition balancing for model merging",
        "https://arxiv.org/abs/2410.02396",
        "PCB-Merging, as the authors' code computes it: exponential and tangent instead of softmax",
    ),
    deviations=(
        "The competition is within each tensor, not within the whole model. Changes against the sum of "
        "all score 0 instead of less. Where all magnitudes or scores of a tensor are equal they count "
        "as 1. The factor is given, not searched for."
    ),
    base="required",
    inputs=(1, _MOST),
    parameters=(
        Parameter("ratio", float, "each", 0.1, 0.0, 1.0, doc="Share of this model's changes to keep."),
        Parameter("lambda", float, "shared", 1.0, doc="Factor on the merged task vector."),
    ),
    build=build,
    example="""\
merge_method: pcb
base_model: ./base
models:
  - model: ./model-a
  - model: ./model-b
parameters:
  ratio: 0.2
dtype: bfloat16
""",
)
