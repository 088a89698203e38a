"""Merging matrices by their singular vectors: on whole tensors, with torch's linear algebra.

Singular vectors are known up to a sign, or a rotation where singular values are equal, and those of a
singular value of zero not at all. So results are built from products in which signs and rotations cancel,
and directions that are there only by rounding are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor

from mergegraph.errors import TensorValueError
from mergegraph.kernels.precision import DOUBLE_UP_TO

_NOISE = 64
"""Singular values up to this many units in the last place of the largest one are rounding."""


class Directions(NamedTuple):
    """Some singular directions of a matrix: ``u`` by column, ``s``, ``v`` by row."""

    u: Tensor
    s: Tensor
    v: Tensor


class _OneThread:
    """While anybody is inside, torch computes on one thread: split sums differ in the last bit.

    The setting is torch's own and one for the process, so it is counted who needs it.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._usual = 1

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._usual = torch.get_num_threads()
            self._inside += 1
            torch.set_num_threads(1)

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                torch.set_num_threads(self._usual)


_ONE_THREAD = _OneThread()


def decorrelated(*deltas: Tensor, rank: int) -> Tensor:
    """Sum of the `rank` largest singular directions of each matrix, made orthogonal to each other.

    Gargiulo et al. 2025, "Task singular vectors: reducing task interference in model merging", arXiv
    2412.00081.
    """
    if not _finite(deltas):
        return torch.full_like(deltas[0], torch.nan)
    with _ONE_THREAD:
        found = _together([_directions(_widened(x), rank) for x in deltas])
        left = _orthogonal(found.u) * found.s
        return (left @ _orthogonal(found.v)).to(deltas[0].dtype)


def isotropic(*deltas: Tensor, own: int) -> Tensor:
    """The sum of the matrices with all its singular values replaced by their mean.

    `own` directions of the spectrum are left to each matrix, those in which it differs most from what all
    have in common. Marczak et al. 2025, "No task left behind", arXiv 2502.04959.
    """
    if not _finite(deltas):
        return torch.full_like(deltas[0], torch.nan)
    with _ONE_THREAD:
        total = _widened(deltas[0]).clone()
        for x in deltas[1:]:
            total += x
        shared = _directions(total, min(total.shape) - own * len(deltas))
        if own == 0:
            found = shared
        else:
            parts = [_directions(_apart(_widened(x), shared.u), own, _noise(x)) for x in deltas]
            joined = _together([*parts, shared])
            found = Directions(_orthogonal(joined.u), joined.s, _orthogonal(joined.v))
        mean = found.s.sum() / max(1, len(found.s))
        return ((found.u * mean) @ found.v).to(deltas[0].dtype)


def _finite(tensors: Sequence[Tensor]) -> bool:
    """A matrix with one number that is not finite has no singular vectors at all."""
    return all(bool(torch.isfinite(x).all()) for x in tensors)


def _widened(x: Tensor) -> Tensor:
    return x.double() if x.numel() <= DOUBLE_UP_TO else x


def _noise(x: Tensor) -> float:
    """What is left of `x` after taking out all of it, at most."""
    return _NOISE * torch.finfo(x.dtype).eps * float(torch.linalg.vector_norm(x, dtype=torch.float64))


def _apart(x: Tensor, u: Tensor) -> Tensor:
    """`x` without what lies in the space of the columns of `u`."""
    return x - u @ (u.T @ x)


def _directions(x: Tensor, count: int, noise: float = 0.0) -> Directions:
    """The `count` largest singular directions of `x`, as far as they are more than rounding."""
    u, s, v = _decomposed(x)
    least = max(noise, _NOISE * torch.finfo(x.dtype).eps * float(s[0]))
    kept = min(count, int((s > least).sum()))
    return Directions(u[:, :kept].clone(), s[:kept].clone(), v[:kept].clone())


def _together(parts: Sequence[Directions]) -> Directions:
    return Directions(
        torch.cat([p.u for p in parts], 1), torch.cat([p.s for p in parts]), torch.cat([p.v for p in parts])
    )


def _orthogonal(x: Tensor) -> Tensor:
    """The matrix with orthonormal rows or columns nearest to `x` (orthogonal Procrustes).

    Directions in which the columns depend on each other, up to rounding, are left out: models that share a
    direction share its place.
    """
    if x.numel() == 0:
        return x
    u, s, v = _decomposed(x)
    kept = int((s > torch.finfo(x.dtype).eps ** 0.5 * s[0]).sum())
    return u[:, :kept] @ v[:kept]


def _decomposed(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    try:
        u, s, v = torch.linalg.svd(x, full_matrices=False)
    except RuntimeError as error:
        raise TensorValueError("tensor", f"its singular values were not found: {error}") from error
    return u, s, v
