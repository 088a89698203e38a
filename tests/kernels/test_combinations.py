"""Coefficients from Gram matrices: the same as computing with the vectors themselves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergegraph import ops
from tests.parity import spheres

Vector = np.ndarray[Any, Any]


def vectors(count: int, *, seed: int = 0, common: float = 0.0) -> list[Vector]:
    """Vectors of 50 numbers and different lengths, with something in common."""
    random = np.random.Generator(np.random.SFC64(seed))
    shared = common * random.standard_normal(50)
    return [(1.0 + i) * (shared + random.standard_normal(50)) for i in range(count)]


def gram(xs: list[Vector]) -> Vector:
    return np.array([[float(a @ b) for b in xs] for a in xs])


def combined(weights: Vector, xs: list[Vector]) -> Vector:
    return np.asarray(np.tensordot(weights, np.stack(xs), axes=1))


@pytest.mark.parametrize("common", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_karcher_mean_of_coefficients_is_that_of_vectors(count: int, common: float) -> None:
    xs = vectors(count, common=common)
    for iterations in (0, 1, 10, 100):
        found = ops.karcher_mean(gram(xs), max_iter=iterations, tol=1e-9)
        expected = spheres.karcher(xs, max_iter=iterations, tol=1e-9).values
        np.testing.assert_allclose(combined(found, xs), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("count", [2, 3, 7])
def test_at_a_karcher_mean_the_arcs_balance(count: int) -> None:
    """The definition: the directions towards all vectors, as long as their angles, sum to nothing."""
    xs = vectors(count, common=1.0)
    mean = combined(ops.karcher_mean(gram(xs), max_iter=200, tol=1e-12), xs)
    length = float(np.linalg.norm(mean))
    assert length == pytest.approx(np.mean([np.linalg.norm(x) for x in xs]))
    total = np.zeros(50)
    for x in xs:
        u, m = x / np.linalg.norm(x), mean / length
        angle = math.acos(float(u @ m))
        total += angle / math.sin(angle) * (u - float(u @ m) * m)
    assert float(np.linalg.norm(total)) < 1e-7


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.7, 0.2, 0.1), (2.0, -0.5, 0.3), (1.0, 0.0, 0.0)])
@pytest.mark.parametrize("eps", [1e-8, 0.1])
def test_a_mean_on_the_sphere_is_that_of_vectors(weights: tuple[float, ...], eps: float) -> None:
    xs = vectors(3, common=0.5)
    found = ops.sphere_mean(gram(xs), weights, eps=eps)
    expected = spheres.multislerp(None, xs, weights, normalize=False, eps=eps).values
    np.testing.assert_allclose(combined(found, xs), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("common", [0.0, 0.3, 30.0])
@pytest.mark.parametrize("count", [2, 3, 7])
def test_model_stock_from_dot_products_is_that_of_vectors(count: int, common: float) -> None:
    xs = vectors(count, common=common)
    expected = spheres.model_stock(np.zeros(50), xs, filter_wise=False).values
    np.testing.assert_allclose(combined(ops.stock(gram(xs)), xs), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 1.0, -0.3, 1.4])
@pytest.mark.parametrize("common", [0.0, 3.0])
def test_an_arc_from_dot_products_is_that_of_vectors(t: float, common: float) -> None:
    xs = vectors(2, common=common)
    expected = spheres.nuslerp(None, xs, (1 - t, t), flatten=True, row_wise=False).values
    for op in (ops.arc, ops.slerp) if common == 0.0 else (ops.arc,):
        np.testing.assert_allclose(combined(op(gram(xs), t), xs), expected, rtol=1e-9, atol=1e-9)


@given(angle=st.floats(0.0, math.pi), t=st.floats(0.0, 1.0), length=st.floats(1e-3, 1e3))
def test_an_arc_never_leaves_the_sphere_or_explodes(angle: float, t: float, length: float) -> None:
    """On the arc the length is kept; where there is none the middle is on the chord, and never outside."""
    a, b = np.array([1.0, 0.0]), np.array([math.cos(angle), math.sin(angle)])
    point = combined(ops.arc(gram([length * a, length * b]), t), [length * a, length * b])
    assert float(np.linalg.norm(point)) <= length * (1 + 1e-6)


FUNCTIONS: dict[str, Callable[[Vector], Vector]] = {
    "arc": lambda g: ops.arc(g[:2, :2], 0.3),
    "slerp": lambda g: ops.slerp(g[:2, :2], 0.3),
    "sphere_mean": lambda g: ops.sphere_mean(g, (0.5, 0.3, 0.2), eps=1e-8),
    "karcher_mean": lambda g: ops.karcher_mean(g, max_iter=10, tol=1e-5),
    "stock": lambda g: ops.stock(g),
    "energy_weights": lambda g: ops.energy_weights(np.diag(g).copy(), count=50),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_pathological_vectors_have_finite_coefficients(name: str) -> None:
    x, y, z = vectors(3)
    zero = np.zeros(50)
    for xs in ([zero] * 3, [x] * 3, [x, -x, x], [x, zero, y], [x, -x, zero], [1e-30 * x, y, 1e30 * z]):
        found = FUNCTIONS[name](gram(xs))
        assert np.isfinite(found).all(), xs


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_numbers_that_are_not_finite_give_some_answer_without_a_warning(name: str, bad: float) -> None:
    """The tensors show them where they are; a coefficient of zero times one of them is NaN."""
    products = gram(vectors(3))
    products[1, :] = products[:, 1] = bad
    assert FUNCTIONS[name](products).shape == ((2,) if name in ("arc", "slerp") else (3,))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_fine_tunes_with_a_number_that_is_not_finite_are_averaged(bad: float) -> None:
    products = gram(vectors(3))
    products[1, :] = products[:, 1] = bad
    assert ops.stock(products).tolist() == [1 / 3] * 3


@pytest.mark.parametrize("name", ["sphere_mean", "karcher_mean", "stock", "arc"])
def test_opposite_vectors_are_combined_without_growing(name: str) -> None:
    (x,) = vectors(1)
    xs = [x, -x, x]
    weights = FUNCTIONS[name](gram(xs))
    assert float(np.linalg.norm(combined(weights, xs[: len(weights)]))) <= float(np.linalg.norm(x)) * 1.001


@pytest.mark.parametrize("name", ["karcher_mean", "stock", "energy_weights"])
def test_renaming_the_vectors_renames_the_coefficients(name: str) -> None:
    xs = vectors(3, common=0.4)
    order = [2, 0, 1]
    found = FUNCTIONS[name](gram([xs[i] for i in order]))
    np.testing.assert_allclose(found, FUNCTIONS[name](gram(xs))[order], rtol=1e-9)


@pytest.mark.parametrize(
    ("squares", "expected"),
    [
        ((3.0, 1.0), [0.75, 0.25]),
        ((0.0, 5.0), [0.0, 1.0]),
        ((0.0, 0.0), [0.5, 0.5]),
        ((9e-7, 0.9e-7), [0.5, 0.5]),
        ((1.5e-6, 0.5e-6), [0.75, 0.25]),
    ],
)
def test_energies_are_shares_unless_there_is_next_to_none(
    squares: tuple[float, float], expected: list[float]
) -> None:
    assert ops.energy_weights(np.array(squares), count=1).tolist() == pytest.approx(expected)


def test_energies_are_means_over_elements() -> None:
    assert ops.energy_weights(np.array([3e-6, 1e-6]), count=1).tolist() == pytest.approx([0.75, 0.25])
    assert ops.energy_weights(np.array([3e-6, 1e-6]), count=100).tolist() == [0.5, 0.5]


def test_columns_have_the_arcs_that_vectors_have() -> None:
    a, b = np.stack(vectors(6, seed=1)), np.stack(vectors(6, seed=2))
    b[3], b[4], b[5] = a[3], -2 * a[4], 0.0
    products = np.stack([(a * a).sum(1), (a * b).sum(1), (b * b).sum(1)])
    found = ops.column_arc(products, 0.3)
    for i in range(6):
        np.testing.assert_allclose(found[:, i], ops.arc(gram([a[i], b[i]]), 0.3), rtol=1e-12)


def test_products_of_columns_are_those_of_a_sum() -> None:
    x, y = (torch.from_numpy(np.stack(vectors(40, seed=s))) for s in (1, 2))
    found = ops.column_products(x, y)
    expected = torch.stack([(x * x).sum(0), (x * y).sum(0), (y * y).sum(0)])
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-12, atol=1e-12)
