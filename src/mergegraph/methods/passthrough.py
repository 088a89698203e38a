"""Copying tensors, optionally scaled: for stacking layers."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods.base import MergeMethod, Parameter, Reference, Values


def build(_: Any, models: tuple[Any, ...], __: Values, each: tuple[Values, ...]) -> Any:
    """The tensor itself, or a multiple of it."""
    (model,) = models
    return model if each[0].scale is None else ops.scale(model, float(each[0].scale))


METHOD = MergeMethod(
    name="passthrough",
    summary="Copies tensors of one model per slice; stacks layers of several models.",
    formula="out = scale · x",
    reference=Reference(
        "Kim et al. 2024, SOLAR 10.7B: depth up-scaling",
        "https://arxiv.org/abs/2312.15166",
        "section 2, depthwise scaling",
    ),
    deviations="none",
    base="ignored",
    inputs=(1, 1),
    parameters=(
        Parameter("scale", float, "each", None, doc="Factor on the tensor; without it bytes are copied."),
    ),
    build=build,
    example="""\
merge_method: passthrough
slices:
  - sources:
      - model: ./model-a
        layer_range: [0, 2]
  - sources:
      - model: ./model-a
        layer_range: [1, 3]
dtype: bfloat16
""",
)
