"""Reductions: right to float64 accuracy, and the same bits however the tensor is cut into tiles."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mergegraph import ops
from mergegraph.graph.node import Node
from mergegraph.kernels.norms import restoring_factor
from mergegraph.kernels.reduction import CHUNK
from mergegraph.tensorspec import DType
from tests.runtime.harness import eager, loads, normal, schedule_run

WIDTHS = (DType.F32, DType.F64)
LENGTHS = (1, 63, 64, 4095, 4097, CHUNK, CHUNK + 1, 3 * CHUNK - 1, 500_003)


def pair(count: int, dtype: DType) -> list[Tensor]:
    """Two vectors whose dot product is neither tiny nor dominated by a few elements."""
    a, b = normal(count, dtype=dtype, seed=1), normal(count, dtype=dtype, seed=2)
    return [a, a * 0.5 + b]


def reductions(tensors: list[Tensor]) -> tuple[Node, dict[str, Node]]:
    """An expression that needs a Gram matrix and two L1 norms, in one phase, and those nodes."""
    a, b = loads(tensors)
    found = {"gram": ops.gram(a, b), "l1 of a": ops.l1_norm(a), "l1 of b": ops.l1_norm(b)}
    weights = ops.slerp(found["gram"], 0.3)
    factor = ops.restoring_factor(found["l1 of a"], found["l1 of b"])
    return ops.scale(ops.weighted_sum(a, b, weights), factor), found


def exact(tensors: list[Tensor]) -> dict[str, Any]:
    """The same in exact products and extended sums."""
    x, y = (t.numpy().astype(np.longdouble) for t in tensors)
    cross = float((x * y).sum())
    gram = np.array([[float((x * x).sum()), cross], [cross, float((y * y).sum())]])
    return {"gram": gram, "l1 of a": [float(abs(x).sum())], "l1 of b": [float(abs(y).sum())]}


@pytest.mark.parametrize("dtype", WIDTHS, ids=lambda d: d.name)
@pytest.mark.parametrize("count", LENGTHS)
def test_gram_matrix_and_l1_norm_are_right_to_1e_12(count: int, dtype: DType) -> None:
    tensors = pair(count, dtype)
    expression, nodes = reductions(tensors)
    values = schedule_run(expression, tensors).values
    for name, expected in exact(tensors).items():
        assert values[nodes[name].key] == pytest.approx(np.asarray(expected), rel=1e-12), name
        assert eager(nodes[name], tensors).tobytes() == values[nodes[name].key].tobytes(), name


@pytest.mark.parametrize("mode", ["generated", "interpreted"])
@pytest.mark.parametrize("dtype", WIDTHS, ids=lambda d: d.name)
def test_float_folds_do_not_depend_on_tiles_order_or_backend(dtype: DType, mode: Any) -> None:
    tensors = pair(10 * CHUNK + 77, dtype)
    expression, nodes = reductions(tensors)
    expected = {name: eager(n, tensors).tobytes() for name, n in nodes.items()}
    for tile in (CHUNK, 2 * CHUNK, 3 * CHUNK, 32 * CHUNK):
        for backwards in (False, True):
            result = schedule_run(expression, tensors, mode=mode, tile=tile, backwards=backwards)
            assert {name: result.values[n.key].tobytes() for name, n in nodes.items()} == expected


def test_accumulation_is_in_float64() -> None:
    """In float32 the small terms would vanish beside the large one, and 3e38 squared overflow."""
    x = torch.full((100_000,), 1e-3)
    x[0] = 3e38
    assert ops.gram(x, x)[0, 0] == pytest.approx(float(x[0]) ** 2)
    y = torch.full((1 << 18,), 1.0)
    y[0] = 2.0**24
    assert ops.l1_norm(y) == [2.0**24 + (1 << 18) - 1]


def test_a_gram_matrix_of_three_is_symmetric_and_in_operand_order() -> None:
    xs = [torch.tensor(v) for v in ([1.0, 2.0], [3.0, -1.0], [0.5, 0.25])]
    assert ops.gram(*xs).tolist() == [[5.0, 1.0, 1.0], [1.0, 10.0, 1.25], [1.0, 1.25, 0.3125]]


def test_tensors_of_several_dtypes_are_folded_in_the_widest() -> None:
    a = torch.tensor([1.0, 2.0, 0.5], dtype=torch.bfloat16)
    b = torch.tensor([1 / 3, 1.0, -1.0], dtype=torch.float64)
    expression, nodes = reductions([a, b])
    found = schedule_run(expression, [a, b]).values[nodes["gram"].key]
    assert found.tolist() == ops.gram(a, b).tolist()
    assert found[0, 1] == pytest.approx(1 / 3 + 2.0 - 0.5, rel=1e-15)
    assert found[1, 1] == pytest.approx(float(b[0]) ** 2 + 2, rel=1e-15)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_show_in_the_result(bad: float) -> None:
    x = torch.ones(70_000)
    x[123] = -bad
    assert not np.isfinite(ops.gram(x, x)).any()
    assert not np.isfinite(ops.l1_norm(x)).any()


@pytest.mark.parametrize("shape", [(0,), (0, 4), ()])
def test_empty_and_scalar_tensors_have_norms(shape: tuple[int, ...]) -> None:
    x = torch.full(shape, -2.0)
    assert ops.l1_norm(x).tolist() == [2.0 * x.numel()]
    assert ops.gram(x, x).tolist() == [[4.0 * x.numel()] * 2] * 2


def test_strided_tensors_are_folded_in_logical_order() -> None:
    x = normal(300, 400).T
    assert not x.is_contiguous()
    assert ops.l1_norm(x).tobytes() == ops.l1_norm(x.contiguous()).tobytes()
    assert ops.gram(x, x.flip(0)).tobytes() == ops.gram(x.contiguous(), x.flip(0).contiguous()).tobytes()


@pytest.mark.parametrize(
    ("before", "after", "factor"),
    [
        (6.0, 2.0, 3.0),
        (0.0, 0.0, 1.0),
        (1.0, 0.0, 1.0),
        (1.0, 1e-8, 1.0),
        (1e-8, 1.0, 1.0),
        (2e-7, 1e-7, 2.0),
    ],
)
def test_a_norm_is_restored_unless_there_is_none(before: float, after: float, factor: float) -> None:
    assert restoring_factor(np.array([before]), np.array([after])).tolist() == pytest.approx([factor])


# ---- squares, and counts ---------------------------------------------------------------------------


def counted(tensors: list[Tensor], epsilon: float) -> tuple[Node, dict[str, Node]]:
    """An expression that needs every other fold, in one phase, and their nodes."""
    a, b, c = loads(tensors)
    deltas = [ops.delta(a, c), ops.delta(b, c)]
    found = {
        "squares": ops.squares(*deltas),
        "nonzero": ops.nonzero(deltas[0]),
        "overlap": ops.overlap(*deltas, epsilon=epsilon),
    }
    weights = ops.energy_weights(found["squares"], count=a.spec.numel)
    factors = ops.rescue_factors(found["overlap"], r=0.1, alpha=0.2, epsilon=epsilon)
    merged = ops.overlap_mean(*deltas, factors, epsilon=epsilon)
    limit = ops.unless_empty(0.5, ops.rank_of_share(found["nonzero"], share=0.5))
    return ops.apply_delta(
        ops.apply_delta(c, ops.weighted_sum(*deltas, weights), 1.0), ops.trim(merged, limit), 1.0
    ), found


@pytest.mark.parametrize("mode", ["generated", "interpreted"])
@pytest.mark.parametrize("dtype", WIDTHS, ids=lambda d: d.name)
@pytest.mark.parametrize("count", [1, 63, 4097, CHUNK + 1, 5 * CHUNK + 77])
def test_squares_and_counts_are_right_however_the_tensor_is_cut(count: int, dtype: DType, mode: Any) -> None:
    tensors = [normal(count, dtype=dtype, seed=i) for i in range(3)]
    tensors[0][::3] = tensors[2][::3]  # no change there
    expression, nodes = counted(tensors, 0.5)
    deltas = [(x - tensors[2]).double().numpy() for x in tensors[:2]]
    active = [abs(d) > 0.5 for d in deltas]
    both = active[0] & active[1]
    expected = {
        "squares": [float((d.astype(np.longdouble) ** 2).sum()) for d in deltas],
        "nonzero": [np.count_nonzero(deltas[0])],
        "overlap": [[np.count_nonzero(a & ~both), np.count_nonzero(both)] for a in active],
    }
    for tile, backwards in ((CHUNK, True), (32 * CHUNK, False)):
        values = schedule_run(expression, tensors, mode=mode, tile=tile, backwards=backwards).values
        for name, n in nodes.items():
            assert values[n.key].tobytes() == eager(n, tensors).tobytes(), name
            assert values[n.key] == pytest.approx(np.asarray(expected[name]), rel=1e-12), name


def test_active_means_larger_than_epsilon_and_nan_is_active() -> None:
    a = torch.tensor([0.5, -0.6, 0.0, math.nan, math.inf])
    b = torch.tensor([0.6, 0.6, 0.6, 0.0, math.nan])
    assert ops.overlap(a, b, epsilon=0.5).tolist() == [[1.0, 2.0], [2.0, 2.0]]
    assert ops.nonzero(a).tolist() == [4.0]


@pytest.mark.parametrize("shape", [(0,), (0, 4), ()])
def test_empty_and_scalar_tensors_can_be_counted(shape: tuple[int, ...]) -> None:
    x = torch.full(shape, -2.0)
    n = float(x.numel())
    assert ops.squares(x, x).tolist() == [4 * n] * 2
    assert ops.nonzero(x).tolist() == [n]
    assert ops.overlap(x, x, epsilon=0.1).tolist() == [[0.0, n]] * 2


def test_a_share_of_a_count_is_a_rank_and_none_is_a_threshold_that_keeps_nothing() -> None:
    assert ops.rank_of_share(np.array([10.0]), share=0.39).tolist() == [3.0]
    assert ops.unless_empty(np.array([0.25]), np.array([3.0])).tolist() == [0.25]
    assert ops.unless_empty(np.array([0.25]), np.array([0.0])).tolist() == [math.inf]


@pytest.mark.parametrize(
    ("counts", "factors"),
    [
        ([[2, 1], [0, 1]], [1.25, 1.4]),
        ([[0, 0], [4, 0]], [1.0, 1.0]),
        ([[4, 2], [1, 100]], [1.25, 1.4]),
    ],
)
def test_factors_grow_with_the_ratio_up_to_a_cap(counts: list[list[int]], factors: list[float]) -> None:
    found = ops.rescue_factors(np.array(counts, dtype=np.float64), r=0.5, alpha=0.8, epsilon=1e-5)
    assert found.tolist() == pytest.approx(factors)


def test_a_fence_lies_one_and_a_half_ranges_above_the_median() -> None:
    assert ops.quartile_fence(1.0, 2.0, 4.0).tolist() == [6.5]
