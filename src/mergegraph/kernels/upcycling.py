"""Drawing neurons anew: see `mergegraph.ops.upcycling`."""

from __future__ import annotations

from typing import Any

import numpy as np

from mergegraph.kernels import fused
from mergegraph.kernels.reduction import Array

Tensor = Any


def numbers(stream: Array, count: int) -> Array:
    """The first `count` numbers of a stream: those of `mergegraph.kernels.random`, without torch."""
    found = np.empty(count)
    fused.uniforms(stream[0], stream[1], found)
    return found


def lowest(stream: Array, *, count: int, keep: int) -> Array:
    """The `keep`-th lowest number and its place; below all of them if none is to be kept.

    Of equal numbers, which occur among many of 24 bits, the first is the lowest.
    """
    if keep < 1:
        return np.array([-1.0, -1.0])
    drawn = numbers(stream, count)
    place = np.argsort(drawn, kind="stable")[keep - 1]
    return np.array([drawn[place], float(place)])


def moments(gram: Array) -> Array:
    """Mean and standard deviation from ``[[Σx², Σx], [Σx, n]]``."""
    count = max(float(gram[1, 1]), 1.0)
    mean = float(gram[0, 1]) / count
    return np.array([mean, np.sqrt(max(0.0, float(gram[0, 0]) / count - mean * mean))])


def neurons(x: Tensor, limit: Array, stream: Array, *, width: int, down: bool, first: int = 0) -> Tensor:
    """Whether each element's neuron is among those chosen, as ones and zeros."""
    import torch

    from mergegraph.kernels.random import uniform

    count = x.numel()
    index = torch.arange(first, first + count, device=x.device)
    place = index % width if down else index // width
    # Computed, not looked up in `place`: a device would be waited for.
    low, high = (0, width) if down else (first // width, (first + count - 1) // width + 1)
    drawn = uniform(stream, low, high - low, x.device).double()
    number = drawn[place - low]
    chosen = (number < float(limit[0])) | ((number == float(limit[0])) & (place <= int(limit[1])))
    return chosen.to(x.dtype).reshape(x.shape)


def inside(x: Tensor, chosen: Tensor) -> Tensor:
    """X where `chosen` is not zero."""
    import torch

    return torch.where(chosen != 0, x, torch.zeros_like(x))


def redraw(x: Tensor, chosen: Tensor, moments: Array, stream: Array, *, first: int = 0) -> Tensor:
    """Normal numbers where `chosen` is not zero."""
    import torch

    from mergegraph.kernels.random import normal

    z = normal(stream, first, x.numel(), x.device).reshape(x.shape).to(x.dtype)
    return torch.where(chosen != 0, float(moments[0]) + float(moments[1]) * z, x)
