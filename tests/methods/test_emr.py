"""Electing, masking and rescaling, with numbers that can be worked by hand."""

from __future__ import annotations

import pytest
import torch

from tests.methods.test_formulas import merge, vector


def emr(*deltas: torch.Tensor, weights: tuple[float, ...] = (1.0, 1.0)) -> list[float]:
    found: list[float] = merge(
        "emr", torch.zeros_like(deltas[0]), list(deltas), {}, [{"weight": w} for w in weights]
    ).tolist()
    return found


A, B = vector(4, -1, 2, 1), vector(2, -3, -6, 0)
"""Elected signs + - - +, largest magnitudes on that side 4, 3, 6, 1; the third is B's alone."""


def test_with_all_the_weight_on_one_model_it_is_the_papers_model_of_that_task() -> None:
    """Masked for A it is (4, -3, 0, 1), which sums to 8 as A itself does; for B (4, -3, -6, 0), 13 for 11."""
    assert emr(A, B, weights=(1.0, 0.0)) == [4.0, -3.0, 0.0, 1.0]
    assert emr(A, B, weights=(0.0, 3.0)) == pytest.approx([4 * 11 / 13, -3 * 11 / 13, -6 * 11 / 13, 0.0])


def test_otherwise_the_task_models_are_averaged() -> None:
    first, second = emr(A, B, weights=(1.0, 0.0)), emr(A, B, weights=(0.0, 1.0))
    expected = [0.25 * x + 0.75 * y for x, y in zip(first, second, strict=True)]
    assert emr(A, B, weights=(1.0, 3.0)) == pytest.approx(expected)


def test_one_model_is_that_model() -> None:
    assert emr(A, weights=(0.7,)) == A.tolist()


def test_models_that_differ_in_size_alone_share_the_larger_and_get_their_size_back() -> None:
    assert emr(A, 3 * A, weights=(1.0, 0.0)) == pytest.approx(A.tolist())
    assert emr(A, 3 * A) == pytest.approx((2 * A).tolist())


def test_a_change_too_small_to_be_squared_is_still_in_the_mask() -> None:
    tiny = torch.tensor([1e-30, -2e-30])
    assert emr(tiny, weights=(1.0,)) == tiny.tolist()


def test_weights_that_sum_to_zero_have_no_mean() -> None:
    with pytest.raises(ValueError, match="sum to zero"):
        emr(A, B, weights=(1.0, -1.0))
    with pytest.raises(ValueError, match="sum to zero"):
        emr(A, B, A, weights=(0.1, 0.2, -0.3))
