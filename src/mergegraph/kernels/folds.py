"""Folds on torch tensors: eager use, and devices without generated code.

On the CPU they call the same compiled folds as generated code does, so the bits agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergegraph.kernels import fused_folds as fused
from mergegraph.kernels.reduction import Array


def gram(tensors: Sequence[Tensor], _: Sequence[Array], __: dict[str, Any]) -> Array:
    """Upper triangle of the k×k dot products of one chunk, row by row, in float64."""
    if tensors[0].device.type == "cpu":
        return fused.gram_row(np.stack([x.numpy() for x in tensors]))
    wide = torch.stack([x.double() for x in tensors])
    products = (wide @ wide.T).cpu().numpy()
    return np.asarray(products[np.triu_indices(len(tensors))], dtype=np.float64)


def columns(row: Array, tensors: Sequence[Tensor], begin: int, attrs: dict[str, Any]) -> None:
    """Add ``a·a``, ``a·b`` and ``b·b`` of every column to a row of state."""
    count = attrs["columns"]
    if tensors[0].device.type == "cpu":
        fused.fold_columns(np.stack([x.numpy() for x in tensors]), len(tensors[0]), row, count, begin)
        return
    a, b = (x.double() for x in tensors)
    place = (torch.arange(len(a), device=a.device) + begin) % count
    sums = torch.zeros(3, count, dtype=torch.float64, device=a.device)
    row += sums.index_add(1, place, torch.stack([a * a, a * b, b * b])).reshape(-1).cpu().numpy()


def histogram(tensors: Sequence[Tensor], stats: Sequence[Array], attrs: dict[str, Any]) -> Array:
    """Counts of the digit that `attrs` selects from the magnitude bits of one tensor."""
    (x,) = tensors
    bits = x.contiguous().view(torch.int64 if attrs["width"] == 63 else torch.int32).to(torch.int64)
    digits = (bits & ((1 << attrs["width"]) - 1)) >> attrs["shift"]
    if stats:
        inside = digits >> attrs["bits"] == int(stats[0][0])
        digits = digits[inside] & ((1 << attrs["bits"]) - 1)
    counts = torch.bincount(digits, minlength=1 << attrs["bits"])
    return np.asarray(counts.cpu().numpy(), dtype=np.int32)


def l1(tensors: Sequence[Tensor], _: Sequence[Array], __: dict[str, Any]) -> Array:
    """Sum of magnitudes of one chunk, in float64."""
    (x,) = tensors
    if x.device.type == "cpu":
        return fused.l1_row(x.numpy()[None])
    return np.array([float(x.double().abs().sum())])


def squares(tensors: Sequence[Tensor], _: Sequence[Array], __: dict[str, Any]) -> Array:
    """Sum of squares of each tensor's chunk, in float64."""
    if tensors[0].device.type == "cpu":
        return fused.squares_row(np.stack([x.numpy() for x in tensors]))
    return np.array([float(x.double().square().sum()) for x in tensors])


def nonzero(tensors: Sequence[Tensor], _: Sequence[Array], __: dict[str, Any]) -> Array:
    """Count of elements that are not zero."""
    return np.array([int((tensors[0] != 0).sum())])


def overlap(tensors: Sequence[Tensor], _: Sequence[Array], attrs: dict[str, Any]) -> Array:
    """Counts of elements active in one tensor alone and in several, tensor by tensor."""
    active = torch.stack([~(x.abs() <= attrs["epsilon"]) for x in tensors])
    alone = active.sum(dim=0) == 1
    counts = [[int((a & alone).sum()), int((a & ~alone).sum())] for a in active]
    return np.array(counts).reshape(-1)
