"""The five formulas in float64, written from the papers and from nothing in `src`.

Each function merges one tensor. `base` and the entries of `others` have one shape; scalars are plain floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Answer:
    """What a tensor should be, and the elements where another answer is as good.

    `tied` marks elements that the trimming rule of ties leaves open: magnitudes that equal the threshold,
    when more of them do than were to be kept. `values` keeps them all. `drawn` marks elements whose elected
    sign is that of a sum which is zero but for rounding.
    """

    values: F64
    tied: Mask
    drawn: Mask

    @staticmethod
    def of(values: F64) -> Answer:
        """An answer without open elements."""
        nothing = np.zeros(values.shape, dtype=np.bool_)
        return Answer(values, nothing, nothing)


def linear(inputs: Sequence[F64], weights: Sequence[float], *, normalize: bool) -> Answer:
    """Σ wᵢ·xᵢ, divided by Σ wᵢ when normalised."""
    total = sum((w * x for w, x in zip(weights, inputs, strict=True)), np.zeros_like(inputs[0]))
    return Answer.of(total / sum(weights) if normalize else total)


def slerp(base: F64, other: F64, *, t: float) -> Answer:
    """Along the great circle from base to other, with the lengths interpolated by the same coefficients."""
    norms = [float(np.sqrt(np.sum(x * x))) for x in (base, other)]
    unit_base, unit_other = (x / n if n > 1e-8 else x for x, n in zip((base, other), norms, strict=True))
    cosine = float(np.clip(np.sum(unit_base * unit_other), -1.0, 1.0))
    if abs(cosine) > 0.9995:
        return Answer.of((1.0 - t) * base + t * other)
    angle = np.arccos(cosine)
    return Answer.of((np.sin((1.0 - t) * angle) * base + np.sin(t * angle) * other) / np.sin(angle))


def task_arithmetic(
    base: F64, others: Sequence[F64], weights: Sequence[float], *, normalize: bool, scale: float
) -> Answer:
    """base + λ·Σ wᵢ·(xᵢ − base), the sum divided by Σ wᵢ when normalised."""
    total = sum((w * (x - base) for w, x in zip(weights, others, strict=True)), np.zeros_like(base))
    divisor = sum(weights) if normalize else 1.0
    return Answer.of(base + scale * total / (divisor if abs(divisor) >= 1e-8 else 1.0))


def trim(delta: F64, density: float, *, double: bool) -> tuple[F64, Mask]:
    """Keep the ⌊density·N⌋ largest magnitudes (at least one), and all that equal the smallest kept.

    Magnitudes are compared as float32 numbers unless `double`. Also returned: the kept elements that could
    have been left out, because more elements equal the threshold than were needed.
    """
    undecided = np.zeros(delta.shape, dtype=np.bool_)
    if density >= 1 or delta.size == 0:
        return delta, undecided
    if density <= 0:
        return np.zeros_like(delta), undecided
    magnitude = np.abs(delta) if double else np.abs(delta.astype(np.float32))
    keep = max(1, int(density * delta.size))
    threshold = np.sort(magnitude, axis=None)[delta.size - keep]
    mask = magnitude >= threshold
    if np.count_nonzero(mask) > keep and threshold > 0:
        undecided = magnitude == threshold
    return delta * mask, undecided


def ties(
    base: F64,
    others: Sequence[F64],
    weights: Sequence[float],
    densities: Sequence[float],
    *,
    normalize: bool,
    rescale: bool,
    scale: float,
    double: bool,
) -> Answer:
    """Trim each delta, elect a sign per element from the weighted sum, and add up what agrees with it."""
    trimmed = []
    tied = np.zeros(base.shape, dtype=np.bool_)
    for x, density in zip(others, densities, strict=True):
        delta = x - base
        kept, unsure = trim(delta, density, double=double)
        lengths = float(np.abs(delta).sum()), float(np.abs(kept).sum())
        if rescale and min(lengths) >= 1e-7:
            kept = kept * (lengths[0] / lengths[1])
        trimmed.append(kept)
        tied |= unsure
    weighted = [w * d for w, d in zip(weights, trimmed, strict=True)]
    total = np.sum(weighted, axis=0)
    # A sum that is zero but for the rounding of weights may fall on either side; one that is zero in float64
    # and in float32 (opposite weights) is a true draw, with one answer.
    spread = np.sum(np.abs(weighted), axis=0)
    single = sum(np.float32(w) * d.astype(np.float32) for w, d in zip(weights, trimmed, strict=True))
    drawn = (np.abs(total) < 1e-6 * spread) & ~((total == 0) & (single == 0))
    elected = np.where(total >= 0, 1.0, -1.0)
    agree = [np.sign(d) == elected for d in weighted]
    merged = np.sum([d * a for d, a in zip(weighted, agree, strict=True)], axis=0)
    if normalize:
        votes = np.sum([w * a for w, a in zip(weights, agree, strict=True)], axis=0)
        merged = merged / np.where(votes == 0, 1.0, votes)
    return Answer(base + scale * merged, tied, drawn)


def passthrough(values: F64, *, scale: float | None) -> Answer:
    """The tensor itself, times `scale` when there is one."""
    return Answer.of(values if scale is None else values * scale)
