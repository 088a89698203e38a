"""How precisely some functions are computed: known without loading what computes them."""

from __future__ import annotations

from dataclasses import dataclass

DOUBLE_UP_TO = 2**20
"""Matrices of up to this many elements are decomposed in float64, larger ones in the dtype they come in."""
SATURATED = 20.0
"""Where a hyperbolic tangent is 1 to the last bit of a float64."""

LOG2_E = 1.4426950408889634
"""1 / log 2."""


@dataclass(frozen=True, slots=True)
class Exponential:
    """How ``exp(x)`` is computed as ``2**n · exp(r)``, with ``x = n log 2 + r`` and ``|r| ≤ log(2) / 2``.

    Attributes:
        terms: terms of Taylor's series of ``exp(r) - 1``; the next is less than the last bit.
        high: log 2, so short that its product with n is exact.
        low: what `high` lacks.
        rounding: a number so large that adding it rounds to whole numbers, which are its lowest bits then.
        mantissa: bits of the float's mantissa.
        one: the bits of 1.0.
    """

    terms: int
    high: float
    low: float
    rounding: float
    mantissa: int
    one: int


IN_FLOAT32 = Exponential(7, 0.693359375, -2.12194440054690583e-4, 1.5 * 2.0**23, 23, 0x3F800000)
IN_FLOAT64 = Exponential(
    13, 0.693147180369123816490, 1.90821492927058770002e-10, 1.5 * 2.0**52, 52, 0x3FF0000000000000
)
