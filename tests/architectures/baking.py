"""Carries out a recipe with numpy: the shortest reading of what its parts mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mergegraph.architectures.moe import Fill, Gate, OutTensor, Recipe
from mergegraph.checkpoint.view import View

Array = NDArray[np.float64]
Weights = Mapping[str, Array]


def places(view: View) -> NDArray[np.int64]:
    """Flat positions of a view's elements, row by row."""
    rows = np.array([view.order.place(r) if view.order else r for r in range(view.rows)], np.int64)
    return (view.offset + rows[:, None] * view.row_step + np.arange(view.columns) * view.column_step).ravel()


def bake(
    recipe: Recipe, base: Weights, experts: Sequence[Weights], shared: Sequence[Weights], seed: int = 0
) -> dict[str, Array]:
    """Every tensor of the output; router rows are drawn at random."""
    models = {"base": [base], "expert": list(experts), "shared": list(shared)}
    return {tensor.name: _filled(tensor, models, seed + i) for i, tensor in enumerate(recipe.tensors)}


def _filled(tensor: OutTensor, models: Mapping[str, Sequence[Weights]], seed: int) -> Array:
    out = np.full(int(np.prod(tensor.shape)), np.nan)
    for part in tensor.parts:
        if isinstance(part, Gate):
            values = np.random.default_rng(seed).normal(size=out.size)
        elif isinstance(part, Fill):
            values = np.array(part.value)
        else:
            found = models[part.source.kind]
            x = found[part.source.index % len(found)][part.tensor].ravel()
            values = (x if part.view is None else x[places(part.view)]) * part.scale + part.shift
        place = None if isinstance(part, Gate) else part.place
        where = slice(None) if place is None else places(place)
        assert np.isnan(out[where]).all(), f"{tensor.name} is filled twice"
        out[where] = values
    assert not np.isnan(out).any(), f"{tensor.name} is not filled"
    return out.reshape(tensor.shape)
