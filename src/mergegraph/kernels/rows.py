"""Functions of rows: tensors ``[rows, columns]`` in, ``[rows, m]`` or ``[rows, columns]`` out.

On the CPU, sums over rows are those of generated code, so the bits agree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergegraph.kernels import fused_rows
from mergegraph.kernels.batched import halved
from mergegraph.kernels.combinations import STRAIGHT
from mergegraph.kernels.linear import weight_of
from mergegraph.kernels.random import drop_by
from mergegraph.kernels.reduction import Array


def row_arc(x: Tensor, y: Tensor, t: Array) -> Tensor:
    """Per row, the coefficients of spherical interpolation; see `combinations.arc_weights`."""
    if x.device.type == "cpu":
        return _row_by_row(fused_rows.row_arc, (x, y), 2, float(t[0]))
    return torch_row_arc(x, y, t)


def torch_row_arc(x: Tensor, y: Tensor, t: Array) -> Tensor:
    """The same on any device."""
    norms = [_dot(v, v).sqrt().clamp(min=1e-7) for v in (x, y)]
    cosine = (_dot(x, y) / (norms[0] * norms[1])).nan_to_num(1.0, 1.0, 1.0).clamp(-1.0, 1.0)
    fraction = float(t[0])
    theta = torch.acos(cosine)
    straight = 1.0 - cosine * cosine <= STRAIGHT
    sine = torch.where(straight, torch.ones_like(theta), torch.sin(theta))
    first = torch.where(
        straight, torch.full_like(theta, 1.0 - fraction), torch.sin((1.0 - fraction) * theta) / sine
    )
    second = torch.where(straight, torch.full_like(theta, fraction), torch.sin(fraction * theta) / sine)
    return torch.stack([first, second], dim=-1)


def row_stock(*deltas: Tensor) -> Tensor:
    """Per row, the coefficient of every task vector; see `combinations.stock_weights`."""
    if deltas[0].device.type == "cpu":
        return _row_by_row(fused_rows.row_stock, deltas, len(deltas))
    return torch_row_stock(*deltas)


def torch_row_stock(*deltas: Tensor) -> Tensor:
    """The same on any device."""
    count = len(deltas)
    norms = [_dot(d, d).sqrt() for d in deltas]
    cosines = [
        (_dot(deltas[i], deltas[j]) / (norms[i] * norms[j]).clamp(min=1e-6)).clamp(-1.0, 1.0)
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = torch.stack(cosines).mean(0).nan_to_num(1.0)
    denominator = 1.0 + (count - 1) * cosine
    safe = torch.where(denominator.abs() < 1e-6, torch.ones_like(denominator), denominator)
    t = torch.where(denominator.abs() < 1e-6, torch.zeros_like(cosine), count * cosine / safe)
    return (t / count)[:, None].expand(-1, count)


def row_divergence(x: Tensor, y: Tensor) -> Tensor:
    """Per row, the Kullback-Leibler divergence of ``softmax(x)`` from ``softmax(y)``, at least 0."""
    if x.device.type == "cpu":
        return _row_by_row(fused_rows.row_divergence, (x, y), 1)
    return torch_row_divergence(x, y)


def torch_row_divergence(x: Tensor, y: Tensor) -> Tensor:
    """The same on any device."""
    p, q = _softmax(x) + 1e-8, _softmax(y) + 1e-8
    return halved(p * (p / q).log())[:, None].clamp(min=0.0)


def _softmax(x: Tensor) -> Tensor:
    if not x.numel():
        return x.double()
    wide = x.double()
    powers = (wide - wide.amax(-1, keepdim=True)).exp()
    return powers / halved(powers.clone())[:, None]


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """Per row, the dot product in float64, in an order that is the same however many rows there are."""
    return halved(x.double() * y.double())


def _row_by_row(function: Callable[..., Any], tensors: Sequence[Tensor], width: int, *stats: float) -> Tensor:
    """Call a compiled function of rows for each row."""
    rows, columns = tensors[0].shape
    blocks = np.stack([x.numpy() for x in tensors], axis=1)
    out = np.empty((rows, width))
    for block, result in zip(blocks, out, strict=True):
        function(block, columns, result, *stats)
    return torch.from_numpy(out)


def drop_by_rank(x: Tensor, chances: Array, stream: Array, *, first: int = 0) -> Tensor:
    """Zero elements at random, small ones of a row more often; what is not finite stays.

    An element stays with probability ``a + b rank`` for `chances` (a, b) and its `rank` in the row.
    """
    keep = float(chances[0]) + float(chances[1]) * rank_in_row(x)
    kept = drop_by(x, keep, stream, first=first)
    return torch.where(x == 0, torch.zeros_like(x), kept)


def rank_in_row(x: Tensor) -> Tensor:
    """Rank of each magnitude in its row, from 0 (smallest) to 1; equal magnitudes rank by position."""
    columns = x.shape[-1]
    if columns < 2:
        return torch.full_like(x, 0.5)
    order = torch.argsort(x.abs(), dim=-1, stable=True)
    ranks = torch.empty_like(order)
    ranks.scatter_(-1, order, torch.arange(columns, device=x.device).expand_as(order))
    return ranks.to(x.dtype) / (columns - 1)


def importance(delta: Tensor, divergence: Tensor) -> Tensor:
    """``|delta|`` times its row's divergence."""
    scores: Tensor = delta.abs() * weight_of(divergence, 0, delta)
    return scores
