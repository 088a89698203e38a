"""Results of random pruning, judged without knowing the masks.

A `Draw` says what a tensor could be. `recover` finds the masks that explain a given one; `Tally` says whether
they look like those that were asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .oracle import F64, Answer, Mask, Sum, added, lengthened, nowhere

_SIGMAS = 5.0
Tolerance = F64 | float


@dataclass(frozen=True)
class Draw:
    """A tensor made of randomly pruned deltas: the chance of each element to stay, and how deltas are added.

    With `rescale`, what stays of a delta is multiplied by one number that restores the delta's L1 norm. A
    delta that keeps everything is left alone.
    """

    base: F64
    deltas: tuple[F64, ...]
    weights: tuple[float, ...]
    chances: tuple[F64, ...]
    how: Sum
    rescale: bool

    @property
    def is_random(self) -> bool:
        """Whether anything is left to chance."""
        return any(bool(np.any((p > 0) & (p < 1) & (d != 0))) for p, d in self._pairs())

    def made(self, masks: Sequence[Mask]) -> F64:
        """The tensor that these masks make."""
        kept = [d * m for d, m in zip(self.deltas, masks, strict=True)]
        if self.rescale:
            kept = [lengthened(d, k) for d, k in zip(self.deltas, kept, strict=True)]
        return added(self.base, [(k, nowhere(k)) for k in kept], self.weights, self.how).values

    def _pairs(self) -> list[tuple[F64, F64]]:
        return list(zip(self.chances, self.deltas, strict=True))

    def settled(self) -> Answer:
        """The result when nothing is left to chance."""
        return added(
            self.base,
            [(d * p, nowhere(d)) for p, d in self._pairs()],
            self.weights,
            self.how,
        )


def ranked(delta: F64, density: float, epsilon: float) -> F64:
    """Chances of density ± epsilon, by the rank of a magnitude along axis 1 (or among all of a vector)."""
    if density >= 1 or density <= 0:
        return np.full(delta.shape, float(density >= 1))
    axis = min(1, delta.ndim - 1)
    rank = np.argsort(np.argsort(np.abs(delta), axis=axis, kind="stable"), axis=axis)
    share = rank / max(delta.shape[axis] - 1, 1)
    chances: F64 = density - epsilon + 2 * epsilon * share
    return chances


@dataclass(frozen=True)
class Recovered:
    """What explains a tensor: which elements stayed (where that can be told), and the factors of the deltas.

    `explained` marks the elements that some masks explain.
    """

    alive: tuple[Mask, ...]
    known: tuple[Mask, ...]
    factors: F64
    explained: Mask


def recover(draw: Draw, values: F64, tolerance: Tolerance) -> Recovered:
    """Find masks and factors for which `values` is, within `tolerance`, what the draw makes of them."""
    total = values - draw.base
    limit: F64 = np.broadcast_to(tolerance, values.shape)
    free = [i for i in range(len(draw.deltas)) if _free(draw, i)]
    factors = np.array([1 / max(float(p.mean()), 1e-3) for p in draw.chances])
    factors[[i for i in range(len(factors)) if i not in free]] = 1.0
    for i in free:
        factors[i] = _alone(draw, i, factors, total, limit)
    factors = _refined(draw, free, factors, total, limit)
    matches = _errors(draw, _parts(draw, factors), factors, total, limit) <= limit
    combinations = _combinations(len(draw.deltas)).reshape(len(matches), -1, *(1,) * total.ndim)
    can_live, can_die = (np.any(matches[:, None] & c, axis=0) for c in (combinations, ~combinations))
    explained: Mask = np.any(matches, axis=0)
    return Recovered(tuple(can_live), tuple(can_live ^ can_die), factors, explained)


def _alone(draw: Draw, index: int, factors: F64, total: F64, limit: F64) -> float:
    """The factor of a delta: the one that most elements share where it alone is left to chance."""
    alive = [i == index or bool(np.all(p == 1)) for i, p in enumerate(draw.chances)]
    parts = _parts(draw, factors)[_combinations(len(alive)).tolist().index(alive)]
    rest = total - np.sum(
        [f * p for i, (f, p) in enumerate(zip(factors, parts, strict=True)) if i != index], axis=0
    )
    part = parts[index]
    large = (np.abs(part) > 3 * limit) & (np.abs(rest) > 3 * limit)
    if not large.any():
        return float(factors[index])
    ratios, widths = rest[large] / part[large], limit[large] / np.abs(part[large])
    near = np.abs(ratios[:, None] - ratios) <= widths[:, None] + widths
    return float(np.median(ratios[near[int(np.argmax(near.sum(axis=1)))]]))


def _refined(draw: Draw, free: list[int], factors: F64, total: F64, limit: F64) -> F64:
    """`factors` by least squares over all elements that they nearly explain."""
    parts = _parts(draw, factors)
    error = _errors(draw, parts, factors, total, limit)
    sure = error.min(axis=0) <= 20 * limit
    chosen = np.take_along_axis(parts, np.argmin(error, axis=0)[None, None], axis=0)[0][:, sure]
    rest = total[sure] - np.sum([factors[i] * part for i, part in enumerate(chosen) if i not in free], axis=0)
    seen = [i for i in free if np.any(chosen[i])]
    if not seen:
        return factors
    better = factors.copy()
    better[seen] = np.linalg.lstsq(chosen[seen].T, rest, rcond=None)[0]
    return better


def _free(draw: Draw, index: int) -> bool:
    """Whether a delta has a factor that has to be found."""
    return draw.rescale and not bool(np.all(draw.chances[index] == 1))


def _combinations(count: int) -> Mask:
    return np.array(list(itertools.product((False, True), repeat=count)))


def _parts(draw: Draw, factors: F64) -> F64:
    """For each combination of survivors, what each delta adds per unit of its factor."""
    found = []
    for alive in _combinations(len(draw.deltas)):
        kept = [d * a for d, a in zip(draw.deltas, alive, strict=True)]
        shares, _ = draw.how.shares([d * f for d, f in zip(kept, factors, strict=True)], draw.weights)
        found.append([s * d for s, d in zip(shares, kept, strict=True)])
    return np.array(found)


def _errors(draw: Draw, parts: F64, factors: F64, added_: F64, tolerance: F64) -> F64:
    """How far each combination is from what was added; infinitely far where the chances exclude it."""
    error = np.abs(np.tensordot(factors, parts, axes=([0], [1])) - added_)
    for row, alive in zip(error, _combinations(len(draw.deltas)), strict=True):
        for lives, chance in zip(alive, draw.chances, strict=True):
            row[chance == (0 if lives else 1)] = np.inf
        if not alive.any():
            row[np.abs(added_) > tolerance] = np.inf
    return error


@dataclass
class Tally:
    """Sums over the tensors of a merge that have a known mean and variance if masks are as they should be."""

    sums: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    previous: dict[tuple[int, ...], tuple[F64, F64]] = field(default_factory=dict)

    def add(self, draw: Draw, ours: F64, tolerance: Tolerance, *, loose: float = 1e-4) -> list[str]:
        """Take up one tensor, and return what is wrong with it; norms may be wrong by a factor of `loose`."""
        found = recover(draw, ours, tolerance)
        wrong = []
        if not found.explained.all():
            count = np.count_nonzero(~found.explained)
            wrong.append(f"{count} of {ours.size} elements are no sum of kept and rescaled deltas")
        fair = self._fair(draw, tolerance)
        surprises: list[tuple[F64, F64]] = []
        for i, (alive, chance) in enumerate(zip(found.alive, draw.chances, strict=True)):
            told = (fair & found.known[i] & (draw.deltas[i] != 0)).ravel()
            surprise = np.where(told, alive.ravel() - chance.ravel(), 0.0)
            variance = np.where(told, (chance * (1 - chance)).ravel(), 0.0)
            surprises.append((surprise, variance))
            if abs(surprise.sum()) > _SIGMAS * np.sqrt(variance.sum()) + 1:
                wrong.append(
                    f"model {i}: {told.sum()} elements kept {surprise.sum():+.1f} more than asked for"
                )
            wrong += self._length(draw, found, i, loose)
            self._note(f"kept of model {i}", surprise, variance)
            slope = (chance - chance.mean()).ravel()
            self._note(f"kept of large changes of model {i}", surprise * slope, variance * slope**2)
        for (i, (one, v)), (j, (other, w)) in itertools.combinations(enumerate(surprises), 2):
            self._note(f"kept of models {i} and {j} together", one * other, v * w)
        last = self.previous.get(ours.shape)
        if last is not None:
            self._note("kept in two tensors together", surprises[0][0] * last[0], surprises[0][1] * last[1])
        self.previous[ours.shape] = surprises[0]
        return wrong

    def _fair(self, draw: Draw, tolerance: Tolerance) -> Mask:
        """Elements whose masks can be read whatever they are: no vote can hide a delta there."""
        weighted = [w * d for w, d in zip(draw.weights, draw.deltas, strict=True)]
        signs = np.sign(weighted)
        together = np.abs(signs.sum(axis=0)) == np.abs(signs).sum(axis=0)
        large = np.min([np.abs(d) for d in weighted if np.any(d)] or [weighted[0]], axis=0)
        felt: Mask = abs(draw.how.scale) * large > 10 * np.asarray(tolerance)
        readable: Mask = felt & (together | (not draw.how.consensus))
        return readable

    def _length(self, draw: Draw, found: Recovered, index: int, loose: float) -> list[str]:
        """The factor of a delta is the one that restores its L1 norm."""
        size = np.abs(draw.deltas[index])
        least = float(size[found.known[index] & found.alive[index]].sum())
        most = least + float(size[~found.known[index]].sum())
        if not _free(draw, index) or least < 1e-3:
            return []
        factor, whole = float(found.factors[index]), float(size.sum())
        if whole / most * (1 - loose) <= factor <= whole / least * (1 + loose):
            return []
        return [f"model {index}: times {factor:.6f}, an L1 norm of {factor * least:.6f} and not {whole:.6f}"]

    def _note(self, what: str, values: F64, variance: F64) -> None:
        self.sums.setdefault(what, []).append((float(values.sum()), float(variance.sum())))

    def problems(self) -> list[str]:
        """What is wrong with all tensors together."""
        wrong = []
        for what, terms in self.sums.items():
            total, deviation = sum(t for t, _ in terms), float(np.sqrt(sum(v for _, v in terms)))
            if abs(total) > _SIGMAS * deviation + 1e-9:
                wrong.append(f"{what}: {total:+.1f} from what was asked for, where {deviation:.1f} is usual")
        return wrong


def judged(
    tensors: Sequence[tuple[str, Draw, F64, Tolerance]], *, loose: float = 1e-4
) -> dict[str, list[str]]:
    """What is wrong with the random tensors of a merge, by name; "together" for all of them."""
    tally = Tally()
    found = {name: tally.add(draw, ours, tolerance, loose=loose) for name, draw, ours, tolerance in tensors}
    found["together"] = tally.problems()
    return {name: problems for name, problems in found.items() if problems}
