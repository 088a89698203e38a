"""Parameters of several models that compete for the same place.

Du et al. 2024, "Parameter competition balancing for model merging", arXiv 2410.02396.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mergegraph.kernels.precision import SATURATED, TERMS, doublings
from mergegraph.kernels.reduction import Array


def limit(x: Tensor, low: Array, high: Array) -> Tensor:
    """Raise smaller magnitudes to `low`, cut larger ones to `high`, keep signs; zeros stay."""
    return torch.where(x < 0, -_limited(-x, low, high), torch.where(x > 0, _limited(x, low, high), x))


def _limited(x: Tensor, low: Array, high: Array) -> Tensor:
    """What is not finite stays: it has to be reported, not cut."""
    a, b = float(low[0]), float(high[0])
    within = torch.where(x < a, torch.full_like(x, a), torch.where(x > b, torch.full_like(x, b), x))
    return torch.where(x - x == 0, within, x)


def stretch(x: Tensor, low: Array, high: Array) -> Tensor:
    """Magnitudes from `low` to `high` on a scale from 0 to 1; without a distance, all but 0 are 1 there."""
    a, size = torch.full_like(x, float(low[0])), x.abs()
    b = torch.full_like(x, float(high[0]))
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    gap = b - a
    even = torch.where(size == 0, zero, one)
    inside = torch.where(gap == 0, even, (size - a) / torch.where(gap == 0, one, gap))
    return torch.where(size < a, zero, torch.where(size > b, one, inside))


def contest(strength: Tensor, x: Tensor, total: Tensor, *, count: int) -> Tensor:
    """``exp(count · strength²) · tanh(x · total)``, or 0 where the element opposes the total."""
    wide = strength.double()
    product = x.double() * total.double()
    product = torch.where(product > SATURATED, torch.full_like(product, SATURATED), product)
    product = torch.where(product < 0, torch.zeros_like(product), product)
    grown = _growth(product * 2.0, 2 * SATURATED)
    score = (_growth(count * (wide * wide), float(count)) + 1.0) * (grown / (grown + 2.0))
    return score.to(strength.dtype)


def _growth(x: Tensor, most: float) -> Tensor:
    """``exp(x) - 1`` for x from 0 to `most`, of basic arithmetic alone: equal bits on every device."""
    times = doublings(most)
    y = x * 0.5**times
    result = y * (1.0 / TERMS)
    for term in range(TERMS - 1, 0, -1):
        result = (result + 1.0) * (y * (1.0 / term))
    for _ in range(times):
        result = result * (result + 2.0)
    return result


def average_by(*operands: Any) -> Tensor:
    """Mean of the first half of the tensors, weighted by the second; 0 where all weights are 0."""
    half = len(operands) // 2
    xs, weights = operands[:half], operands[half:]
    total: Tensor = xs[0] * weights[0]
    weight: Tensor = weights[0]
    for x, w in zip(xs[1:], weights[1:], strict=True):
        total, weight = total + x * w, weight + w
    return total / torch.where(weight == 0, torch.ones_like(weight), weight)
