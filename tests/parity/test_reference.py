"""The recordings, the inputs and the float64 reference agree, before any code is judged by them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from . import experts, models, plans, reading
from .compare import TOLERANCE, against_chance, against_recording, against_reference
from .judge import judged
from .masks import Draw
from .models import Stored
from .oracle import Answer
from .recordings import deviation, recorded, recording

# Methods whose result jumps when a rounded delta falls on the other side of a threshold, or of a vote.
STEPPED = ("ties", "breadcrumbs", "breadcrumbs_ties", "sce", "ram", "ramplus_tl", "arcee_fusion")


@pytest.mark.parametrize("case", plans.names())
def test_the_float64_reference_reproduces_the_recording(case: str) -> None:
    """In 32 bits to 1e-6; in narrow arithmetic, a few roundings of each of the numbers that went in.

    Of what chance decided, the recorded masks must look like those that were asked for.
    """
    expected = reading.read(plans.bare(plans.template(case)), stacked=True)
    stored, meant = recorded(case), deviation(case)
    assert sorted([*stored, *meant.extra]) == sorted(expected)
    for name, tensor in stored.items():
        assert (tensor.dtype, tensor.values.shape) == (
            meant.recorded_dtype or expected[name].dtype,
            expected[name].shape,
        )
        answer = expected[name].answer
        if name in meant.tensors or isinstance(answer, Draw):
            continue
        error = np.abs(tensor.values - answer.values)[~(answer.tied | answer.drawn)]
        if expected[name].wide:
            assert error.max(initial=0.0) <= TOLERANCE, name
        elif plans.method(case) not in STEPPED:
            assert error.max(initial=0.0) <= 0.03, name
        else:  # rounded deltas fall on other sides of thresholds and votes: most elements, not all
            assert np.median(np.append(error, 0.0)) <= 0.01, name
    assert not against_chance(stored, expected, roundings=8.0)


@pytest.mark.parametrize("case", plans.names())
def test_the_exact_result_rounded_once_would_pass(case: str) -> None:
    """No implementation is asked for more than this; masks are drawn as asked for."""
    random = np.random.default_rng(7)
    tensors: dict[str, Stored] = {}
    for name, wanted in reading.read(plans.bare(plans.template(case))).items():
        answer = wanted.answer
        if isinstance(answer, Draw):
            values = answer.made([random.random(p.shape) < p for p in answer.chances])
        else:
            values = answer.values
        tensors[name] = Stored(wanted.dtype, models.rounded(values, wanted.dtype))
    assert not judged(case, plans.template(case), tensors)


@pytest.mark.parametrize("case", plans.names())
def test_a_case_is_recorded_as_it_stands(case: str) -> None:
    assert recording()["cases"][case]["plan"] == plans.digest(plans.template(case)), "record this case again"


@pytest.mark.parametrize("folder", [plans.REFUSED, plans.BEYOND], ids=lambda folder: folder.name)
def test_what_mergekit_fails_on_is_recorded_as_it_stands(folder: Path) -> None:
    failed = {case: {"plan": plans.digest(plans.template(case, folder))} for case in plans.names(folder)}
    assert recording()[folder.name] == failed


@pytest.mark.parametrize("key", models.MODELS)
def test_an_input_has_the_bytes_it_had_when_it_was_recorded(key: str) -> None:
    assert models.digest(key) == recording()["inputs"][key]


@pytest.mark.parametrize("method", plans.METHODS)
def test_every_method_has_a_reference_and_cases_in_two_widths(method: str) -> None:
    cases = [case for case in plans.names() if plans.method(case) == method]
    assert method in reading.METHODS
    assert all(case.startswith(f"{method}_") for case in cases if not case.startswith("gpt2_"))
    dtypes = [models.MODELS[plans.keys(plans.template(case))[0]].dtype for case in cases]
    assert dtypes.count("float32") >= 3
    assert "bfloat16" in dtypes


def test_there_is_a_reference_for_no_other_method() -> None:
    assert set(reading.METHODS) == set(plans.METHODS)


def test_the_recordings_stay_small() -> None:
    assert sum(path.stat().st_size for path in models.GOLDEN.iterdir()) < 14_000_000


def test_the_layouts_of_a_mixture_hold_the_same_numbers() -> None:
    one, other = models.tensors("mixtral_a"), models.tensors("stacked_a")
    assert len(one) > len(other)
    for layout in (experts.per_expert, experts.stacked):
        first, second = layout(one), layout(other)
        assert sorted(first) == sorted(second)
        assert all(np.array_equal(first[name], second[name]) for name in first)


def test_rounding_to_bfloat16_is_to_nearest_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-40, -(1 + 2**-8 - 2**-40), 0.0])
    assert models.rounded(values, "bfloat16").tolist() == [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -1.0, 0.0]


def test_the_comparison_notices_a_small_error_and_a_nan() -> None:
    exact = np.array([0.5, 1.0])
    expected = reading.Expected("float32", Answer.of(exact), wide=True)
    right = Stored("float32", exact)
    assert against_recording(right, right, expected) is None
    for bad in (1.000002, np.nan):
        wrong = Stored("float32", np.array([0.5, bad]))
        assert "1 of 2" in str(against_recording(wrong, right, expected))
        assert "1 of 2" in str(against_reference(wrong, expected))


def test_a_narrow_result_may_be_better_than_the_recorded_one_but_not_worse() -> None:
    step = 2.0**-7
    expected = reading.Expected("bfloat16", Answer.of(np.array([1.0 + 0.4 * step])), wide=False)
    nearest, above, beyond = (Stored("bfloat16", np.array([1.0 + n * step])) for n in (0, 1, 2))
    assert against_recording(nearest, above, expected) is None
    assert against_recording(above, above, expected) is None
    assert "1 of 1" in str(against_recording(beyond, above, expected))
