"""Trim, elect signs, merge disjointly."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods.base import REQUIRED, MergeMethod, Parameter, Reference, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Merge what is left of the task vectors after trimming, where their signs agree."""
    weighted = []
    for model, p in zip(models, each, strict=True):
        delta = ops.delta(model, base)
        kept = ops.keep_largest(delta, float(p.density))
        if shared.rescale and kept is not delta:
            kept = ops.restore_l1(kept, delta)
        weighted.append(ops.scale(kept, float(p.weight)))
    sign = ops.elect_sign(*weighted)
    weights = tuple(float(p.weight) for p in each)
    merged = ops.disjoint_merge(sign, *weighted, weights, normalize=bool(shared.normalize))
    return ops.apply_delta(base, merged, float(shared.lambda_))


METHOD = MergeMethod(
    name="ties",
    summary="Task vectors trimmed to their largest elements, merged where their signs agree.",
    formula=(
        "d_i = x_i - b, trimmed to its ⌊density_i · N⌋ largest magnitudes\n"
        "δ_i = w_i d_i;   M = +1 where Σ δ_i ≥ 0, else -1;   m_i = [sign δ_i = M]\n"
        "out = b + λ Σ m_i δ_i / Σ m_i w_i          (no division with normalize: false)"
    ),
    reference=Reference(
        "Yadav et al. 2023, TIES-Merging: resolving interference when merging models",
        "https://arxiv.org/abs/2306.01708",
        "algorithm 1",
    ),
    deviations=(
        "Every element equal to the trim threshold is kept (as in the authors' code), so slightly more "
        "than the density may remain where magnitudes repeat."
    ),
    base="required",
    inputs=(1, None),
    parameters=(
        Parameter("weight", float, "each", REQUIRED, doc="Weight of this model's task vector."),
        Parameter("density", float, "each", 1.0, 0.0, doc="Fraction of elements to keep; 1 keeps all."),
        Parameter(
            "normalize", bool, "shared", True, doc="Divide by the weights that agree, element by element."
        ),
        Parameter("lambda", float, "shared", 1.0, doc="Factor on the merged task vector."),
        Parameter("rescale", bool, "shared", False, doc="Restore each task vector's L1 norm after trimming."),
        Parameter("int8_mask", bool, "shared", False, doc="Accepted for compatibility; has no effect."),
    ),
    build=build,
    example="""\
merge_method: ties
base_model: ./base
models:
  - model: ./model-a
    parameters: {weight: 0.5, density: 0.3}
  - model: ./model-b
    parameters: {weight: 0.5, density: 0.3}
dtype: bfloat16
""",
)
