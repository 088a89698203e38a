"""What the methods on singular vectors do with matrices that have structure, and what they cost."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mergegraph import ops
from mergegraph.errors import MemoryBudgetError
from mergegraph.graph.node import Locality, walk
from mergegraph.kernels.precision import DOUBLE_UP_TO
from mergegraph.methods import get_method
from mergegraph.methods.base import MergeMethod
from mergegraph.schedule.memory import TORCH_BYTES, fit
from mergegraph.tensorspec import DType, TensorSpec
from tests.methods.arguments import build, eager_merge, merge_expression
from tests.methods.test_formulas import merge
from tests.runtime.harness import assert_same_bits, normal, program_of, schedule_run

METHODS = [pytest.param(get_method(name), id=name) for name in ("tsv", "iso")]


def change(name: str, *deltas: Tensor, **shared: Any) -> Tensor:
    """The merged task vector over a base of zeros."""
    return merge(name, torch.zeros_like(deltas[0]), list(deltas), shared, [{}] * len(deltas))


def low_rank(rows: int, columns: int, rank: int, seed: int = 0) -> Tensor:
    left, right = (
        normal(rows, rank, dtype=DType.F64, seed=seed),
        normal(rank, columns, dtype=DType.F64, seed=9),
    )
    return left @ right


def diagonal(*numbers: float) -> Tensor:
    return torch.diag(torch.tensor(numbers, dtype=torch.float64))


# ---- task singular vectors -------------------------------------------------------------------------


def test_tasks_in_different_directions_are_added_untouched() -> None:
    a, b = diagonal(3, 2, 0, 0), diagonal(0, 0, 5, 4)
    torch.testing.assert_close(change("tsv", a, b), a + b)


def test_each_task_keeps_its_largest_directions_only() -> None:
    found = change("tsv", diagonal(9, 2, 0, 0), diagonal(0, 0, 8, 1), rank=0.25)
    torch.testing.assert_close(found, diagonal(9, 0, 8, 0))


def test_directions_that_interfere_are_pushed_apart() -> None:
    """Two vectors at an angle of 60 degrees become perpendicular, each moved by 15."""
    half = np.sqrt(0.75)
    a, b = (
        torch.tensor([[2.0, 0.0], [0.0, 0.0]]).double(),
        torch.tensor([[0.0, 1.0], [0.0, 2 * half]]).double(),
    )
    u, v = np.array([[1.0, 0.5], [0.0, half]]), np.eye(2)
    p, _, q = np.linalg.svd(u)
    expected = (p @ q) @ np.diag([2.0, 2 * np.sqrt(0.25 + half**2)]) @ v
    torch.testing.assert_close(change("tsv", a, b), torch.from_numpy(expected))


@pytest.mark.parametrize("copies", [2, 3])
def test_the_same_change_in_all_models_is_that_change(copies: int) -> None:
    """As far as it fits into each model's share of the directions."""
    a = low_rank(12, 18, 4)
    torch.testing.assert_close(change("tsv", *[a] * copies), a)


def test_opposite_changes_cancel() -> None:
    a = low_rank(12, 18, 4)
    torch.testing.assert_close(change("tsv", a, -a), torch.zeros_like(a), rtol=0, atol=1e-12)


# ---- an isotropic spectrum -------------------------------------------------------------------------


def test_every_direction_becomes_equally_strong() -> None:
    found = change("iso", diagonal(1, 4, 0), diagonal(0, 0, 10))
    torch.testing.assert_close(found, diagonal(5, 5, 5))
    values = torch.linalg.svdvals(
        change("iso", normal(9, 14, dtype=DType.F64), normal(9, 14, dtype=DType.F64, seed=1))
    )
    torch.testing.assert_close(values, values.mean().expand(9))


def test_a_change_of_low_rank_stays_of_low_rank() -> None:
    """Directions of a singular value of zero are whatever rounding makes them."""
    a, b = low_rank(30, 40, 3), low_rank(30, 40, 3, seed=1)
    found = change("iso", a, b)
    values = torch.linalg.svdvals(found)
    torch.testing.assert_close(values[:3], torch.linalg.svdvals(a + b)[:3].mean().expand(3))
    assert values[3:].max() < 1e-10 * values[0]


def test_directions_of_one_model_join_the_common_ones() -> None:
    """Both models share the first direction; the next largest of each is its own."""
    a, b = diagonal(9, 0, 3, 0), diagonal(9, 4, 0, 0)
    found = change("iso", a, b, common=1 / 3 + 0.01)  # one of four, then one and a half for each
    assert torch.equal(found != 0, diagonal(1, 1, 1, 0) != 0)
    torch.testing.assert_close(
        found.diagonal()[:3], torch.full((3,), float(found[0, 0]), dtype=torch.float64)
    )


# ---- in general ------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"common": 0.5}, {"rank": 0.7}])
@pytest.mark.parametrize("method", METHODS)
def test_rotated_models_merge_to_the_rotated_merge(method: MergeMethod, settings: dict[str, Any]) -> None:
    """So neither signs nor the order of singular vectors can matter."""
    if any(method.parameter(name) is None for name in settings):
        return
    a, b = (normal(14, 20, dtype=DType.F64, seed=i) for i in range(2))
    turn, _ = torch.linalg.qr(normal(14, 14, dtype=DType.F64, seed=7))
    found = change(method.name, turn @ a, turn @ b, **settings)
    torch.testing.assert_close(found, turn @ change(method.name, a, b, **settings), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_transposed_matrix_merges_to_the_transposed_merge(method: MergeMethod) -> None:
    a, b = (normal(14, 20, dtype=DType.F64, seed=i) for i in range(2))
    torch.testing.assert_close(
        change(method.name, a.T, b.T), change(method.name, a, b).T, rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4), (0,), (0, 3)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_matrix_takes_the_mean(method: MergeMethod, shape: tuple[int, ...]) -> None:
    a, b = (normal(*shape, dtype=DType.F64, seed=i) for i in range(2))
    torch.testing.assert_close(change(method.name, a, b), (a + b) / 2)
    expression = merge_expression(method, [a, a, b], {}, DType.F64)
    assert all(n.op.locality is not Locality.WHOLE for n in walk([expression]))


@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_may_be_told_to_take_the_mean(method: MergeMethod) -> None:
    a, b = (normal(5, 6, dtype=DType.F64, seed=i) for i in range(2))
    torch.testing.assert_close(change(method.name, a, b, decompose=False), (a + b) / 2)


@pytest.mark.parametrize("method", METHODS)
def test_one_number_that_is_not_finite_spoils_the_matrix_and_is_counted(method: MergeMethod) -> None:
    tensors = [normal(6, 7, seed=i) for i in range(3)]
    tensors[1][2, 3] = torch.inf
    found = schedule_run(merge_expression(method, tensors, {}, DType.F32), tensors)
    assert found.nonfinite == 42


@pytest.mark.parametrize("method", METHODS)
def test_large_matrices_are_decomposed_in_their_own_dtype(method: MergeMethod) -> None:
    """And agree with float64 as far as float32 goes, where singular values and directions differ."""
    rows, columns = 8, DOUBLE_UP_TO // 8 + 1000
    sizes = 2.0 ** -torch.arange(rows, dtype=torch.float32)[:, None]
    changes = [sizes * normal(rows, columns), sizes.flip(0) * normal(rows, columns, seed=1)]
    tensors = [torch.zeros(rows, columns), *changes]
    found = build(method, list(tensors), {})
    assert found.dtype is torch.float32
    exact = build(method, [x.double() for x in tensors], {})
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


THREADS = """
import hashlib, sys, torch
torch.set_num_threads(int(sys.argv[1]))
from tests.methods.arguments import build
from tests.runtime.harness import normal
from mergegraph.methods import get_method
tensors = [normal(300, 400, seed=i) for i in range(3)]
found = build(get_method(sys.argv[2]), tensors, {})
assert torch.get_num_threads() == int(sys.argv[1])
print(hashlib.sha256(found.numpy().tobytes()).hexdigest())
"""


@pytest.mark.parametrize("method", METHODS)
def test_the_threads_of_torch_change_no_bit(method: MergeMethod) -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", THREADS, threads, method.name], capture_output=True, text=True, check=True
        ).stdout
        for threads in ("1", "2")
    ]
    assert found[0] == found[1]


# ---- memory ----------------------------------------------------------------------------------------


def expression(method: MergeMethod, *shape: int, dtype: DType = DType.BF16) -> Any:
    loads = [ops.load(i, TensorSpec(shape, dtype)) for i in range(3)]
    return ops.cast(build(method, loads, {}), dtype=dtype.name)


@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_that_does_not_fit_is_named_before_anything_is_read(method: MergeMethod) -> None:
    program = program_of(expression(method, 8192, 8192), 3)
    with pytest.raises(MemoryBudgetError, match=r"^out needs [\d,]+ bytes of working memory") as caught:
        fit([program], 4, 2**30, 0)
    needed = caught.value.needed
    assert needed > TORCH_BYTES + 8192 * 8192 * 4 * 10, "operands, vectors and what LAPACK takes"
    assert fit([program], 4, needed, 0).workers == 1
    with pytest.raises(MemoryBudgetError):
        fit([program], 4, needed - 1, 0)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_matrix_is_streamed_and_needs_no_torch(method: MergeMethod) -> None:
    small = fit([program_of(expression(method, 8192 * 8192), 3)], 1, 2**40, 0)
    assert small.peak_bytes < TORCH_BYTES


@pytest.mark.parametrize("method", METHODS)
def test_small_matrices_are_charged_for_float64_and_large_ones_for_their_dtype(method: MergeMethod) -> None:
    def per_element(side: int) -> float:
        (phase,) = program_of(expression(method, side, side), 3).phases
        (whole,) = [n for n in phase.body if n.op.locality is Locality.WHOLE]
        return whole.workspace_bytes(side * side) / side**2

    assert 1.9 < per_element(1024) / per_element(1448) < 2.1


@pytest.mark.parametrize("method", METHODS)
def test_a_run_gives_the_bits_of_the_method(method: MergeMethod) -> None:
    tensors = [normal(257, 129, dtype=DType.BF16, seed=i) for i in range(3)]
    found = schedule_run(merge_expression(method, tensors, {}, DType.BF16), tensors)
    assert_same_bits(found.tensor, eager_merge(method, tensors, {}, DType.BF16))
