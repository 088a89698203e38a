"""Compiled functions of rows, ``[operands, columns]``: see `mergegraph.kernels.rows` for what they mean."""

from __future__ import annotations

import math

import numpy as np

from mergegraph.kernels.combinations import STRAIGHT
from mergegraph.kernels.fused import f64, helper, i64, jit


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
    quotient = row_dot(block, 0, 1, count) / (a * b)
    cosine = min(1.0, max(-1.0, quotient)) if np.isfinite(quotient) else 1.0
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
            quotient = row_dot(block, p, q, count) / max(norms, 1e-6)
            total += min(1.0, max(-1.0, quotient)) if np.isfinite(quotient) else np.nan
    # Numbers that are not finite have no angles: the plain mean shows them where they are.
    cosine = total / (models * (models - 1) / 2) if np.isfinite(total) else 1.0
    denominator = 1.0 + (models - 1) * cosine
    t = models * cosine / denominator if abs(denominator) >= 1e-6 else 0.0
    for k in range(models):
        out[k] = t / models


@jit
def row_divergence(block, count, out):  # type: ignore[no-untyped-def]
    """Kullback-Leibler divergence of the softmax of two rows, at least 0."""
    shares = np.empty((2, count))
    for k in range(2):
        _softmax(block[k, :count], shares[k])
    p, q = shares[0], shares[1]
    for i in range(count):
        p[i] *= log_quotient(p[i], q[i])
    total = _sum(p)
    out[0] = 0.0 if total < 0.0 else total


@jit
def _softmax(x, out):  # type: ignore[no-untyped-def]
    """``softmax(x) + 1e-8``, in float64."""
    top = f64(-np.inf)
    for i in range(len(x)):
        top = f64(x[i]) if f64(x[i]) > top else top
    for i in range(len(x)):
        out[i] = exponential(f64(x[i]) - top)
    factor = 1.0 / _sum(out)
    for i in range(len(x)):
        out[i] = out[i] * factor + 1e-8


@jit
def _sum(x):  # type: ignore[no-untyped-def]
    """Sum of a row, in 64 fixed lanes."""
    lanes = np.zeros(64)
    full = len(x) - len(x) % 64
    for i in range(0, full, 64):
        for lane in range(64):
            lanes[lane] += x[i + lane]
    for i in range(full, len(x)):
        lanes[i - full] += x[i]
    total = 0.0
    for lane in range(64):
        total += lanes[lane]
    return total


# ---- exponential and logarithm without branches, so that loops over them vectorise: the same bits on every
# machine, and within 2e-16 of the exact value (relative) ----------------------------------------------------


@helper
def exponential(x):  # type: ignore[no-untyped-def]
    """``exp(x)`` of a float64 up to 0; below -708, where it nears the least normal number, that of -708."""
    y = f64(-708.0) if x < f64(-708.0) else f64(x)
    # y = n log 2 + r with |r| ≤ log(2)/2; adding 1.5·2**52 rounds to a whole number, n in its low bits.
    shifted = f64(y * 1.4426950408889634 + 6755399441055744.0)
    n = shifted - 6755399441055744.0
    r = (y - n * 0.693147180369123816490) - n * 1.90821492927058770002e-10
    power = 1 / 6227020800  # Taylor's series up to r**13 / 13!
    power = power * r + 1 / 479001600
    power = power * r + 1 / 39916800
    power = power * r + 1 / 3628800
    power = power * r + 1 / 362880
    power = power * r + 1 / 40320
    power = power * r + 1 / 5040
    power = power * r + 1 / 720
    power = power * r + 1 / 120
    power = power * r + 1 / 24
    power = power * r + 1 / 6
    power = power * r + 1 / 2
    power = (power * r + 1.0) * r + 1.0
    exponent = (shifted.view(np.int64) << 52) + (i64(1023) << 52)
    return power * i64(exponent).view(np.float64)


@helper
def log_quotient(p, q):  # type: ignore[no-untyped-def]
    """``log(p / q)`` of positive, normal float64s."""
    a, b = f64(p).view(np.int64), f64(q).view(np.int64)
    # Bits differ almost as logarithms to base 2 do: q 2**k is within a factor of 1.5 of p.
    k = (a - b + (i64(1) << 51)) >> 52
    near = i64(b + (k << 52)).view(np.float64)
    s = (p - near) / (p + near)
    t = s * s
    series = 2 / 21  # log(p / near) = 2 artanh(s) = 2 s + 2/3 s³ + 2/5 s⁵ + …
    series = series * t + 2 / 19
    series = series * t + 2 / 17
    series = series * t + 2 / 15
    series = series * t + 2 / 13
    series = series * t + 2 / 11
    series = series * t + 2 / 9
    series = series * t + 2 / 7
    series = series * t + 2 / 5
    series = series * t + 2 / 3
    return f64(k) * 0.6931471805599453 + (2.0 * s + s * (t * series))
