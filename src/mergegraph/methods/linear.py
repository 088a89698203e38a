"""Weighted average of models."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods._weights import shares
from mergegraph.methods.base import REQUIRED, MergeMethod, Parameter, Reference, Values


def build(_: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """``Σ w_i x_i``, over ``Σ w_i`` if normalised."""
    if shared.normalize:
        weights = shares(each, "set normalize: false")
    else:
        weights = [float(p.weight) for p in each]
    return ops.weighted_sum(*models, tuple(weights))


METHOD = MergeMethod(
    name="linear",
    summary="Weighted average of models of one shape.",
    formula=(
        "out = Σ w_i x_i / Σ w_i          (normalize: true)\n"
        "out = Σ w_i x_i                  (normalize: false)"
    ),
    reference=Reference(
        "Wortsman et al. 2022, Model soups: averaging weights of multiple fine-tuned models",
        "https://arxiv.org/abs/2203.05482",
        "uniform soup, section 2, with weights",
    ),
    deviations="none",
    base="ignored",
    inputs=(1, None),
    parameters=(
        Parameter("weight", float, "each", REQUIRED, doc="Share of this model."),
        Parameter("normalize", bool, "shared", True, doc="Divide the weights by their sum."),
    ),
    build=build,
    example="""\
merge_method: linear
models:
  - model: ./model-a
    parameters: {weight: 0.6}
  - model: ./model-b
    parameters: {weight: 0.4}
dtype: bfloat16
""",
)
