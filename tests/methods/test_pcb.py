"""A competition of parameters, with numbers that can be worked by hand."""

from __future__ import annotations

import pytest
import torch

from mergegraph.tensorspec import DType
from tests.methods.formulas import FORMULAS
from tests.methods.test_formulas import merge, vector
from tests.runtime.harness import normal


def test_the_largest_change_that_agrees_wins() -> None:
    found = merge("pcb", vector(0, 0, 0), [vector(5, 1, -2), vector(1, 1, 4)], {}, [{"ratio": 0.3}] * 2)
    assert found.tolist() == [5.0, 0.0, 4.0]


def test_a_change_against_the_sum_of_all_never_counts() -> None:
    models = [vector(-1, 1, 1), vector(3, 4, 0.1)]
    assert merge("pcb", vector(0, 0, 0), models, {}, [{"ratio": 1.0}] * 2)[0] == 3.0


def test_a_single_element_is_a_winner_unless_it_opposes() -> None:
    assert merge("pcb", vector(0), [vector(1), vector(3)], {}, [{}] * 2).tolist() == [2.0]
    assert merge("pcb", vector(0), [vector(1), vector(-3)], {}, [{}] * 2).tolist() == [-3.0]


def test_outliers_are_limited_in_tensors_large_enough_to_have_some() -> None:
    """One in ten thousand at either end: the two largest and the two smallest of 20,000."""
    base = torch.zeros(20_000, dtype=torch.float64)
    x = torch.linspace(1, 2, 20_000, dtype=torch.float64)
    x[-1] = 1e6
    found = merge("pcb", base, [x], {}, [{"ratio": 1.0}])
    assert found.max() == x[-3]


@pytest.mark.parametrize("scale", [1e-4, 1.0, 30.0])
def test_scores_are_those_of_the_formula_however_large_the_changes(scale: float) -> None:
    """The tangent is a line for small products and saturated for large ones."""
    base = normal(40, 30, dtype=DType.F64, seed=9)
    models = [base + scale * normal(40, 30, dtype=DType.F64, seed=i) for i in range(12)]
    each = [{"ratio": 0.4}] * 12
    expected = FORMULAS["pcb"](base.numpy(), [x.numpy() for x in models], {}, each)
    found = merge("pcb", base, models, {}, each)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-12, atol=1e-12 * scale)
