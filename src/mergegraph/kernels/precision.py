"""How precisely some functions are computed: known without loading what computes them."""

from __future__ import annotations

DOUBLE_UP_TO = 2**20
"""Matrices of up to this many elements are decomposed in float64, larger ones in the dtype they come in."""
TERMS = 12
"""Terms of the series of ``exp(x) - 1``: the next is below 1e-17 for arguments up to `SERIES`."""
SERIES = 0.25
"""Arguments above this are halved until they are not, and the result is doubled again as often."""
SATURATED = 20.0
"""Where a hyperbolic tangent is 1 to the last bit of a float64."""


def doublings(most: float) -> int:
    """How often an argument up to `most` is halved before the series is used."""
    times = 0
    while most > SERIES:
        most, times = most / 2, times + 1
    return times
