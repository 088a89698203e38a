"""Each method against its formula, written out once more in float64, and against values worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mergegraph.methods import all_methods, get_method
from mergegraph.methods.base import Values
from mergegraph.tensorspec import DType
from tests.methods.formulas import FORMULAS, Parameters
from tests.runtime.harness import normal, stream


def merge(
    name: str, base: Tensor | None, models: list[Tensor], shared: Parameters, each: list[Parameters]
) -> Tensor:
    """What the method gives; parameters that are not named take their defaults."""
    method = get_method(name)
    common = Values({p.name: shared.get(p.name, p.default) for p in method.shared})
    if method.positional:
        common = common.including("position", shared["position"])
    own = tuple(Values({p.name: x.get(p.name, p.default) for p in method.each}) for x in each)
    if method.random:
        own = tuple(v.including("stream", x["stream"]) for v, x in zip(own, each, strict=True))
    merged: Tensor = method.build(base, tuple(models), common, own)
    return merged


_PAIR: list[Parameters] = [{"weight": 0.6, "density": 0.45}, {"weight": 0.7, "density": 0.5}]
_TRIO: list[Parameters] = [{"weight": 0.6}, {"weight": 0.7}, {"weight": -0.2}]
_SPARSE: list[tuple[Parameters, list[Parameters]]] = [
    ({}, _TRIO),
    ({}, _PAIR),
    ({"normalize": True, "lambda": 0.4}, _PAIR),
    ({"rescale": True}, [{"weight": 0.6, "density": 0.0}, {"weight": 0.7, "density": 1.0}]),
    ({"rescale": False, "normalize": False}, [{**p, "gamma": 0.2} for p in _PAIR]),
    ({"rescale": True}, [{**p, "gamma": 0.0} for p in _PAIR]),
    ({"rescale": True, "normalize": True}, [{"weight": 0.5, "density": 0.4}, {"weight": -0.5}]),
]
"""For methods that sparsify; each takes the parameters that it declares."""

CASES: dict[str, list[tuple[Parameters, list[Parameters]]]] = {
    "arcee_fusion": [({}, [{}])],
    "della": [
        ({}, _TRIO),
        ({}, _PAIR),
        ({"normalize": False, "lambda": 0.4}, [{**p, "epsilon": 0.3} for p in _PAIR]),
        ({"rescale": False}, [{**p, "epsilon": 0.0} for p in _PAIR]),
        ({}, [{"weight": 0.6, "density": 0.0}, {"weight": 0.7, "density": 1.0}]),
    ],
    "della_linear": [
        ({}, _PAIR),
        ({"normalize": True, "rescale": False}, [{**p, "epsilon": 0.4} for p in _PAIR]),
    ],
    "consensus": [
        ({}, [{}] * 3),
        ({"k": 1}, [{"threshold": 1.0}] * 3),
        ({"k": 3}, [{"threshold": 0.2}, {"threshold": 0.5}, {"threshold": 0.9, "weight": -0.7}]),
        ({"k": 0, "lambda": 0.3}, [{}] * 2),
        ({}, [{}]),
    ],
    "emr": [
        ({}, [{}] * 3),
        ({}, [{"weight": 1.0}, {"weight": 0.0}, {"weight": 0.0}]),
        ({"lambda": 0.4}, [{"weight": 0.5}, {"weight": 2.0}]),
        ({}, [{}]),
    ],
    "iso": [
        ({}, [{}] * 3),
        ({"lambda": 1.3}, [{"weight": 0.5}, {"weight": -1.5}]),
        ({"common": 0.8}, [{}] * 2),
        ({"common": 0.3}, [{}] * 3),
        ({"common": 0.0}, [{}] * 4),
        ({"common": 0.95}, [{}] * 2),
        ({"decompose": False}, [{"weight": 0.5}, {"weight": 2.0}]),
    ],
    "karcher": [
        ({}, [{}]),
        ({}, [{}] * 2),
        ({}, [{}] * 3),
        ({"max_iter": 1}, [{}] * 4),
        ({"max_iter": 100, "tol": 1e-9}, [{}] * 5),
        ({"max_iter": 0}, [{}] * 3),
    ],
    "lines": [
        ({"position": 0.0}, _PAIR),
        ({"position": 0.25, "alpha": 0.2, "beta": 0.9}, _TRIO),
        ({"position": 1.0, "alpha": 1.5, "beta": -2.0, "normalize": True}, _PAIR),
    ],
    "model_stock": [({}, [{}] * 2), ({}, [{}] * 4), ({"filter_wise": True}, [{}] * 3)],
    "multislerp": [
        ({}, [{"weight": 0.4}]),
        ({}, [{"weight": 0.4}, {"weight": 1.3}]),
        ({}, _TRIO),
        ({"normalize_weights": False}, _TRIO),
        ({"eps": 0.1}, _TRIO),
    ],
    "nearswap": [({"t": t}, [{}]) for t in (0.0, 1e-4, 0.5, 100.0, -0.5)],
    "nuslerp": [
        ({"nuslerp_flatten": flatten}, [{"weight": first}, {"weight": second}])
        for flatten in (True, False)
        for first, second in ((0.6, 0.3), (1.0, 0.0), (0.5, -0.5), (2.0, -1.0))
    ],
    "pcb": [
        ({}, [{}] * 3),
        ({"lambda": 1.4}, [{"ratio": 0.3}, {"ratio": 0.05}]),
        ({}, [{"ratio": 1.0}, {"ratio": 0.0}, {"ratio": 0.9}]),
        ({}, [{"ratio": 0.5}] * 9),
        ({}, [{}]),
    ],
    "ram": [({}, [{}]), ({}, [{}] * 3), ({"epsilon": 0.5}, [{}] * 3)],
    "ramplus_tl": [
        ({"epsilon": 0.5}, [{}] * 3),
        ({"epsilon": 0.9, "r": 0.7, "alpha": 5.0}, [{}] * 3),
        ({"epsilon": 1.5, "r": -0.5, "alpha": 0.1}, [{}] * 2),
        ({"epsilon": 0.5}, [{}]),
    ],
    "sce": [
        ({}, [{}] * 3),
        ({"select_topk": 0.3}, [{}] * 3),
        ({"select_topk": 0.0}, [{}] * 2),
        ({"select_topk": 1e-9}, [{}] * 2),
        ({"select_topk": 0.5}, [{}]),
    ],
    "linear": [
        ({}, [{"weight": 0.6}, {"weight": 0.7}, {"weight": -0.2}]),
        ({"normalize": False}, [{"weight": 0.6}, {"weight": 0.7}, {"weight": -0.2}]),
        ({}, [{"weight": 3.0}]),
    ],
    "passthrough": [({}, [{}]), ({}, [{"scale": -0.3}]), ({}, [{"scale": 0.0}])],
    "slerp": [({"t": t}, [{}]) for t in (0.0, 0.3, 0.5, 1.0, -0.25, 1.5)],
    "task_arithmetic": [
        ({}, [{"weight": 0.6}, {"weight": -0.7}]),
        ({"normalize": True, "lambda": 0.4}, [{"weight": 0.6}, {"weight": 0.7}]),
        ({"normalize": True}, [{"weight": 0.7}, {"weight": -0.7}]),
        ({"lambda": 0.0}, [{"weight": 1.0}]),
    ],
    "ties": [
        ({}, [{"weight": 0.6}, {"weight": 0.7}, {"weight": 0.2}]),
        (
            {},
            [
                {"weight": 0.6, "density": 0.3},
                {"weight": 0.7, "density": 0.61},
                {"weight": -0.2, "density": 0.9},
            ],
        ),
        (
            {"normalize": False, "lambda": 0.7},
            [{"weight": 0.6, "density": 0.25}, {"weight": 0.7, "density": 0.5}],
        ),
        ({"rescale": True}, [{"weight": 0.6, "density": 0.25}, {"weight": 0.7, "density": 1.0}]),
        ({"rescale": True}, [{"weight": 0.6, "density": 0.0}, {"weight": 0.7, "density": 1e-9}]),
        ({}, [{"weight": 1.0, "density": 0.9}, {"weight": -1.0, "density": 0.9}]),
    ],
}
CASES["tsv"] = [
    ({}, [{}]),
    ({}, [{}] * 2),
    ({"lambda": 0.7}, [{"weight": 0.5}, {"weight": -1.0}, {}]),
    ({"rank": 0.2}, [{}] * 3),
    ({"rank": 0.9}, [{}] * 2),
    ({"decompose": False}, [{"weight": 0.5}, {"weight": 2.0}]),
]
CASES |= dict.fromkeys(("dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties"), _SPARSE)
_FLAT = [
    pytest.param(name, shared, each, id=f"{name} {i}")
    for name, cases in CASES.items()
    for i, (shared, each) in enumerate(cases)
]


def test_every_method_has_a_formula_here() -> None:
    assert {*FORMULAS} == {*CASES} == {*all_methods()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(DType.F64, 1e-13), (DType.F32, 2e-6)], ids=["F64", "F32"])
@pytest.mark.parametrize(("name", "shared", "each"), _FLAT)
def test_a_method_computes_its_formula(
    name: str, shared: Parameters, each: list[Parameters], dtype: DType, tolerance: float
) -> None:
    base = normal(23, 41, dtype=dtype, seed=50)
    models = [base + normal(23, 41, dtype=dtype, seed=i) for i in range(len(each))]
    policy = get_method(name).base
    each = [{**p, "stream": stream(i)} for i, p in enumerate(each)]
    for known in [base] * (policy != "ignored") + [None] * (policy != "required"):
        expected = FORMULAS[name](
            None if known is None else base.double().numpy(),
            [x.double().numpy() for x in models],
            shared,
            each,
        )
        found = merge(name, known, models, shared, each)
        assert found.dtype in (base.dtype, torch.float64)
        np.testing.assert_allclose(found.double().numpy(), expected, rtol=tolerance, atol=4 * tolerance)


# ---- by hand ---------------------------------------------------------------------------------------


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


class TestLinear:
    def test_weights_are_divided_by_their_sum(self) -> None:
        models, each = [vector(1, 2), vector(3, 6)], [{"weight": 1.0}, {"weight": 3.0}]
        assert merge("linear", None, models, {}, each).tolist() == [2.5, 5.0]
        assert merge("linear", None, models, {"normalize": False}, each).tolist() == [10.0, 20.0]

    @pytest.mark.parametrize("weights", [(1.0, -1.0), (0.0, 0.0)])
    def test_weights_that_sum_to_zero_cannot_be_normalised(self, weights: tuple[float, float]) -> None:
        models, each = [vector(1, 2), vector(3, 6)], [{"weight": w} for w in weights]
        with pytest.raises(ValueError, match=r"sum to zero.*normalize: false"):
            merge("linear", None, models, {}, each)
        expected = [weights[0] * 1 + weights[1] * 3, weights[0] * 2 + weights[1] * 6]
        assert merge("linear", None, models, {"normalize": False}, each).tolist() == expected

    def test_a_sum_of_weights_that_is_only_rounding_counts_as_zero(self) -> None:
        models, each = [vector(1), vector(2), vector(3)], [{"weight": w} for w in (0.1, 0.2, -0.3)]
        assert sum(w["weight"] for w in each) > 0
        with pytest.raises(ValueError, match=r"sum to zero"):
            merge("linear", None, models, {}, each)

    def test_small_weights_are_divided_by_their_sum_like_any_other(self) -> None:
        each = [{"weight": 1e-20}, {"weight": 3e-20}]
        assert merge("linear", None, [vector(1), vector(5)], {}, each).tolist() == pytest.approx([4.0])


class TestPassthrough:
    def test_without_a_scale_it_is_the_tensor_itself(self) -> None:
        x = torch.tensor([1.0, -0.0], dtype=torch.bfloat16)
        assert merge("passthrough", None, [x], {}, [{}]) is x

    def test_a_scale_of_zero_is_a_scale(self) -> None:
        assert merge("passthrough", None, [vector(1, 2)], {}, [{"scale": 0.0}]).tolist() == [0.0, 0.0]


class TestSlerp:
    def test_between_perpendicular_vectors_it_is_on_the_circle(self) -> None:
        found = merge("slerp", vector(1, 0), [vector(0, 1)], {"t": 1 / 3}, [{}])
        assert found.tolist() == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)])

    def test_lengths_are_kept_not_normalised(self) -> None:
        found = merge("slerp", vector(2, 0), [vector(0, 6)], {"t": 0.5}, [{}])
        assert found.tolist() == pytest.approx([math.sqrt(2), 3 * math.sqrt(2)])

    @pytest.mark.parametrize("t", [0.0, 1.0])
    def test_the_ends_are_the_models(self, t: float) -> None:
        a, b = vector(1, 2, 3), vector(-2, 0, 5)
        assert merge("slerp", a, [b], {"t": t}, [{}]).tolist() == pytest.approx((b if t else a).tolist())

    @pytest.mark.parametrize(
        "other", [(2.0, 4.0), (-3.0, -6.0), (2.0, 4.01)], ids=["parallel", "opposite", "nearly"]
    )
    def test_along_one_line_it_is_linear(self, other: tuple[float, float]) -> None:
        found = merge("slerp", vector(1, 2), [vector(*other)], {"t": 0.25}, [{}])
        assert found.tolist() == pytest.approx([0.75 + other[0] / 4, 1.5 + other[1] / 4])

    def test_a_vector_of_zeros_has_no_direction_and_counts_as_perpendicular(self) -> None:
        found = merge("slerp", vector(0, 0), [vector(3, 4)], {"t": 0.5}, [{}])
        assert found.tolist() == pytest.approx([3 * math.sqrt(0.5), 4 * math.sqrt(0.5)])

    @pytest.mark.parametrize(
        ("cosine", "linear"), [(0.9994, False), (0.9996, True), (-0.9994, False), (-0.9996, True)]
    )
    def test_the_circle_is_left_at_a_cosine_of_0_9995(self, cosine: float, linear: bool) -> None:
        a, b = vector(1, 0), vector(cosine, math.sqrt(1 - cosine**2))
        found = merge("slerp", a, [b], {"t": 0.5}, [{}])
        chord = math.sqrt((1 + cosine) / 2)  # how far the middle of the chord is from the centre
        assert float(found.norm()) == pytest.approx(chord if linear else 1.0)


class TestTaskArithmetic:
    def test_changes_are_weighted_and_added(self) -> None:
        base, models = vector(1, 1), [vector(2, 0), vector(1, 5)]
        each = [{"weight": 0.5}, {"weight": -0.25}]
        assert merge("task_arithmetic", base, models, {}, each).tolist() == [1.5, -0.5]
        assert merge("task_arithmetic", base, models, {"normalize": True}, each).tolist() == [3.0, -5.0]
        assert merge("task_arithmetic", base, models, {"lambda": 2.0}, each).tolist() == [2.0, -2.0]

    def test_weights_that_cancel_are_not_normalised(self) -> None:
        each = [{"weight": 1.0}, {"weight": -1.0}]
        found = merge("task_arithmetic", vector(1), [vector(3), vector(2)], {"normalize": True}, each)
        assert found.tolist() == [2.0]


class TestTies:
    base = vector(0, 0, 0, 0)

    def merge(
        self, a: Tensor, b: Tensor, shared: Parameters | None = None, **each: tuple[Any, Any]
    ) -> list[float]:
        own = [{k: v[i] for k, v in {"weight": (1.0, 1.0), **each}.items()} for i in range(2)]
        found: list[float] = merge("ties", self.base, [a, b], shared or {}, own).tolist()
        return found

    def test_the_side_with_more_weight_wins_and_its_mean_is_taken(self) -> None:
        assert self.merge(vector(4, 4, -4, 1), vector(2, -1, 1, 3)) == [3.0, 4.0, -4.0, 2.0]

    def test_weights_decide_the_side_and_the_mean(self) -> None:
        assert self.merge(vector(4, 1, 0, 0), vector(2, -2, 0, 0), weight=(1.0, 3.0)) == [2.5, -2.0, 0.0, 0.0]

    def test_a_negative_weight_turns_a_change_round(self) -> None:
        """+8 and +3 over 2 - 1; then +2 against -9, which wins and is divided by its own weight."""
        found = self.merge(vector(4, 1, 0, 0), vector(-3, 9, 0, 0), weight=(2.0, -1.0))
        assert found == [11.0, 9.0, 0.0, 0.0]

    def test_a_tie_goes_to_the_positive_side(self) -> None:
        assert self.merge(vector(2, -2, 0, 0), vector(-2, 2, 0, 0)) == [2.0, 2.0, 0.0, 0.0]

    def test_only_the_largest_part_of_each_model_takes_part(self) -> None:
        found = self.merge(vector(4, 3, -2, 1), vector(1, -9, -5, 2), density=(0.5, 0.25))
        assert found == [4.0, -9.0, 0.0, 0.0]

    def test_equals_of_the_threshold_are_all_kept(self) -> None:
        assert self.merge(vector(2, 2, -2, 1), vector(0, 0, 0, 0), density=(0.25, 1.0)) == [
            2.0,
            2.0,
            -2.0,
            0.0,
        ]

    def test_without_normalising_the_changes_add_up(self) -> None:
        assert self.merge(vector(4, 4, 0, 0), vector(2, -1, 0, 0), {"normalize": False}) == [
            6.0,
            4.0,
            0.0,
            0.0,
        ]

    def test_rescaling_keeps_the_sum_of_magnitudes(self) -> None:
        found = self.merge(vector(4, 3, -2, 1), vector(0, 0, 0, 0), {"rescale": True}, density=(0.5, 1.0))
        assert found == pytest.approx([4 * 10 / 7, 3 * 10 / 7, 0.0, 0.0])

    def test_lambda_scales_the_change_and_not_the_base(self) -> None:
        each = [{"weight": 1.0}]
        assert merge("ties", vector(10), [vector(14)], {"lambda": 0.5}, each).tolist() == [12.0]

    def test_weights_that_cancel_where_both_agree_do_not_divide(self) -> None:
        """1·3 and (-1)·(-5) agree on +, their weights sum to zero: 8 is not divided."""
        assert self.merge(vector(3, 0, 0, 0), vector(-5, 0, 0, 0), weight=(1.0, -1.0)) == [8.0, 0.0, 0.0, 0.0]

    def test_a_number_that_is_nan_in_one_model_is_nan_in_the_merge(self) -> None:
        """Otherwise a broken model would go unnoticed: only what is written is checked."""
        found = self.merge(vector(math.nan, 1, 0, 0), vector(2, 1, 0, 0))
        assert math.isnan(found[0])
        assert found[1:] == [1.0, 0.0, 0.0]


class TestOnTheArc:
    """nuslerp, multislerp and karcher agree between two vectors, and with what can be drawn on paper."""

    def nuslerp(self, a: Tensor, b: Tensor, weights: tuple[float, float], **shared: Any) -> list[Any]:
        each = [{"weight": w} for w in weights]
        found: list[Any] = merge("nuslerp", None, [a, b], shared, each).tolist()
        return found

    def test_the_second_weight_over_the_sum_is_the_position(self) -> None:
        found = self.nuslerp(vector(1, 0), vector(0, 1), (2.0, 1.0))
        assert found == pytest.approx([math.cos(math.pi / 6), math.sin(math.pi / 6)])
        assert self.nuslerp(vector(1, 2), vector(3, 5), (0.0, 7.0)) == pytest.approx([3.0, 5.0])

    def test_weights_that_cancel_meet_in_the_middle(self) -> None:
        assert self.nuslerp(vector(1, 0), vector(0, 1), (1.0, -1.0)) == pytest.approx([math.sqrt(0.5)] * 2)

    def test_row_by_row_each_row_has_its_own_angle(self) -> None:
        a, b = (
            torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double(),
            torch.tensor([[0.0, 1.0], [3.0, 0.0]]).double(),
        )
        found = self.nuslerp(a, b, (1.0, 1.0), nuslerp_flatten=False)
        assert found == [pytest.approx([math.sqrt(0.5)] * 2), pytest.approx([2.0, 0.0])]

    @pytest.mark.parametrize("flatten", [True, False])
    def test_in_opposite_directions_the_line_is_straight(self, flatten: bool) -> None:
        found = self.nuslerp(vector(1, 2), vector(-3, -6), (0.75, 0.25), nuslerp_flatten=flatten)
        assert found == pytest.approx([0.0, 0.0])

    def test_with_a_base_the_changes_are_turned(self) -> None:
        base, models, each = vector(5, 5), [vector(6, 5), vector(5, 6)], [{"weight": 0.5}] * 2
        expected = pytest.approx([5 + math.sqrt(0.5)] * 2)
        assert merge("nuslerp", base, models, {}, each).tolist() == expected
        assert merge("multislerp", base, models, {}, each).tolist() == expected

    def test_a_mean_of_two_perpendicular_vectors_is_between_them_with_the_mean_length(self) -> None:
        expected = pytest.approx([2 * math.sqrt(0.5)] * 2)
        assert merge("karcher", None, [vector(1, 0), vector(0, 3)], {}, [{}] * 2).tolist() == expected
        each = [{"weight": 1.0}] * 2
        assert merge("multislerp", None, [vector(1, 0), vector(0, 3)], {}, each).tolist() == expected

    def test_the_mean_of_three_axes_is_the_diagonal(self) -> None:
        axes = [vector(1, 0, 0), vector(0, 1, 0), vector(0, 0, 1)]
        diagonal = pytest.approx([math.sqrt(1 / 3)] * 3)
        assert merge("karcher", None, axes, {}, [{}] * 3).tolist() == diagonal
        assert merge("multislerp", None, axes, {}, [{"weight": 2.0}] * 3).tolist() == diagonal

    def test_a_mean_of_unequal_directions_balances_the_arcs(self) -> None:
        """Two at 0 degrees and one at 90: the mean is at 30."""
        models = [vector(1, 0), vector(1, 0), vector(0, 1)]
        found = merge("karcher", None, models, {"max_iter": 50, "tol": 1e-12}, [{}] * 3)
        assert found.tolist() == pytest.approx([math.cos(math.pi / 6), 0.5])

    def test_a_model_of_zeros_has_no_direction_but_counts_for_the_length(self) -> None:
        found = merge("karcher", None, [vector(0, 0), vector(3, 4)], {}, [{}] * 2)
        assert found.tolist() == pytest.approx([1.5, 2.0])
        zeros = [vector(0, 0)] * 2
        assert merge("karcher", None, zeros, {}, [{}] * 2).tolist() == [0.0, 0.0]

    def test_directions_that_cancel_have_no_mean(self) -> None:
        opposite, each = [vector(1, 2), vector(-3, -6)], [{"weight": 0.5}] * 2
        assert merge("multislerp", None, opposite, {}, each).tolist() == [-1.0, -2.0]

    @pytest.mark.parametrize("weights", [(1.0, -1.0, 0.0), (0.1, 0.2, -0.3)])
    def test_weights_that_sum_to_zero_cannot_be_normalised(self, weights: tuple[float, ...]) -> None:
        each = [{"weight": w} for w in weights]
        with pytest.raises(ValueError, match=r"sum to zero.*normalize_weights: false"):
            merge("multislerp", None, [vector(1), vector(2), vector(3)], {}, each)


class TestModelStock:
    def test_equal_changes_are_taken_whole_and_perpendicular_ones_not_at_all(self) -> None:
        base = vector(1, 1)
        assert merge("model_stock", base, [vector(2, 3)] * 2, {}, [{}] * 2).tolist() == [2.0, 3.0]
        apart = [vector(2, 1), vector(1, 2)]
        assert merge("model_stock", base, apart, {}, [{}] * 2).tolist() == [1.0, 1.0]

    def test_the_ratio_follows_from_the_angle(self) -> None:
        """At 60 degrees t = 2 · 0.5 / 1.5."""
        models = [vector(1, 0), vector(0.5, math.sqrt(0.75))]
        found = merge("model_stock", vector(0, 0), models, {}, [{}] * 2).tolist()
        assert found == pytest.approx([2 / 3 * 0.75, 2 / 3 * math.sqrt(0.75) / 2])

    def test_opposite_changes_leave_the_base(self) -> None:
        models = [vector(2, 1), vector(0, 1)]
        assert merge("model_stock", vector(1, 1), models, {}, [{}] * 2).tolist() == [1.0, 1.0]

    def test_row_by_row_each_row_has_its_own_angle(self) -> None:
        base = torch.zeros(2, 2).double()
        first = torch.tensor([[1.0, 0.0], [1.0, 0.0]]).double()
        second = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double()
        found = merge("model_stock", base, [first, second], {"filter_wise": True}, [{}] * 2).tolist()
        assert found == [[1.0, 0.0], [0.0, 0.0]]


class TestBreadcrumbs:
    base, change = vector(*[0.0] * 10), vector(1, -2, 3, -4, 5, -6, 7, -8, 9, -10)

    @pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
    @pytest.mark.parametrize(
        ("density", "gamma", "kept"),
        [
            (0.3, 0.2, (8, 7, 6)),
            (0.3, 0.0, (10, 9, 8)),
            (0.3, 0.09, (10, 9, 8)),
            (0.5, 0.9, (5, 4, 3, 2, 1)),
            (0.9, 0.2, (9, 8, 7, 6, 5, 4, 3, 2, 1)),
            (0.05, 0.2, ()),
            (0.0, 0.2, ()),
            (1.0, 0.2, range(1, 11)),
        ],
    )
    def test_what_is_kept_comes_after_the_largest(
        self, name: str, density: float, gamma: float, kept: tuple[int, ...]
    ) -> None:
        each = [{"weight": 1.0, "density": density, "gamma": gamma}]
        found = merge(name, self.base, [self.change], {}, each)
        assert found.tolist() == [x if abs(x) in kept else 0.0 for x in self.change.tolist()]

    def test_equals_of_a_threshold_are_all_kept(self) -> None:
        each = [{"weight": 1.0, "density": 0.25, "gamma": 0.25}]
        found = merge("breadcrumbs", vector(0, 0, 0, 0), [vector(3, 3, -3, 1)], {}, each)
        assert found.tolist() == [3.0, 3.0, -3.0, 0.0]


class TestRandomDropping:
    base = normal(40_000, dtype=DType.F64, seed=5)
    change = normal(40_000, dtype=DType.F64, seed=6)

    def kept(self, name: str, slot: int = 0, **each: Any) -> Tensor:
        """Which elements of a change stay."""
        own = [{"weight": 1.0, "stream": stream(slot), **each}]
        shared = {"rescale": False, "normalize": False}
        return merge(name, self.base, [self.base + self.change], shared, own) != self.base

    @pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
    @pytest.mark.parametrize("density", [0.2, 0.5, 0.8])
    def test_the_density_is_the_share_that_stays(self, name: str, density: float) -> None:
        share = float(self.kept(name, density=density).double().mean())
        assert share == pytest.approx(density, abs=5 * math.sqrt(density * (1 - density) / 40_000))

    @pytest.mark.parametrize("name", ["dare_linear", "della"])
    def test_each_stream_drops_others_and_each_time_the_same(self, name: str) -> None:
        first, again, other = (self.kept(name, slot, density=0.5) for slot in (0, 0, 1))
        assert torch.equal(first, again)
        assert float((first & other).double().mean()) == pytest.approx(0.25, abs=0.02)

    @pytest.mark.parametrize("name", ["della", "della_linear"])
    def test_large_changes_stay_more_often(self, name: str) -> None:
        kept = self.kept(name, density=0.5, epsilon=0.4).double()
        order = self.change.abs().argsort()
        tenth = len(order) // 10
        assert float(kept[order[:tenth]].mean()) == pytest.approx(0.1 + 0.04, abs=0.03)
        assert float(kept[order[-tenth:]].mean()) == pytest.approx(0.9 - 0.04, abs=0.03)

    @pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
    def test_rescaling_keeps_the_sum_of_magnitudes(self, name: str) -> None:
        own = [{"weight": 1.0, "density": 0.3, "stream": stream(0)}]
        found = merge(name, torch.zeros_like(self.base), [self.change], {}, own)
        assert float(found.abs().sum()) == pytest.approx(float(self.change.abs().sum()), rel=1e-12)

    @pytest.mark.parametrize(("density", "epsilon"), [(0.9, 0.1), (0.1, 0.1), (0.5, 0.5), (0.9, 0.15)])
    def test_a_chance_outside_of_0_and_1_is_an_error(self, density: float, epsilon: float) -> None:
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            self.kept("della", density=density, epsilon=epsilon)

    def test_a_row_of_one_element_is_kept_with_the_density(self) -> None:
        base, change = torch.zeros(40_000, 1), torch.ones(40_000, 1)
        own = [{"weight": 1.0, "density": 0.3, "stream": stream(0)}]
        share = float((merge("della", base, [change], {}, own) != 0).double().mean())
        assert share == pytest.approx(0.3, abs=0.012)


class TestNearswap:
    def test_near_elements_are_swapped_and_far_ones_pulled(self) -> None:
        base, other = vector(0, 0, 0, 1), vector(0.25, 1, -4, 1)
        found = merge("nearswap", base, [other], {"t": 0.5}, [{}])
        assert found.tolist() == [0.25, 0.5, -0.5, 1.0]

    def test_at_a_distance_of_zero_nothing_moves(self) -> None:
        assert merge("nearswap", vector(1, 2), [vector(3, 4)], {"t": 0.0}, [{}]).tolist() == [1.0, 2.0]


class TestArceeFusion:
    def test_only_changes_that_stand_out_are_taken_over(self) -> None:
        base = torch.zeros(1, 9).double()
        other = torch.tensor([[0.1, -0.1, 0.1, -0.1, 0.2, -0.2, 0.2, -0.2, 5.0]]).double()
        assert merge("arcee_fusion", base, [other], {}, [{}]).tolist() == [[0.0] * 8 + [5.0]]

    def test_a_model_that_changed_nothing_leaves_the_base(self) -> None:
        base = vector(1, 2, 3)
        assert merge("arcee_fusion", base, [base.clone()], {}, [{}]).tolist() == [1.0, 2.0, 3.0]

    def test_quartiles_are_exact_for_large_tensors_too(self) -> None:
        base = normal(1100, 1000, dtype=DType.F32, seed=1)
        other = base + normal(1100, 1000, dtype=DType.F32, seed=2, spread=0.1)
        expected = FORMULAS["arcee_fusion"](base.double().numpy(), [other.double().numpy()], {}, [{}])
        found = merge("arcee_fusion", base, [other], {}, [{}]).double().numpy()
        assert np.count_nonzero(abs(found - expected) > 1e-6) <= 5


class TestSce:
    def test_the_energies_are_the_weights_where_signs_agree(self) -> None:
        """Mean squares 2.5 and 10: on the first element 0.2 · 2 + 0.8 · 4, on the second the winner alone."""
        found = merge("sce", vector(0, 0), [vector(2, 1), vector(4, -2)], {}, [{}] * 2)
        assert found.tolist() == pytest.approx([3.6, -2.0])

    def test_only_the_elements_that_vary_most_are_merged(self) -> None:
        models = [vector(1, 1, 1, 1), vector(1, 2, 3, 9)]
        found = merge("sce", vector(0, 0, 0, 0), models, {"select_topk": 0.34}, [{}] * 2)
        assert found.tolist() == pytest.approx([0.0, 0.0, 0.0, (1 + 81 * 9) / 82])

    def test_a_tensor_that_no_model_changed_stays_in_its_shape(self) -> None:
        base = torch.ones(3, 4).double()
        found = merge("sce", base, [base.clone()] * 3, {"select_topk": 0.5}, [{}] * 3)
        assert torch.equal(found, base)

    def test_tiny_changes_are_weighted_equally(self) -> None:
        found = merge("sce", vector(0), [vector(1e-6), vector(3e-6)], {}, [{}] * 2)
        assert found.tolist() == pytest.approx([2e-6])


class TestRam:
    def test_unique_changes_stay_whole_and_shared_ones_are_averaged(self) -> None:
        models = [vector(11, 10, 12, 10), vector(10, 14, 8, 10.000001)]
        found = merge("ram", vector(10, 10, 10, 10), models, {}, [{}] * 2)
        assert found.tolist() == [11.0, 14.0, 10.0, 10.0]

    def test_an_active_change_is_larger_than_epsilon(self) -> None:
        found = merge("ram", vector(0, 0), [vector(0.5, 0.75)], {"epsilon": 0.5}, [{}])
        assert found.tolist() == [0.0, 0.75]

    def test_unique_changes_grow_with_the_share_of_shared_ones(self) -> None:
        """The first model has two unique changes and one shared: ρ = 0.5; the second none: capped."""
        models = [vector(1, 1, 2), vector(0, 0, 4)]
        shared = {"r": 0.5, "alpha": 0.8}
        found = merge("ramplus_tl", vector(0, 0, 0), models, shared, [{}] * 2)
        assert found.tolist() == pytest.approx([1.25, 1.25, 3.0])
        capped = merge("ramplus_tl", vector(0, 0, 0), models, {"r": 0.5, "alpha": 0.2}, [{}] * 2)
        assert capped.tolist() == pytest.approx([1.1, 1.1, 3.0])
