"""Compiled functions of rows, ``[operands, columns]``: see `mergegraph.kernels.rows` for what they mean."""

from __future__ import annotations

import math

import numpy as np

from mergegraph.kernels.combinations import STRAIGHT
from mergegraph.kernels.fused import f32, f64, jit, u32


@jit
def row_dot(block, p, q, count):  # type: ignore[no-untyped-def]
    """Dot product of two operands' rows, in 64 fixed lanes."""
    lanes = np.zeros(64)
    full = count - count % 64
    for i in range(0, full, 64):
        for lane in range(64):
            lanes[lane] += f64(block[p, i + lane]) * f64(block[q, i + lane])
    for i in range(full, count):
        lanes[i - full] += f64(block[p, i]) * f64(block[q, i])
    total = 0.0
    for lane in range(64):
        total += lanes[lane]
    return total


@jit
def row_arc(block, count, out, t):  # type: ignore[no-untyped-def]
    """Coefficients of spherical interpolation between two rows."""
    a = max(np.sqrt(row_dot(block, 0, 0, count)), 1e-7)
    b = max(np.sqrt(row_dot(block, 1, 1, count)), 1e-7)
    cosine = min(1.0, max(-1.0, row_dot(block, 0, 1, count) / (a * b)))
    if 1.0 - cosine * cosine <= STRAIGHT:
        out[0] = 1.0 - t
        out[1] = t
    else:
        theta = math.acos(cosine)
        out[0] = math.sin((1.0 - t) * theta) / math.sin(theta)
        out[1] = math.sin(t * theta) / math.sin(theta)


@jit
def row_stock(block, count, out):  # type: ignore[no-untyped-def]
    """Model Stock's coefficient of every task vector, for one row."""
    models = block.shape[0]
    total = 0.0
    for p in range(models):
        for q in range(p + 1, models):
            norms = np.sqrt(row_dot(block, p, p, count)) * np.sqrt(row_dot(block, q, q, count))
            total += min(1.0, max(-1.0, row_dot(block, p, q, count) / max(norms, 1e-6)))
    cosine = total / (models * (models - 1) / 2)
    denominator = 1.0 + (models - 1) * cosine
    t = models * cosine / denominator if abs(denominator) >= 1e-6 else 0.0
    for k in range(models):
        out[k] = t / models


@jit
def row_divergence(block, count, out):  # type: ignore[no-untyped-def]
    """Kullback-Leibler divergence of the softmax of two rows, at least 0."""
    top = np.array([-np.inf, -np.inf])
    total = np.zeros(2)
    for k in range(2):
        for i in range(count):
            top[k] = max(top[k], f64(block[k, i]))
        for i in range(count):
            total[k] += math.exp(f64(block[k, i]) - top[k])
    divergence = 0.0
    for i in range(count):
        p = math.exp(f64(block[0, i]) - top[0]) / total[0] + 1e-8
        q = math.exp(f64(block[1, i]) - top[1]) / total[1] + 1e-8
        divergence += p * math.log(p / q)
    out[0] = max(divergence, 0.0)


@jit
def row_ranks32(block, count, out):  # type: ignore[no-untyped-def]
    """Ranks of float32 magnitudes in [0, 1], by a stable radix sort of their bits (three passes)."""
    bits = block[0].view(np.uint32)
    order, other = np.arange(count), np.empty(count, np.int64)
    for shift in (0, 11, 22):
        starts = np.zeros(2049, np.int64)
        for i in range(count):
            starts[1 + (u32(u32(bits[i] & u32(0x7FFFFFFF)) >> u32(shift)) & u32(0x7FF))] += 1
        for value in range(2048):
            starts[value + 1] += starts[value]
        for i in range(count):
            digit = u32(u32(bits[order[i]] & u32(0x7FFFFFFF)) >> u32(shift)) & u32(0x7FF)
            other[starts[digit]] = order[i]
            starts[digit] += 1
        order, other = other, order
    for rank in range(count):
        out[order[rank]] = f32(rank) / f32(count - 1) if count > 1 else f32(0.5)


@jit
def row_ranks64(block, count, out):  # type: ignore[no-untyped-def]
    """Ranks of float64 magnitudes in [0, 1]; equal magnitudes rank by position."""
    order = np.argsort(np.abs(block[0, :count]), kind="mergesort")
    for rank in range(count):
        out[order[rank]] = f64(rank) / f64(count - 1) if count > 1 else 0.5
