"""The largest singular directions of each task vector, made orthogonal to each other."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods._matrices import AND_THE_REST, PARAMETERS, merged
from mergegraph.methods.base import MergeMethod, Parameter, Reference, Values


def build(base: Any, models: tuple[Any, ...], shared: Values, each: tuple[Values, ...]) -> Any:
    """Give each model its share of the singular directions, without interference between them."""
    share = 1 / len(models) if shared.rank is None else float(shared.rank)

    def matrices(deltas: list[Any]) -> Any:
        return ops.decorrelated(*deltas, rank=max(1, int(share * ops.matrix_rank(deltas[0]))))

    return merged(base, models, shared, each, matrices)


METHOD = MergeMethod(
    name="tsv",
    summary="Low-rank parts of the task vectors, with the interference between their directions removed.",
    formula=(
        "w_i (x_i - b) = U_i S_i V_iᵀ, of r singular values the ⌊rank · r⌋ largest;   U = [U_1 …]; S, V too\n"
        "out = b + λ U⊥ S V⊥ᵀ, with X⊥ = P Qᵀ where X = P D Qᵀ (the orthogonal matrix nearest to X)"
    ),
    reference=Reference(
        "Gargiulo et al. 2025, Task singular vectors: reducing task interference in model merging",
        "https://arxiv.org/abs/2412.00081",
        "TSV-Merge",
    ),
    deviations=AND_THE_REST
    + (
        "Directions that several models share exactly, where the nearest orthogonal matrix is not "
        "unique, share one place. Each model keeps at least one direction. The paper has no weights."
    ),
    base="required",
    inputs=(1, None),
    parameters=(
        *PARAMETERS,
        Parameter(
            "rank",
            float,
            "shared",
            None,
            0.0,
            1.0,
            doc="Share of its directions a model keeps; 1/n if not set.",
        ),
    ),
    build=build,
    example="""\
merge_method: tsv
base_model: ./base
models:
  - model: ./model-a
  - model: ./model-b
parameters:
  decompose:
    - filter: embed
      value: false
    - value: true
dtype: bfloat16
""",
)
