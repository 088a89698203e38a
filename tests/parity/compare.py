"""What counts as the same result, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .masks import Draw, judged
from .models import Stored
from .oracle import F64, Mask
from .reading import Expected

TOLERANCE = 1e-6
_FRACTION_BITS = {"float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}
_LEAST_EXPONENT = {"float64": -1022, "float32": -126, "float16": -14, "bfloat16": -126}


def half_ulp(values: F64, dtype: str) -> F64:
    """Half the distance between neighbours of `dtype` at each of `values`: what one rounding may cost."""
    exponent = np.frexp(values)[1] - 1
    exponent = np.maximum(np.where(values == 0, _LEAST_EXPONENT[dtype], exponent), _LEAST_EXPONENT[dtype])
    step: F64 = np.ldexp(1.0, exponent - _FRACTION_BITS[dtype] - 1)
    return step


def against_reference(ours: Stored, expected: Expected) -> str | None:
    """What is wrong with `ours` by the formula alone: one rounding to the output dtype is all it may cost."""
    answer = expected.answer
    if isinstance(answer, Draw):
        return None
    ulp = half_ulp(np.maximum(np.abs(ours.values), np.abs(answer.values)), ours.dtype)
    return _worst(ours.values, answer.values, TOLERANCE + ulp, ~answer.drawn, "the formula")


def against_recording(ours: Stored, recorded: Stored, expected: Expected) -> str | None:
    """What is wrong with `ours` next to the recorded tensor.

    Where mergekit computed in at least 32 bits, the two agree to 1e-6, except where a threshold of equal
    magnitudes leaves a choice. Where it rounded on the way, ours is never further from the exact result than
    the recorded one is, plus the one rounding that any answer needs. What chance decided is not compared.
    """
    answer = expected.answer
    if isinstance(answer, Draw):
        return None
    if expected.wide:
        return _worst(ours.values, recorded.values, TOLERANCE, ~(answer.tied | answer.drawn), "the recording")
    theirs = np.abs(recorded.values - answer.values)
    ulp = half_ulp(np.maximum(np.abs(ours.values), np.abs(answer.values)), ours.dtype)
    return _worst(ours.values, answer.values, theirs + ulp + TOLERANCE, ~answer.drawn, "the exact result")


def against_chance(
    tensors: Mapping[str, Stored], expected: Mapping[str, Expected], *, roundings: float = 2.0
) -> dict[str, list[str]]:
    """What is wrong with the tensors of a merge that chance had a say in, one by one and together.

    `roundings` is how many times a result may have been rounded to its dtype: once, and once more because the
    factors are found from rounded numbers.
    """
    drawn = []
    loose = 1e-4
    for name, tensor in tensors.items():
        answer = expected[name].answer
        if isinstance(answer, Draw):
            ulp = half_ulp(np.abs(tensor.values) + np.abs(answer.base), tensor.dtype)
            drawn.append((name, answer, tensor.values, 2 * TOLERANCE + roundings * ulp))
            loose = loose if expected[name].wide else 0.03
    return judged(drawn, loose=loose)


def _worst(ours: F64, wanted: F64, allowed: F64 | float, counted: Mask, what: str) -> str | None:
    """Describe the element that exceeds what is allowed the most, or return None."""
    # NaN never compares as good, wherever it is.
    good = (np.abs(ours - wanted) <= allowed) | ~counted
    if good.all():
        return None
    excess = np.where(good, -1.0, np.nan_to_num(np.abs(ours - wanted) - allowed, nan=np.inf))
    worst = np.unravel_index(int(np.argmax(excess)), ours.shape)
    place = ", ".join(map(str, worst))
    return (
        f"{np.count_nonzero(~good)} of {ours.size} elements differ from {what}, "
        f"most at [{place}]: {ours[worst]!r} instead of {wanted[worst]!r}"
    )
