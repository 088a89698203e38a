"""Scores of a competition against extended precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from mergegraph import ops


def scores(strength: Any, x: Any, total: Any, count: int) -> Any:
    """``exp(count · strength²) · tanh(x · total)``, 0 where x and the total disagree."""
    wide, product = np.asarray(strength, np.longdouble), np.asarray(x, np.longdouble) * total
    return np.exp(count * wide * wide) * np.where(product < 0, 0, np.tanh(product))


@pytest.mark.parametrize("count", [1, 3, 80])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 6e-7), (torch.float64, 1.5e-15)])
def test_scores_are_right_in_the_dtype_of_their_operands(
    dtype: torch.dtype, tolerance: float, count: int
) -> None:
    """The argument of the exponential is rounded, so the error grows with the number of models."""
    draw = np.random.default_rng(count)
    strength = torch.from_numpy(draw.uniform(0, 1, 20_000)).to(dtype)
    x = torch.from_numpy(10 ** draw.uniform(-9, 2, 20_000)).to(dtype)
    total = torch.from_numpy(draw.choice([-1, 1], 20_000) * 10 ** draw.uniform(-9, 2, 20_000)).to(dtype)
    found = ops.contest(strength, x, total, count=count)
    assert found.dtype is dtype
    expected = scores(strength.double().numpy(), x.double().numpy(), total.double().numpy(), count)
    np.testing.assert_allclose(found.double(), expected.astype(np.float64), rtol=tolerance * (1 + count / 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_winner_without_strength_scores_the_tangent_alone_and_nan_stays(dtype: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, -2.0, 1e30, math.nan], dtype=dtype)
    found = ops.contest(torch.zeros_like(x), x, torch.ones_like(x), count=2)
    assert found[:4].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert found[4].isnan()
    assert ops.contest(x[4:], x[3:4], x[3:4], count=2).isnan().all()
