"""A sum of task vectors that is equally strong in all its directions."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods._matrices import AND_THE_REST, PARAMETERS, merged
from mergegraph.methods.base import MergeMethod, Parameter, Reference, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Flatten the spectrum of the sum, after leaving a part of it to each model."""

    def matrices(deltas: list[Any]) -> Any:
        rank = ops.matrix_rank(deltas[0])
        return ops.isotropic(*deltas, own=(rank - int(float(shared.common) * rank)) // len(deltas))

    return merged(base, models, shared, each, matrices)


METHOD = MergeMethod(
    name="iso",
    summary="The sum of the task vectors with all its singular values made equal, so that no task dominates.",
    formula=(
        "Σ w_i (x_i - b) = U S Vᵀ;   out = b + λ mean(S) U Vᵀ                        (common: 1, Iso-C)\n"
        "Iso-CTS: U_c of the ⌊common · r⌋ largest of r singular values, then in equal numbers the largest\n"
        "directions of every (I - U_c U_cᵀ) w_i (x_i - b);   out = b + λ mean(S) U⊥ V⊥ᵀ of all of them"
    ),
    reference=Reference(
        "Marczak et al. 2025, No task left behind: isotropic model merging with common and task- "
        "specific subspaces",
        "https://arxiv.org/abs/2502.04959",
        "section 4, Iso-C and Iso-CTS",
    ),
    deviations=AND_THE_REST
    + (
        "Directions whose singular value is zero up to rounding have no meaning; they stay out, also "
        "of the mean. What cannot be shared equally belongs to the common part. λ is given, not "
        "searched for. The paper has no weights."
    ),
    base="required",
    inputs=(1, None),
    parameters=(
        *PARAMETERS,
        Parameter(
            "common", float, "shared", 1.0, 0.0, 1.0, doc="Share of the directions all models have in common."
        ),
    ),
    build=build,
    example="""\
merge_method: iso
base_model: ./base
models:
  - model: ./model-a
  - model: ./model-b
parameters:
  common: 0.8
  decompose:
    - filter: embed
      value: false
    - value: true
dtype: bfloat16
""",
)
