"""The Karcher mean of models on a hypersphere."""

from __future__ import annotations

from typing import Any

from mergegraph import ops
from mergegraph.methods.base import MergeMethod, Parameter, Reference, Values


def build(_: Any, models: tuple[Any, ...], shared: Values, __: tuple[Values, ...]) -> Any:
    """Iterate on the coefficients; the tensors are read once for their Gram matrix and once to add up."""
    found = ops.karcher_mean(ops.gram(*models), max_iter=int(shared.max_iter), tol=float(shared.tol))
    # Models that nearly cancel get large coefficients of both signs, too much for 24 bits.
    return ops.weighted_sum(*(ops.cast(x, dtype="F64") for x in models), found)


METHOD = MergeMethod(
    name="karcher",
    summary="Riemannian (Karcher) mean of the models' directions, times their mean norm.",
    formula=("m ← exp_m(1/n Σ log_m(x_i / |x_i|)) until the step is shorter than tol\nout = m · 1/n Σ |x_i|"),
    reference=Reference(
        "Karcher 1977, Riemannian center of mass and mollifier smoothing",
        "https://onlinelibrary.wiley.com/doi/10.1002/cpa.3160300502",
        "gradient descent for the centre of mass, on the unit sphere",
    ),
    deviations="none",
    base="ignored",
    inputs=(1, None),
    parameters=(
        Parameter("max_iter", int, "shared", 10, 0, doc="Most iterations."),
        Parameter("tol", float, "shared", 1e-5, 0.0, doc="Norms and steps up to this count as zero."),
    ),
    build=build,
    example="""\
merge_method: karcher
models:
  - model: ./model-a
  - model: ./model-b
dtype: bfloat16
""",
)
