"""Parameters of several models that compete for the same place.

Du et al. 2024, "Parameter competition balancing for model merging", arXiv 2410.02396.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mergegraph.kernels.precision import IN_FLOAT32, IN_FLOAT64, LOG2_E, SATURATED
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
    product = x * total
    product = torch.where(product > SATURATED, torch.full_like(product, SATURATED), product)
    product = torch.where(product < 0, torch.zeros_like(product), product)
    power, rest = _exponential(product * 2.0)
    grown = power * rest + (power - 1.0)
    tangent = grown / (grown + 2.0)
    power, rest = _exponential(strength * strength * count)
    return (power * rest + power) * tangent


def _exponential(x: Tensor) -> tuple[Tensor, Tensor]:
    """``2**n`` and ``exp(r) - 1``, see `Exponential`; basic arithmetic has the same bits on every device."""
    wide = x.dtype is torch.float64
    how, bits = (IN_FLOAT64, torch.int64) if wide else (IN_FLOAT32, torch.int32)
    shifted = x * LOG2_E + how.rounding
    n = shifted - how.rounding
    r = (x - n * how.high) - n * how.low
    series = torch.full_like(r, 1.0 / math.factorial(how.terms))
    for term in range(how.terms - 1, 0, -1):
        series = series * r + 1.0 / math.factorial(term)
    return ((shifted.view(bits) << how.mantissa) + how.one).view(x.dtype), series * r


def average_by(*operands: Any) -> Tensor:
    """Mean of the first half of the tensors, weighted by the second; 0 where all weights are 0."""
    half = len(operands) // 2
    xs, weights = operands[:half], operands[half:]
    total: Tensor = xs[0] * weights[0]
    weight: Tensor = weights[0]
    for x, w in zip(xs[1:], weights[1:], strict=True):
        total, weight = total + x * w, weight + w
    return total / torch.where(weight == 0, torch.ones_like(weight), weight)
