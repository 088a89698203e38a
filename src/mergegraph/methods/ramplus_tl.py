"""Reinforced agent merging with amplified unique changes."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods.base import MergeMethod, Parameter, Values
from mergegraph.methods.ram import EPSILON, REFERENCE


def build(base: Any, models: tuple[Any, ...], shared: Values, _: tuple[Values, ...]) -> Any:
    """As `ram`, with unique changes scaled by how much of a model's changes are shared."""
    deltas = [ops.delta(x, base) for x in models]
    epsilon = float(shared.epsilon)
    counts = ops.overlap(*deltas, epsilon=epsilon)
    factors = ops.rescue_factors(counts, r=float(shared.r), alpha=float(shared.alpha), epsilon=epsilon)
    return ops.apply_delta(base, ops.overlap_mean(*deltas, factors, epsilon=epsilon), 1.0)


METHOD = MergeMethod(
    name="ramplus_tl",
    summary="Like ram, with unique changes amplified where a model shares many of its changes.",
    formula=(
        "ρ_i = #shared_i / #unique_i per tensor\n"
        "out as in ram, unique changes of model i times 1 + r clamp(ρ_i, 0, alpha)"
    ),
    reference=REFERENCE,
    deviations="none",
    base="required",
    inputs=(1, None),
    parameters=(
        Parameter("r", float, "shared", 0.1, doc="Strength of the amplification."),
        Parameter("alpha", float, "shared", 0.2, 0.0, doc="Cap of the ratio of shared to unique changes."),
        EPSILON,
    ),
    build=build,
    example="""\
merge_method: ramplus_tl
base_model: ./base
models:
  - model: ./model-a
  - model: ./model-b
dtype: bfloat16
""",
)
