"""Whether the tensors of a merge are right: by the recording, by the formula, and by what chance allows."""

from __future__ import annotations

from collections.abc import Mapping

from . import experts, plans, reading
from .compare import against_chance, against_recording, against_reference
from .models import Stored
from .reading import Expected
from .recordings import Deviation, deviation, recorded


def per_expert(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """`tensors` in the layout of one tensor per expert."""
    dtypes: dict[str, str] = {}
    for name, tensor in tensors.items():
        dtypes |= dict.fromkeys(experts.per_expert({name: tensor.values}), tensor.dtype)
    values = experts.per_expert({name: tensor.values for name, tensor in tensors.items()})
    return {name: Stored(dtypes[name], held) for name, held in values.items()}


def judged(case: str, text: str, tensors: Mapping[str, Stored]) -> dict[str, object]:
    """What is wrong with the tensors that the plan `text` gave, by name in the layout of one per expert."""
    expected = reading.read(plans.bare(text))
    stored, meant = per_expert(recorded(case)), deviation(case)
    wanted = {*stored, *meant.extra} if stored else {*expected}
    if wanted != {*tensors}:
        return {"missing": sorted(wanted - {*tensors}), "unexpected": sorted({*tensors} - wanted)}
    wrong: dict[str, object] = {}
    for name, ours in tensors.items():
        counted = name in stored and name not in meant.tensors
        if meant.per_expert and experts.EXPERT.search(name):
            counted = False
        problem = _problem(ours, expected[name], stored.get(name), counted, meant)
        if problem:
            wrong[name] = problem
    return wrong or dict(against_chance(tensors, expected))


def _problem(
    ours: Stored, wanted: Expected, recorded: Stored | None, counted: bool, meant: Deviation
) -> str | None:
    """What is wrong with one tensor; the recording is `counted` unless it is known to be wrong."""
    if (ours.dtype, ours.values.shape) != (wanted.dtype, wanted.shape):
        return f"{ours.dtype} {ours.values.shape} instead of {wanted.dtype} {wanted.shape}"
    problem = against_reference(ours, wanted) if wanted.wide or not counted else None
    if recorded is None or not counted:
        return problem
    if recorded.dtype != (meant.recorded_dtype or ours.dtype):
        return f"{ours.dtype} where {recorded.dtype} is recorded"
    return problem or against_recording(ours, recorded, wanted)
