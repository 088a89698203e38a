"""Weights divided by their sum."""

from __future__ import annotations

from collections.abc import Iterable

from mergegraph.methods.base import Values

_ROUNDING = 2.0**-24
"""A sum this small beside the weights in it is zero but for rounding: 0.1 + 0.2 - 0.3."""


def shares(each: Iterable[Values], advice: str) -> list[float]:
    """The models' weights, each divided by the sum of all.

    Raises:
        ValueError: the sum is zero, or would be but for rounding; `advice` says what to do about it.
    """
    weights = [float(p.weight) for p in each]
    total = sum(weights)
    if abs(total) <= _ROUNDING * sum(abs(w) for w in weights):
        raise ValueError(f"the weights sum to zero, so they cannot be normalised; {advice}")
    return [w / total for w in weights]
