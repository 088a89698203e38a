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


def disjoint_merge(sign: Tensor, *operands: Any, normalize: bool) -> Tensor:
    """Sum of the deltas that agree with `sign`, divided by their weights if `normalize`.

    Zeros never agree. Where no delta agrees the result is zero.
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
