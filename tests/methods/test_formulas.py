"""Each method against its formula, written out once more in float64, and against values worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mergegraph.methods import all_methods, get_method
from mergegraph.methods.base import Values
from mergegraph.tensorspec import DType
from tests.runtime.harness import normal

Vector = npt.NDArray[np.float64]
Parameters = dict[str, Any]


def merge(
    name: str, base: Tensor | None, models: list[Tensor], shared: Parameters, each: list[Parameters]
) -> Tensor:
    """What the method gives; parameters that are not named take their defaults."""
    method = get_method(name)
    common = Values({p.name: shared.get(p.name, p.default) for p in method.shared})
    own = tuple(Values({p.name: x.get(p.name, p.default) for p in method.each}) for x in each)
    merged: Tensor = method.build(base, tuple(models), common, own)
    return merged


# ---- the formulas, independently ------------------------------------------------------------------


def linear(_: Vector | None, models: list[Vector], shared: Parameters, each: list[Parameters]) -> Vector:
    w = np.array([p["weight"] for p in each])
    if shared.get("normalize", True):
        w = w / w.sum()
    return np.tensordot(w, np.stack(models), axes=1)


def passthrough(_: Vector | None, models: list[Vector], __: Parameters, each: list[Parameters]) -> Vector:
    factor = each[0].get("scale")
    return models[0] if factor is None else factor * models[0]


def slerp(base: Vector | None, models: list[Vector], shared: Parameters, _: list[Parameters]) -> Vector:
    assert base is not None
    a, b, t = base, models[0], shared["t"]
    norms = [n if n > 1e-8 else 1.0 for n in (np.linalg.norm(a), np.linalg.norm(b))]
    cosine = np.clip(np.dot((a / norms[0]).ravel(), (b / norms[1]).ravel()), -1, 1)
    if abs(cosine) > 0.9995:
        return np.asarray((1 - t) * a + t * b)
    theta = np.arccos(cosine)
    return np.asarray((np.sin((1 - t) * theta) * a + np.sin(t * theta) * b) / np.sin(theta))


def task_arithmetic(
    base: Vector | None, models: list[Vector], shared: Parameters, each: list[Parameters]
) -> Vector:
    assert base is not None
    w = np.array([p["weight"] for p in each])
    total = np.tensordot(w, np.stack([x - base for x in models]), axes=1)
    if shared.get("normalize", False) and abs(w.sum()) >= 1e-8:
        total = total / w.sum()
    return np.asarray(base + shared.get("lambda", 1.0) * total)


def ties(base: Vector | None, models: list[Vector], shared: Parameters, each: list[Parameters]) -> Vector:
    assert base is not None
    changes = []
    for x, p in zip(models, each, strict=True):
        d, density = x - base, p.get("density", 1.0)
        kept = d
        if density <= 0:
            kept = np.zeros_like(d)
        elif density < 1:
            count = max(1, int(density * d.size))
            kept = np.where(abs(d) >= np.sort(abs(d).ravel())[-count], d, 0.0)
        norms = abs(d).sum(), abs(kept).sum()
        if shared.get("rescale", False) and density < 1 and min(norms) >= 1e-7:
            kept = kept * (norms[0] / norms[1])
        changes.append(p["weight"] * kept)
    stacked = np.stack(changes)
    majority = np.where(stacked.sum(axis=0) >= 0, 1.0, -1.0)
    agree = np.sign(stacked) == majority
    total = np.where(agree, stacked, 0.0).sum(axis=0)
    if shared.get("normalize", True):
        weights = np.array([p["weight"] for p in each]).reshape(-1, *[1] * base.ndim)
        divisor = np.where(agree, weights, 0.0).sum(axis=0)
        total = total / np.where(divisor == 0, 1.0, divisor)
    return np.asarray(base + shared.get("lambda", 1.0) * total)


FORMULAS: dict[str, Callable[..., Vector]] = {
    "linear": linear,
    "passthrough": passthrough,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
}

CASES: dict[str, list[tuple[Parameters, list[Parameters]]]] = {
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
    known = None if get_method(name).base == "ignored" else base
    expected = FORMULAS[name](
        None if known is None else base.double().numpy(), [x.double().numpy() for x in models], shared, each
    )
    found = merge(name, known, models, shared, each)
    assert found.dtype is base.dtype
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
