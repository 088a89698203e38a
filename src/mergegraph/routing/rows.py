"""Statistics of prompts → rows of a router, and what can be said of these rows before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergegraph.routing.prompts import PromptGroup
from mergegraph.routing.weights import Array

_TINY = 1e-8


@dataclass(frozen=True, slots=True)
class RowOptions:
    """How vectors become rows.

    Attributes:
        unit_sides: normalise what is wanted and what is unwanted before subtracting them.
        centre: subtract the mean of all experts, so that rows say what tells experts apart.
        temperature: divides the rows: above 1 the choice of experts is softer, below 1 sharper.
    """

    unit_sides: bool = False
    centre: bool = False
    temperature: float = 1.0


def vectors(statistics: Array, groups: Sequence[PromptGroup], unit_sides: bool) -> Array:
    """Return ``[groups, hidden]`` float64: the mean of wanted prompts minus the mean of unwanted ones.

    Args:
        statistics: ``[prompts, hidden]``.
        groups: whose prompts are which.
        unit_sides: normalise both sides first.
    """

    def side(prompts: tuple[int, ...]) -> Array:
        mean = statistics[list(prompts)].mean(axis=0, dtype=np.float64)
        return normalise(mean) if unit_sides else mean

    return np.stack([side(g.positive) - side(g.negative) if g.negative else side(g.positive) for g in groups])


def rows_of(
    statistics: Array, groups: Sequence[PromptGroup], options: RowOptions, *, competing: bool
) -> Array:
    """Return ``[groups, hidden]`` float32: one row of unit length, over temperature, for each group.

    Args:
        statistics: ``[prompts, hidden]``.
        groups: whose prompts are which.
        options: how.
        competing: whether the rows compete for tokens, as experts do. Gates of shared experts do not: there
            is nothing that they would have to differ from, so they are not centred.
    """
    found = vectors(statistics, groups, options.unit_sides)
    if options.centre and competing:
        found = found - found.mean(axis=0)
    return (normalise(found) / options.temperature).astype(np.float32)


def normalise(x: Array) -> Array:
    """Scale along the last axis to unit length; what is shorter than 1e-8 is divided by that."""
    unit: Array = x / np.maximum(np.sqrt(np.square(x).sum(axis=-1, keepdims=True)), _TINY)
    return unit


def condition(rows: Array, *, centred: bool = False) -> float | None:
    """The ratio of the largest and the smallest singular value; None if the rows are linearly dependent.

    Args:
        rows: ``[experts, hidden]``.
        centred: the rows cancel out by construction, so that one of them follows from the others. That
            says nothing about them: they are dependent only beyond it.
    """
    rank = len(rows) - 1 if centred and len(rows) > 1 else len(rows)
    values = np.linalg.svd(rows.astype(np.float64), compute_uv=False)[:rank]
    # float32 rows that are equal on paper differ in their last bits.
    if rank > rows.shape[1] or values[-1] <= values[0] * np.finfo(np.float32).eps:
        return None
    return float(values[0] / values[-1])


def cosines(rows: Array) -> Array:
    """``[experts, experts]``: how alike rows are, 1 for the same direction."""
    unit = normalise(rows.astype(np.float64))
    overlap: Array = np.clip(unit @ unit.T, -1.0, 1.0)
    return overlap


def worst_pair(overlap: Array) -> tuple[int, int, float] | None:
    """The two different experts with the largest cosine, and it; None if there is only one expert."""
    if len(overlap) < 2:
        return None
    first, second = np.triu_indices(len(overlap), 1)
    i = int(np.argmax(overlap[first, second]))
    return int(first[i]), int(second[i]), float(overlap[first[i], second[i]])


@dataclass(frozen=True, slots=True)
class Balance:
    """What a router with these rows would do with the experts' own prompts.

    Attributes:
        load: per expert, its share of all choices when each prompt chooses its top experts.
        mass: per expert, the mean of its softmax probability over all prompts.
        own: per expert, the share of its own prompts that choose it.
    """

    load: tuple[float, ...]
    mass: tuple[float, ...]
    own: tuple[float, ...]


def balance(rows: Array, probes: Array, groups: Sequence[PromptGroup], chosen: int) -> Balance:
    """Route every expert's wanted prompts.

    Args:
        rows: ``[experts, hidden]``.
        probes: ``[prompts, hidden]``: what the router sees of each prompt.
        groups: the experts' prompts.
        chosen: how many experts a prompt chooses.
    """
    prompts = [prompt for group in groups for prompt in group.positive]
    owner = np.repeat(np.arange(len(groups)), [len(group.positive) for group in groups])
    logits = probes[prompts].astype(np.float64) @ rows.astype(np.float64).T
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    count = min(chosen, len(rows))
    top = np.argsort(-logits, axis=1, kind="stable")[:, :count]
    hits = (top == owner[:, None]).any(axis=1)
    return Balance(
        tuple((np.bincount(top.ravel(), minlength=len(rows)) / top.size).tolist()),
        tuple(weights.mean(axis=0).tolist()),
        tuple(float(hits[owner == expert].mean()) for expert in range(len(rows))),
    )
