"""The formulas that work with directions: arcs, means on the sphere, and ratios from angles. In float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .oracle import F64, Answer


def _norm(values: F64) -> float:
    return float(np.sqrt(np.sum(values * values)))


def _arc(first: F64, second: F64, t: float) -> F64:
    """Between vectors along the last axis, by spherical coefficients; straight where they are in one line."""
    units = [x / np.maximum(np.sqrt(np.sum(x * x, -1, keepdims=True)), 1e-7) for x in (first, second)]
    cosine = np.clip(np.sum(units[0] * units[1], -1, keepdims=True), -1.0, 1.0)
    straight = 1.0 - cosine**2 <= 1e-12
    angle = np.arccos(np.where(straight, 0.0, cosine))
    sine = np.sin(angle)
    curved = np.sin((1.0 - t) * angle) * first + np.sin(t * angle) * second
    return np.where(straight, (1.0 - t) * first + t * second, curved / np.where(straight, 1.0, sine))


def nuslerp(
    base: F64 | None, pair: Sequence[F64], weights: Sequence[float], *, flatten: bool, row_wise: bool
) -> Answer:
    """Along the arc between two tensors, or between two task vectors on top of the base.

    The vectors are whole tensors, or run along the last axis, or (`row_wise`) along the first.
    """
    total = sum(weights)
    t = weights[1] / total if abs(total) >= 1e-6 else 0.5
    offset = np.zeros_like(pair[0]) if base is None else base
    first, second = (x - offset for x in pair)
    if flatten:
        return Answer.of(offset + _arc(first.ravel(), second.ravel(), t).reshape(first.shape))
    if row_wise:
        return Answer.of(offset + _arc(first.swapaxes(0, -1), second.swapaxes(0, -1), t).swapaxes(0, -1))
    return Answer.of(offset + _arc(first, second, t))


def multislerp(
    base: F64 | None, others: Sequence[F64], weights: Sequence[float], *, normalize: bool, eps: float
) -> Answer:
    """One step of the barycentre on the sphere from the mean direction, with the weighted mean of lengths.

    Vectors that have no mean direction are summed with their weights.
    """
    if len(others) == 1:
        return Answer.of(others[0])
    offset = np.zeros_like(others[0]) if base is None else base
    vectors = [x - offset for x in others]
    shares = [w / sum(weights) for w in weights] if normalize else list(weights)
    lengths = [_norm(v) for v in vectors]
    units = [v / (n + eps) for v, n in zip(vectors, lengths, strict=True)]
    mean = np.sum([w * u for w, u in zip(shares, units, strict=True)], axis=0)
    if _norm(mean) < eps:
        return Answer.of(offset + np.sum([w * v for w, v in zip(shares, vectors, strict=True)], axis=0))
    mean = mean / _norm(mean)
    tangents = [w * (u - np.sum(u * mean) * mean) for w, u in zip(shares, units, strict=True)]
    tangent = np.sum(tangents, axis=0)
    angle = _norm(tangent) + eps
    point = mean * np.cos(angle) + tangent * (np.sin(angle) / angle)
    return Answer.of(offset + point * sum(w * n for w, n in zip(shares, lengths, strict=True)))


def karcher(inputs: Sequence[F64], *, max_iter: int, tol: float) -> Answer:
    """The Riemannian mean of the directions, with the mean of the lengths."""
    lengths = [_norm(x) for x in inputs]
    units = [x / n for x, n in zip(inputs, lengths, strict=True) if n > tol]
    if not units:
        return Answer.of(np.zeros_like(inputs[0]))
    mean = np.mean(units, axis=0)
    mean = mean / _norm(mean) if _norm(mean) >= tol else units[0]
    for _ in range(max_iter):
        tangent = np.zeros_like(mean)
        for unit in units:
            cosine = float(np.clip(np.sum(mean * unit), -1.0, 1.0))
            angle = float(np.arccos(cosine))
            # Towards the opposite point, all directions are as good: none is taken.
            if angle >= tol and np.pi - angle >= tol:
                tangent += (angle / np.sin(angle)) * (unit - cosine * mean) / len(units)
        step = _norm(tangent)
        if step < tol:
            break
        mean = np.cos(step) * mean + np.sin(step) * tangent / step
        mean = mean / _norm(mean)
    return Answer.of(mean * (sum(lengths) / len(lengths)))


def model_stock(base: F64, others: Sequence[F64], *, filter_wise: bool) -> Answer:
    """From the base towards the mean, by the ratio that the mean angle between task vectors gives."""
    shape = base.shape if filter_wise else (1, -1)
    start = base.reshape(shape)
    ends = [x.reshape(shape) for x in others]
    deltas = [x - start for x in ends]
    count = len(deltas)
    cosines = []
    for i, first in enumerate(deltas):
        for second in deltas[i + 1 :]:
            dot = np.sum(first * second, -1, keepdims=True)
            lengths = np.sqrt(np.sum(first**2, -1, keepdims=True) * np.sum(second**2, -1, keepdims=True))
            cosines.append(np.clip(dot / np.maximum(lengths, 1e-6), -1.0, 1.0))
    cosine = np.mean(cosines, axis=0)
    divisor = 1.0 + (count - 1) * cosine
    none = np.abs(divisor) < 1e-6
    t = np.where(none, 0.0, count * cosine / np.where(none, 1.0, divisor))
    return Answer.of((t * np.mean(ends, axis=0) + (1.0 - t) * start).reshape(base.shape))
