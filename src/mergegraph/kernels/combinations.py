"""Coefficients of linear combinations, computed from Gram matrices instead of from tensors.

Means on the sphere are combinations of the inputs, so every step of their iterations can be done on
k×k numbers: a vector ``Σ c_i u_i`` is its coefficients, and dot products go through the Gram matrix.
All functions return float64 coefficients of the tensors whose Gram matrix they get.
"""

from __future__ import annotations

import math

import numpy as np

from mergegraph.kernels.reduction import Array

STRAIGHT = 1e-12
"""Vectors with ``1 - cos² θ`` up to this lie in one line as far as dot products can tell."""


def arc_weights(gram: Array, t: Array) -> Array:
    """Spherical interpolation of two tensors, linear only where they lie in one line.

    ``sin((1-t)θ)/sin θ`` and ``sin(tθ)/sin θ`` on the un-normalised tensors. Parallel and anti-parallel
    tensors have no arc.
    """
    products = np.array([[gram[0, 0]], [gram[0, 1]], [gram[1, 1]]])
    return column_arc_weights(products, t)[:, 0]


def column_arc_weights(products: Array, t: Array) -> Array:
    """As `arc_weights`, for many pairs at once: rows ``a·a``, ``a·b``, ``b·b`` → rows for a and b."""
    norms = [np.maximum(np.sqrt(np.maximum(products[i], 0.0)), 1e-7) for i in (0, 2)]
    fraction = float(t[0])
    with np.errstate(invalid="ignore"):  # numbers that are not finite have no angle: straight
        cosine = np.clip(products[1] / (norms[0] * norms[1]), -1.0, 1.0)
        curved = 1.0 - cosine * cosine > STRAIGHT
    theta = np.arccos(np.where(curved, cosine, 0.0))
    out: Array = np.stack([np.sin((1.0 - fraction) * theta), np.sin(fraction * theta)]) / np.sin(theta)
    out[0, ~curved], out[1, ~curved] = 1.0 - fraction, fraction
    return out


def sphere_mean_weights(gram: Array, weights: Array, *, eps: float) -> Array:
    """One tangent-space step from the normalised weighted mean of directions, with the mean norm.

    Where the directions cancel (or all tensors are zero) there is no mean direction, and the plain
    weighted sum is all that is left. The same holds for numbers that are not finite.
    """
    if not np.isfinite(gram).all():
        return np.array(weights, dtype=np.float64)
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    scaled = 1.0 / (norms + eps)
    unit = gram * np.outer(scaled, scaled)
    length = _norm(unit, weights)
    if length < eps:
        return np.array(weights, dtype=np.float64)
    mean = weights / length
    tangent = weights - float(weights @ (unit @ mean)) * mean
    angle = _norm(unit, tangent) + eps
    direction = mean * math.cos(angle) + tangent * (math.sin(angle) / angle)
    result: Array = direction * float(weights @ norms) * scaled
    return result


def karcher_weights(gram: Array, *, max_iter: int, tol: float) -> Array:
    """The Karcher (Riemannian) mean of directions, times the mean norm.

    Gradient steps on the sphere until the tangent is shorter than `tol`, at most `max_iter` of them.
    Tensors of norm up to `tol` have no direction and count for the norm only. Numbers that are not
    finite have no angles: the plain mean shows them where they are.
    """
    if not np.isfinite(gram).all():
        return np.full(len(gram), 1.0 / len(gram))
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    valid = norms > tol
    if not valid.any():
        return np.zeros(len(norms))
    inverse = np.where(valid, 1.0 / np.where(valid, norms, 1.0), 0.0)
    unit = gram * np.outer(inverse, inverse)
    share = valid / valid.sum()
    length = _norm(unit, share)
    mean = share / length if length >= tol else np.eye(len(norms))[int(np.argmax(valid))]
    for _ in range(max_iter):
        tangent = _tangent(unit, mean, share, tol)
        step = _norm(unit, tangent)
        if step < tol:
            break
        mean = math.cos(step) * mean + (math.sin(step) / step) * tangent
        mean = mean / _norm(unit, mean)
    result: Array = mean * float(norms.mean()) * inverse
    return result


def _tangent(unit: Array, mean: Array, share: Array, tol: float) -> Array:
    """Weighted mean of the log maps at `mean`, of the directions neither equal nor opposite to it."""
    tangent = np.zeros_like(mean)
    cosines = np.clip(unit @ mean, -1.0, 1.0)
    for i, cosine in enumerate(cosines):
        theta = math.acos(cosine)
        if share[i] and theta >= tol and math.pi - theta >= tol and math.sin(theta) != 0.0:
            tangent = tangent - share[i] * theta / math.sin(theta) * cosine * mean
            tangent[i] += share[i] * theta / math.sin(theta)
    return tangent


def stock_weights(gram: Array) -> Array:
    """The share of the mean task vector that Model Stock keeps, from the task vectors' angles.

    ``t = N cos θ / (1 + (N-1) cos θ)`` with the mean pairwise cosine; every task vector gets ``t/N``.
    Numbers that are not finite have no angles: the plain mean shows them where they are.
    """
    count = len(gram)
    if not np.isfinite(gram).all():
        return np.full(count, 1.0 / count)
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    cosines = [
        min(1.0, max(-1.0, float(gram[i, j]) / max(float(norms[i] * norms[j]), 1e-6)))
        for i in range(count)
        for j in range(i + 1, count)
    ]
    cosine = sum(cosines) / len(cosines)
    denominator = 1.0 + (count - 1) * cosine
    t = count * cosine / denominator if abs(denominator) >= 1e-6 else 0.0
    return np.full(count, t / count)


def energy_weights(squares: Array, *, count: int) -> Array:
    """Weights by mean squared magnitude, normalised; equal where there is next to none, or no finite one."""
    energy = squares / max(count, 1)
    total = float(energy.sum())
    if total < 1e-6 or not math.isfinite(total):
        return np.full(len(energy), 1.0 / len(energy))
    result: Array = energy / total
    return result


def _norm(gram: Array, coefficients: Array) -> float:
    return math.sqrt(max(0.0, float(coefficients @ gram @ coefficients)))
