"""Swap towards a second model where the two are near each other."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods.base import REQUIRED, MergeMethod, Parameter, Reference, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, _: tuple[Values, ...]) -> Any:
    """Interpolate element by element, the more the closer."""
    (model,) = models
    return ops.nearswap(base, model, float(shared.t))


METHOD = MergeMethod(
    name="nearswap",
    summary="Takes the other model's elements where they are close to the base's, interpolates elsewhere.",
    formula="s = clamp(t / |b - x|, 0, 1);   out = s x + (1 - s) b",
    reference=Reference(
        "alchemonaut, QuartetAnemoi-70B-t0.0001 model card",
        "https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
        "NearSwap",
    ),
    deviations="none",
    base="required",
    inputs=(1, 1),
    parameters=(Parameter("t", float, "shared", REQUIRED, doc="Distance up to which elements are swapped."),),
    build=build,
    example="""\
merge_method: nearswap
base_model: ./model-a
models:
  - model: ./model-b
parameters:
  t: 0.0001
dtype: bfloat16
""",
)
