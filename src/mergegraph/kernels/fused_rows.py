"""Compiled functions of rows, ``[operands, columns]``: see `mergegraph.kernels.rows` for what they mean."""

from __future__ import annotations

import math

import numpy as np

from mergegraph.kernels.combinations import STRAIGHT
from mergegraph.kernels.fused import f64, helper, i64, jit
from mergegraph.kernels.fused_folds import fold_gram, fold_gram2
from mergegraph.kernels.fused_vector import LANES, largest_of, sum_of


@jit
def row_arc(block, count, out, t):  # type: ignore[no-untyped-def]
    """Coefficients of spherical interpolation between two rows."""
    products = np.zeros(3)
    fold_gram2(block, count, products)
    a, b = max(np.sqrt(products[0]), 1e-7), max(np.sqrt(products[2]), 1e-7)
    quotient = products[1] / (a * b)
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
    models = len(block)
    products = np.zeros(models * (models + 1) // 2)
    fold_gram(block, count, products)
    total, at = 0.0, 0
    for p in range(models):
        of_p = at
        for q in range(p + 1, models):
            of_q = q * (2 * models + 1 - q) // 2
            norms = np.sqrt(products[of_p]) * np.sqrt(products[of_q])
            quotient = products[of_p + q - p] / max(norms, 1e-6)
            total += min(1.0, max(-1.0, quotient)) if np.isfinite(quotient) else np.nan
        at += models - p
    # Numbers that are not finite have no angles: the plain mean shows them where they are.
    cosine = total / (models * (models - 1) / 2) if np.isfinite(total) else 1.0
    denominator = 1.0 + (models - 1) * cosine
    t = models * cosine / denominator if abs(denominator) >= 1e-6 else 0.0
    for k in range(models):
        out[k] = t / models


@jit
def row_divergence(block, count, out):  # type: ignore[no-untyped-def]
    """Kullback-Leibler divergence of the softmax of two rows, 1e-8 added to each share; at least 0."""
    shares = np.empty((2, count))
    p, q = shares[0], shares[1]
    a, b = _shares(block[0], p), _shares(block[1], q)
    for i in range(count):
        x, y = p[i] * a + 1e-8, q[i] * b + 1e-8
        p[i] = x * log_quotient(x, y)
    total = _sum(p)
    out[0] = 0.0 if total < 0.0 else total


@jit
def _shares(x, out):  # type: ignore[no-untyped-def]
    """Fill `out` with the softmax of the row `x`, less a factor, which is returned."""
    full = len(out) - len(out) % LANES
    top = largest_of(x, full)
    for i in range(full, len(out)):
        top = f64(x[i]) if f64(x[i]) > top else top
    for i in range(len(out)):
        out[i] = exponential(f64(x[i]) - top)
    return 1.0 / _sum(out)


@jit
def _sum(x):  # type: ignore[no-untyped-def]
    full = len(x) - len(x) % LANES
    total = sum_of(x, full)
    for i in range(full, len(x)):
        total += x[i]
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
    # Taylor's series up to r**13 / 13!, in parts that do not wait for each other.
    r2 = r * r
    r4 = r2 * r2
    low = (1 / 2 + r * (1 / 6)) + r2 * (1 / 24 + r * (1 / 120))
    middle = (1 / 720 + r * (1 / 5040)) + r2 * (1 / 40320 + r * (1 / 362880))
    high = (1 / 3628800 + r * (1 / 39916800)) + r2 * (1 / 479001600 + r * (1 / 6227020800))
    power = 1.0 + (r + r2 * (low + r4 * (middle + r4 * high)))
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
    t2 = t * t
    t4 = t2 * t2
    # log(p / near) = 2 artanh(s) = 2 s + 2/3 s³ + 2/5 s⁵ + …
    low = (2 / 3 + t * (2 / 5)) + t2 * (2 / 7 + t * (2 / 9))
    high = (2 / 11 + t * (2 / 13)) + t2 * (2 / 15 + t * (2 / 17))
    series = low + t4 * (high + t4 * (2 / 19 + t * (2 / 21)))
    return f64(k) * 0.6931471805599453 + (2.0 * s + s * (t * series))
