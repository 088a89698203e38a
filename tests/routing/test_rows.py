"""From vectors to rows, and what a report says of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergegraph.routing.prompts import PromptGroup
from mergegraph.routing.rows import RowOptions, balance, condition, cosines, normalise, rows_of, worst_pair
from mergegraph.routing.weights import Array

STATISTICS = np.array([[3.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 2.0], [1.0, 1.0, 1.0]])
TWO = (PromptGroup((0, 1), (2,)), PromptGroup((3,), ()))


def rows(options: RowOptions, *, competing: bool = True) -> Array:
    return rows_of(STATISTICS, TWO, options, competing=competing)


def unit(*numbers: float) -> Array:
    return np.asarray(numbers) / np.linalg.norm(numbers)


def test_a_row_is_the_mean_of_wanted_prompts_minus_that_of_unwanted_ones_at_unit_length() -> None:
    np.testing.assert_allclose(rows(RowOptions()), [unit(1.5, 2.5, -2), unit(1, 1, 1)], rtol=1e-6)


def test_both_sides_can_be_normalised_first() -> None:
    wanted = unit(1.5, 2.5, 0) - unit(0, 0, 1)
    np.testing.assert_allclose(rows(RowOptions(unit_sides=True))[0], unit(*wanted), rtol=1e-6)


def test_centring_leaves_what_tells_experts_apart() -> None:
    """Of two experts the centred rows point in opposite directions."""
    found = rows(RowOptions(centre=True))
    np.testing.assert_allclose(found[0], -found[1], rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_gates_of_shared_experts_are_not_centred() -> None:
    np.testing.assert_array_equal(rows(RowOptions(centre=True), competing=False), rows(RowOptions()))


def test_temperature_divides_the_rows() -> None:
    np.testing.assert_allclose(rows(RowOptions(temperature=4.0)) * 4, rows(RowOptions()), rtol=1e-6)


def test_what_cancels_out_gives_a_row_of_zeros() -> None:
    same = (PromptGroup((0,), (0,)),)
    assert not rows_of(STATISTICS, same, RowOptions(), competing=True).any()


def test_rows_are_float32() -> None:
    assert rows(RowOptions()).dtype == np.float32


def test_the_condition_number_is_that_of_the_row_matrix() -> None:
    assert condition(np.eye(3)) == pytest.approx(1)
    assert condition(np.diag([4.0, 2.0, 0.5])) == pytest.approx(8)


@pytest.mark.parametrize("matrix", [np.ones((2, 3)), np.zeros((2, 3)), np.eye(4)[:, :3]])
def test_dependent_rows_have_no_condition_number(matrix: Array) -> None:
    assert condition(matrix) is None


def test_the_worst_pair_is_the_one_with_the_largest_cosine() -> None:
    found = worst_pair(cosines(np.array([[1.0, 0, 0], [0, 2.0, 0], [0, 3.0, 4.0]])))
    assert found == (1, 2, pytest.approx(0.6))
    assert worst_pair(np.ones((1, 1))) is None


def test_the_balance_counts_choices_of_the_experts_own_prompts() -> None:
    groups = (PromptGroup((0, 1), ()), PromptGroup((2,), (0,)), PromptGroup((3,), ()))
    experts = np.array([[1.0, 0, 0], [0, 0, 1.0], [0.0, 1.0, 0]])
    found = balance(experts, STATISTICS, groups, 1)
    assert found.load == (0.5, 0.25, 0.25), "equal logits choose the first expert"
    assert found.own == (0.5, 1.0, 0.0)
    assert sum(found.mass) == pytest.approx(1)
    e3, e5, e2 = math.exp(3), math.exp(5), math.exp(2)
    assert found.mass[0] == pytest.approx((e3 / (e3 + 2) + 1 / (e5 + 2) + 1 / (e2 + 2) + 1 / 3) / 4)


def test_all_experts_chosen_means_equal_load() -> None:
    found = balance(rows(RowOptions()), STATISTICS, TWO, 8)
    assert found.load == (0.5, 0.5)
    assert found.own == (1.0, 1.0)


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=1, max_size=5))
def test_normalised_vectors_are_never_longer_than_one(numbers: list[list[float]]) -> None:
    lengths = np.linalg.norm(normalise(np.array(numbers)), axis=1)
    assert (lengths <= 1 + 1e-9).all()


def test_centred_rows_are_dependent_only_beyond_what_cancels_out() -> None:
    """Two centred rows are opposite, three lie in a plane: that is what centring does."""
    assert condition(np.array([[1.0, 0, 0], [-1.0, 0, 0]])) is None
    assert condition(np.array([[1.0, 0, 0], [-1.0, 0, 0]]), centred=True) == pytest.approx(1)
    three = np.array([[1.0, 0, 0], [-0.5, 0.75**0.5, 0], [-0.5, -(0.75**0.5), 0]])
    assert condition(three, centred=True) == pytest.approx(1)
    assert condition(np.array([[1.0, 0, 0], [1.0, 0, 0], [-1.0, 0, 0]]), centred=True) is None
    assert condition(np.ones((1, 3)), centred=True) == pytest.approx(1)
