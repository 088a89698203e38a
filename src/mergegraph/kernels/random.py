"""Counter-based random numbers: element i of a stream is a hash of (stream, i).

SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"): the finaliser
of a Weyl sequence, started at the hashed stream. Nothing is drawn in sequence, so tiles, threads, devices
and resumed runs see the same numbers. The top 24 bits give a float in [0, 1).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mergegraph.errors import GraphError
from mergegraph.kernels.reduction import Array

_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def stream(*, slot: int) -> Array:
    """Streams are bound to outputs by the runtime; there is none without an output."""
    raise GraphError(f"slot {slot} has no random stream outside of a plan; pass its two numbers instead")


def uniform(stream: Array, first: int, count: int, device: torch.device) -> Tensor:
    """Elements `first` to ``first + count`` of a stream: float32 in [0, 1), as generated code gives them."""
    key = (int(stream[0]) << 24) | int(stream[1])
    start = _signed(_finalise_int((key + _GOLDEN) % 2**64))
    index = torch.arange(first + 1, first + count + 1, dtype=torch.int64, device=device)
    z = start + index * _signed(_GOLDEN)
    z = (z ^ _shift(z, 30)) * _signed(_MIX1)
    z = (z ^ _shift(z, 27)) * _signed(_MIX2)
    z = z ^ _shift(z, 31)
    return _shift(z, 40).to(torch.float32) * 2.0**-24


def drop(x: Tensor, keep: Array, stream: Array, *, first: int = 0) -> Tensor:
    """Keep each element with probability `keep`, zero the others; what is not finite stays."""
    return drop_by(x, torch.full_like(x, float(keep[0])), stream, first=first)


def drop_by(x: Tensor, keep: Tensor, stream: Array, *, first: int = 0) -> Tensor:
    """Keep each element with its own probability, zero the others; what is not finite stays."""
    u = uniform(stream, first, x.numel(), x.device).reshape(x.shape).to(x.dtype)
    return torch.where((u >= keep) & x.isfinite(), torch.zeros_like(x), x)


def normal(stream: Array, first: int, count: int, device: torch.device) -> Tensor:
    """Elements `first` to ``first + count`` of a stream of standard normal numbers, float64.

    Box and Muller 1958, "A note on the generation of random normal deviates": two uniforms for each.
    """
    pairs = uniform(stream, 2 * first, 2 * count, device).to(torch.float64).reshape(-1, 2)
    return torch.sqrt(-2.0 * torch.log(1.0 - pairs[:, 0])) * torch.cos(2.0 * math.pi * pairs[:, 1])


def noise(x: Tensor, size: Array, stream: Array, *, first: int = 0) -> Tensor:
    """Add normal noise with standard deviation `size`."""
    z = normal(stream, first, x.numel(), x.device).reshape(x.shape).to(x.dtype)
    return x + float(size[0]) * z


def spread(x: Tensor, size: Array, stream: Array, *, first: int = 0) -> Tensor:
    """Add uniform noise between -`size` and `size`."""
    u = uniform(stream, first, x.numel(), x.device).reshape(x.shape).to(x.dtype)
    return x + float(size[0]) * (u + u - 1.0)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _finalise_int(z: int) -> int:
    z = ((z ^ (z >> 30)) * _MIX1) % 2**64
    z = ((z ^ (z >> 27)) * _MIX2) % 2**64
    return z ^ (z >> 31)
