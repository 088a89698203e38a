"""The formulas in float64, written from the papers and from nothing in `src`.

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

    `tied` marks elements that a selection leaves open: magnitudes that equal the threshold, when more of them
    do than were to be kept. `values` keeps them all. `drawn` marks elements that the rounding of 32-bit
    arithmetic decides: those whose elected sign is that of a sum which is zero but for rounding, and those
    that are on a threshold but for rounding.
    """

    values: F64
    tied: Mask
    drawn: Mask

    @staticmethod
    def of(values: F64) -> Answer:
        """An answer without open elements."""
        return Answer(values, nowhere(values), nowhere(values))


def nowhere(values: F64) -> Mask:
    """A mask of no element of `values`."""
    return np.zeros(values.shape, dtype=np.bool_)


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
    if density >= 1 or delta.size == 0:
        return delta, nowhere(delta)
    if density <= 0:
        return np.zeros_like(delta), nowhere(delta)
    magnitude = np.abs(delta) if double else np.abs(delta.astype(np.float32))
    keep = max(1, int(density * delta.size))
    threshold = np.sort(magnitude, axis=None)[delta.size - keep]
    mask = magnitude >= threshold
    crowded = np.count_nonzero(mask) > keep and threshold > 0
    return delta * mask, magnitude == threshold if crowded else nowhere(delta)


def crumbs(delta: F64, density: float, gamma: float, *, double: bool) -> tuple[F64, Mask]:
    """Keep ⌊density·N⌋ elements, those that follow the ⌊gamma·N⌋ largest magnitudes.

    If there are not enough of them, the smallest ⌊density·N⌋. When more elements than that are within the two
    limits, those that equal a limit are open; they are kept, and returned as a mask.
    """
    keep, top = int(density * delta.size), int(gamma * delta.size)
    if density >= 1:
        return delta, nowhere(delta)
    if keep <= 0:
        return np.zeros_like(delta), nowhere(delta)
    bottom = max(0, delta.size - keep - top)
    magnitude = np.abs(delta) if double else np.abs(delta.astype(np.float32))
    ordered = np.sort(magnitude, axis=None)
    low, high = ordered[bottom], ordered[bottom + keep - 1]
    mask = (magnitude >= low) & (magnitude <= high)
    crowded = np.count_nonzero(mask) > keep and high > 0
    return delta * mask, mask & ((magnitude == low) | (magnitude == high)) if crowded else nowhere(delta)


def lengthened(delta: F64, kept: F64) -> F64:
    """What was kept of a delta, with the L1 norm that the delta had; unchanged if either has almost none."""
    before, after = float(np.abs(delta).sum()), float(np.abs(kept).sum())
    return kept * (before / after) if min(before, after) >= 1e-7 else kept


def vote(deltas: Sequence[F64], weights: Sequence[float]) -> tuple[list[Mask], Mask]:
    """Who has the sign of the sum, where a sum of zero counts as positive; and where rounding decides that.

    A sum that is zero but for the rounding of weights may fall on either side; one that is zero in float64
    and in float32 (opposite weights) is a true draw, with one answer.
    """
    weighted = [w * d for w, d in zip(weights, deltas, strict=True)]
    total = np.sum(weighted, axis=0)
    spread = np.sum(np.abs(weighted), axis=0)
    single = sum(np.float32(w) * d.astype(np.float32) for w, d in zip(weights, deltas, strict=True))
    elected = np.where(total >= 0, 1.0, -1.0)
    drawn = (np.abs(total) < 1e-6 * spread) & ~((total == 0) & (single == 0))
    return [np.sign(d) == elected for d in weighted], drawn


@dataclass(frozen=True)
class Sum:
    """How weighted deltas become one: with a vote on signs or without, as a mean or not, times `scale`."""

    consensus: bool
    normalize: bool
    scale: float

    def shares(self, deltas: Sequence[F64], weights: Sequence[float]) -> tuple[list[F64], Mask]:
        """The factor of each delta, element by element; and the elements where a vote is open."""
        total = sum(weights) if self.normalize else 1.0
        if not self.consensus:
            divisor = total if abs(total) >= 1e-8 else 1.0
            return [
                np.full_like(d, self.scale * w / divisor) for w, d in zip(weights, deltas, strict=True)
            ], (nowhere(deltas[0]))
        agree, drawn = vote(deltas, weights)
        votes = np.sum([w * a for w, a in zip(weights, agree, strict=True)], axis=0)
        divisors = np.where(votes == 0, 1.0, votes) if self.normalize else np.ones_like(votes)
        return [self.scale * w * a / divisors for w, a in zip(weights, agree, strict=True)], drawn


def added(base: F64, kept: Sequence[tuple[F64, Mask]], weights: Sequence[float], how: Sum) -> Answer:
    """base + what was kept of each delta. The masks mark elements that a trim has left open."""
    deltas = [delta for delta, _ in kept]
    shares, drawn = how.shares(deltas, weights)
    total = np.sum([s * d for s, d in zip(shares, deltas, strict=True)], axis=0)
    return Answer(base + total, np.any([unsure for _, unsure in kept], axis=0), drawn)


def passthrough(values: F64, *, scale: float | None) -> Answer:
    """The tensor itself, times `scale` when there is one."""
    return Answer.of(values if scale is None else values * scale)


def nearswap(base: F64, other: F64, *, t: float) -> Answer:
    """Towards the other by t over their distance, at most all the way."""
    share = np.clip(t / np.maximum(np.abs(base - other), 1e-6), 0.0, 1.0)
    return Answer.of(share * other + (1.0 - share) * base)


def arcee_fusion(base: F64, other: F64) -> Answer:
    """base, and those changes whose importance is at least the median plus 1.5 interquartile ranges.

    Importance is the size of a change times the divergence of its row's softmax from that of the base.
    """
    p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (other, base))
    p, q = (x / x.sum(-1, keepdims=True) + 1e-8 for x in (p, q))
    change = np.abs(other - base)
    importance = change * np.sum(p * np.log(p / q), axis=-1, keepdims=True)
    ordered = np.sort(importance, axis=None)
    quarter, half, three = (ordered[int(f * (ordered.size - 1))] for f in (0.25, 0.5, 0.75))
    threshold = half + 1.5 * (three - quarter)
    # A divergence is a sum of terms that nearly cancel: 32 bits leave it an absolute error.
    noise = 5e-7 * (change + 4 * np.quantile(change, 0.75)) + 1e-6 * abs(threshold)
    drawn = (np.abs(importance - threshold) <= noise) & (change > 0)
    return Answer(np.where(importance >= threshold, other, base), nowhere(base), drawn)


def sce(base: F64, others: Sequence[F64], *, select_topk: float) -> Answer:
    """Select by variance, calculate weights from squares, elect signs and erase what disagrees."""
    deltas = [x - base for x in others]
    open_ = near = False
    if select_topk < 1:
        variance = np.where(np.ptp(deltas, axis=0) > 0, np.var(deltas, axis=0), 0.0)
        keep = max(0, int(np.count_nonzero(variance) * select_topk))
        threshold = float(np.sort(variance, axis=None)[variance.size - keep]) if keep else np.inf
        mask = variance >= threshold
        deltas = [d * mask for d in deltas]
        open_ = bool(np.count_nonzero(mask) > keep)
        if keep:
            band = np.abs(variance - threshold) <= 2e-7 * np.sqrt(threshold) + 2e-6 * threshold
            near = bool(np.any(band & ~mask))
    squares = [float(np.mean(d * d)) if d.size else 0.0 for d in deltas]
    total = sum(squares)
    weights = [s / total if total >= 1e-6 else 1.0 / len(deltas) for s in squares]
    agree, drawn = vote(deltas, [1.0] * len(deltas))
    votes = np.sum([w * a for w, a in zip(weights, agree, strict=True)], axis=0)
    merged = np.sum([w * a * d for w, a, d in zip(weights, agree, deltas, strict=True)], axis=0)
    # One element more or less changes the weights, and with them the whole tensor.
    values = base + merged / np.maximum(votes, 1e-6)
    return Answer(values, np.full(base.shape, open_), drawn | near)


def ram(base: F64, others: Sequence[F64], *, epsilon: float, r: float = 0.0, alpha: float = 0.0) -> Answer:
    """Changes that only one model made, in full; changes that several made, averaged over those.

    With `r`, unique changes grow by r times the ratio (at most `alpha`) of shared to unique ones there.
    """
    deltas = [x - base for x in others]
    active = [np.abs(d) > epsilon for d in deltas]
    count = np.sum(active, axis=0)
    total = np.zeros_like(base)
    for delta, mask in zip(deltas, active, strict=True):
        shared, unique = (int(np.count_nonzero(mask & c)) for c in (count > 1, count == 1))
        growth = 1.0 + r * min(max(shared / max(unique, epsilon), 0.0), alpha)
        total += delta * mask * np.where(count == 1, growth, 1.0 / np.maximum(count, 1))
    near = np.any([np.abs(np.abs(d) - epsilon) <= 1e-7 for d in deltas], axis=0)
    # An element more or less changes the ratios, and with them every unique change.
    drawn = near if r == 0 else np.full(base.shape, bool(near.any()))
    return Answer(base + total, nowhere(base), drawn)
