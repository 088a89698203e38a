"""Trimming, sign election and disjoint merging of task vectors.

Yadav et al. 2023, "TIES-Merging: Resolving Interference When Merging Models", arXiv 2306.01708.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mergegraph.kernels.reduction import Array


def trim(x: Tensor, threshold: Array) -> Tensor:
    """Zero the elements with ``|x| < threshold``."""
    return torch.where(x.abs() < float(threshold[0]), torch.zeros_like(x), x)


def elect_sign(*deltas: Tensor) -> Tensor:
    """+1 where the deltas sum to at least zero, else -1."""
    total = deltas[0]
    for x in deltas[1:]:
        total = total + x
    one = torch.ones((), dtype=total.dtype, device=total.device)
    return torch.where(total >= 0, one, -one)


def cap(x: Tensor, threshold: Array) -> Tensor:
    """Zero the elements with ``|x| > threshold``."""
    return torch.where(x.abs() > float(threshold[0]), torch.zeros_like(x), x)


def keep_where(x: Tensor, score: Tensor, threshold: Array) -> Tensor:
    """Zero the elements whose score is below the threshold."""
    return torch.where(score < float(threshold[0]), torch.zeros_like(x), x)


def variance(*tensors: Tensor) -> Tensor:
    """Population variance over the tensors, element by element; exactly 0 where all are equal."""
    gaps = [x - tensors[0] for x in tensors]
    total = gaps[0]
    for x in gaps[1:]:
        total = total + x
    mean = total / len(gaps)
    squares = [(x - mean) * (x - mean) for x in gaps]
    spread = squares[0]
    for square in squares[1:]:
        spread = spread + square
    return spread / len(tensors)


def overlap_mean(*operands: Any, epsilon: float) -> Tensor:
    """Mean of the active deltas (``|d| > epsilon``); a delta that is alone counts times its factor."""
    *deltas, factors = operands
    idle = [x.abs() <= epsilon for x in deltas]
    zero, one = torch.zeros_like(deltas[0]), torch.ones_like(deltas[0])
    count, total, alone = zero, zero, zero
    for i, (x, skip, factor) in enumerate(zip(deltas, idle, factors, strict=True)):
        parts = (
            torch.where(skip, zero, one),
            torch.where(skip, zero, x),
            torch.where(skip, zero, x * float(factor)),
        )
        count, total, alone = parts if i == 0 else (count + parts[0], total + parts[1], alone + parts[2])
    return torch.where(count == 1, alone, total / torch.where(count > 1, count, one))


def agreed(total: Tensor, *operands: Any, least: int) -> Tensor:
    """The total where at least so many deltas d hold ``|d| ≥ threshold · |total - d|``, else 0."""
    *deltas, thresholds = operands
    zero, one = torch.zeros_like(total), torch.ones_like(total)
    count = zero
    for i, (x, limit) in enumerate(zip(deltas, thresholds, strict=True)):
        share = torch.where(x.abs() < float(limit) * (total - x).abs(), zero, one)
        count = share if i == 0 else count + share
    # What is not finite stays: it has to be reported, not masked.
    return torch.where((count < least) & (total - total == 0), zero, total)


def disjoint_merge(sign: Tensor, *operands: Any, normalize: bool) -> Tensor:
    """Sum of the deltas that agree with `sign`, divided by their weights if `normalize`.

    Zeros never agree. Where no delta agrees the result is zero. A weight sum of zero counts as one.
    """
    *deltas, w = operands
    agrees = [~(x * sign <= 0) for x in deltas]  # NaN takes part, and shows in the result
    zero = torch.zeros_like(sign)
    total = torch.where(agrees[0], deltas[0], zero)
    for x, agree in zip(deltas[1:], agrees[1:], strict=True):
        total = total + torch.where(agree, x, zero)
    if not normalize:
        return total
    weight = zero
    for agree, factor in zip(agrees, w, strict=True):
        weight = weight + torch.where(agree, torch.full_like(sign, float(factor)), zero)
    return total / torch.where(weight != 0, weight, torch.ones_like(weight))


def signed_mean(sign: Tensor, *operands: Any, floor: float) -> Tensor:
    """Weighted mean of the deltas that agree with `sign`; a weight sum below `floor` counts as `floor`."""
    *deltas, w = operands
    zero = torch.zeros_like(sign)
    total, weight = zero, zero
    for i, (x, factor) in enumerate(zip(deltas, w, strict=True)):
        agree = ~(x * sign <= 0)
        part = torch.where(agree, x * float(factor), zero)
        share = torch.where(agree, torch.full_like(sign, float(factor)), zero)
        total, weight = (part, share) if i == 0 else (total + part, weight + share)
    return total / torch.where(weight < floor, torch.full_like(weight, floor), weight)
