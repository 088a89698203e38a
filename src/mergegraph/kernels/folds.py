"""Folds of one chunk of torch tensors on the CPU: for eager use, and for ops without generated code.

They call the same compiled folds as generated code does, so the bits agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergegraph.kernels import fused_folds as fused
from mergegraph.kernels.fused_select import (
    fold_magnitudes32,
    fold_magnitudes64,
    fold_select32,
    fold_select64,
)
from mergegraph.kernels.reduction import Array
from mergegraph.kernels.select import bracket_of


def gram(tensors: Sequence[Tensor], _: Sequence[Array], __: dict[str, Any]) -> Array:
    """Upper triangle of the k×k dot products of one chunk, row by row, in float64."""
    return fused.gram_row(np.stack([x.numpy() for x in tensors]))


def columns(row: Array, tensors: Sequence[Tensor], begin: int, attrs: dict[str, Any]) -> None:
    """Add ``a·a``, ``a·b`` and ``b·b`` of every column to a row of state."""
    block = np.stack([x.numpy() for x in tensors])
    fused.fold_columns(block, len(tensors[0]), row, attrs["columns"], begin)


def histogram(tensors: Sequence[Tensor], stats: Sequence[Array], attrs: dict[str, Any]) -> Array:
    """Counts of magnitudes above a bracket and in it; see `mergegraph.kernels.select`."""
    block = tensors[0].contiguous().numpy()[None]
    fold = fold_select64 if attrs["width"] == 63 else fold_select32
    row = np.zeros(1 + (2 << attrs["bits"]), dtype=np.int32)
    fold(block, block.shape[1], row, *bracket_of(stats, attrs))
    return row


def magnitudes(row: Array, tensors: Sequence[Tensor], begin: int, attrs: dict[str, Any]) -> None:
    """The bits of every magnitude, in the place of its element; of one chunk, from `begin` on."""
    block = tensors[0].contiguous().numpy()[None]
    fold = fold_magnitudes64 if attrs["width"] == 63 else fold_magnitudes32
    fold(block, block.shape[1], row, begin)


def l1(tensors: Sequence[Tensor], _: Sequence[Array], __: dict[str, Any]) -> Array:
    """Sum of magnitudes of one chunk, in float64."""
    return fused.l1_row(tensors[0].numpy()[None])


def squares(tensors: Sequence[Tensor], _: Sequence[Array], __: dict[str, Any]) -> Array:
    """Sum of squares of each tensor's chunk, in float64."""
    return fused.squares_row(np.stack([x.numpy() for x in tensors]))


def nonzero(tensors: Sequence[Tensor], _: Sequence[Array], __: dict[str, Any]) -> Array:
    """Count of elements that are not zero."""
    return np.array([int((tensors[0] != 0).sum())])


def overlap(tensors: Sequence[Tensor], _: Sequence[Array], attrs: dict[str, Any]) -> Array:
    """Counts of elements active in one tensor alone and in several, tensor by tensor."""
    active = torch.stack([~(x.abs() <= attrs["epsilon"]) for x in tensors])
    alone = active.sum(dim=0) == 1
    counts = [[int((a & alone).sum()), int((a & ~alone).sum())] for a in active]
    return np.array(counts).reshape(-1)
