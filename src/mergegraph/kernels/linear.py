"""Linear combinations of tiles, and the casts around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mergegraph.errors import TensorValueError
from mergegraph.kernels.reduction import Array


def weighted_sum(*operands: Any) -> Tensor:
    """``Σ w_i x_i``, added in operand order; the last operand is the float64 vector ``w``."""
    *tensors, w = operands
    out: Tensor = tensors[0] * weight_of(w, 0, tensors[0])
    for i, x in enumerate(tensors[1:], start=1):
        out = out + x * weight_of(w, i, x)
    return out


def column_sum(x: Tensor, y: Tensor, w: Any, *, first: int = 0) -> Tensor:
    """``w[0, c] x + w[1, c] y``, where c is an element's column; the first element is number `first`."""
    place = (torch.arange(x.numel(), device=x.device) + first) % w.shape[1]
    a, b = (torch.as_tensor(row).to(x)[place].reshape(x.shape) for row in w)
    return a * x + b * y


def weight_of(w: Any, i: int, x: Tensor) -> Any:
    """Weight i of a statistic, or of a tensor of per-row numbers ``[rows, m]`` as a column in x's dtype."""
    return w[:, i : i + 1].to(x.dtype) if isinstance(w, Tensor) else float(w[i])


def scale(x: Tensor, factor: Array) -> Tensor:
    """``x * factor``."""
    return x * float(factor[0])


def affine(x: Tensor, w: Array) -> Tensor:
    """``w[0] * x + w[1]``."""
    return x * float(w[0]) + float(w[1])


def gate(x: Tensor) -> Tensor:
    """Router rows, as they are."""
    return x


def delta(x: Tensor, base: Tensor) -> Tensor:
    """``x - base``: the task vector of a fine-tune (Ilharco et al. 2023, arXiv 2212.04089)."""
    return x - base


def apply_delta(base: Tensor, delta: Tensor, factor: Array) -> Tensor:
    """``base + factor * delta``."""
    return base + delta * float(factor[0])


def cast(x: Tensor, *, dtype: str) -> Tensor:
    """Round to `dtype` (a safetensors name), nearest even."""
    return x.to(
        {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}[dtype]
    )


def identical(*tensors: Tensor) -> Tensor:
    """The first tensor, provided that all are equal bit for bit."""
    first, *others = (_bytes(x) for x in tensors)
    if any(not torch.equal(first, other) for other in others):
        raise TensorValueError("tensor", "inputs differ, and no arithmetic is defined on their dtype")
    return tensors[0]


def _bytes(x: Tensor) -> Tensor:
    """Torch views neither scalars nor empty tensors as bytes."""
    flat = x.contiguous().reshape(-1)
    return flat.view(torch.uint8) if len(flat) else flat.to(torch.uint8)


def nearswap(base: Tensor, x: Tensor, t: Array) -> Tensor:
    """``s x + (1-s) base`` with ``s = clamp(t / max(|base - x|, 1e-6), 0, 1)``."""
    gap = (base - x).abs()
    quotient = torch.full_like(gap, float(t[0])) / torch.where(gap > 1e-6, gap, torch.full_like(gap, 1e-6))
    capped = torch.where(quotient > 1, torch.ones_like(gap), quotient)
    s = torch.where(capped < 0, torch.zeros_like(gap), capped)
    return s * x + (1 - s) * base


def line(x: Tensor, coefficients: Array) -> Tensor:
    """``a + b x`` for coefficients (a, b)."""
    return float(coefficients[0]) + float(coefficients[1]) * x
