"""The k-th largest magnitude is found exactly, from histograms of the float bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mergegraph import ops
from mergegraph.graph.node import Node, walk
from mergegraph.kernels.reduction import CHUNK
from mergegraph.tensorspec import DType
from tests.runtime.harness import assert_same_bits, eager, loads, normal, schedule_run

_INTEGER = {torch.float32: np.uint32, torch.float64: np.uint64}


def bits_of(x: Tensor) -> np.ndarray:  # type: ignore[type-arg]
    """The magnitude bits: they order as magnitudes do, with NaN above infinity."""
    bits = x.reshape(-1).numpy().view(_INTEGER[x.dtype])
    return bits & bits.dtype.type(np.iinfo(bits.dtype).max >> 1)


def sorted_magnitude(x: Tensor, k: int) -> float:
    """The reference: sort, and take the k-th from the top."""
    bits = np.sort(bits_of(x))[-k:][:1]
    return float(torch.from_numpy(bits.view(x.numpy().dtype)).double()[0])


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def of_bits(patterns: list[int], width: int) -> Tensor:
    kind, real = (np.uint32, np.float32) if width == 32 else (np.uint64, np.float64)
    return torch.from_numpy(np.array(patterns, dtype=kind).view(real))


def patterns(width: int) -> st.SearchStrategy[list[int]]:
    """Any bits at all, with many repeats, zeros, subnormals, infinities and NaNs among them."""
    exponents = 0x7F800000 if width == 32 else 0x7FF0000000000000
    special = [0, 1, 2, exponents - 1, exponents, exponents + 1, 1 << (width - 1), (1 << width) - 1]
    one = st.one_of(st.sampled_from(special), st.integers(0, (1 << width) - 1), st.integers(0, 70_000))
    return st.lists(one, min_size=1, max_size=40)


@given(data=st.data(), width=st.sampled_from([32, 64]))
def test_it_is_the_kth_of_the_sorted_magnitudes(data: st.DataObject, width: int) -> None:
    x = of_bits(data.draw(patterns(width)), width)
    k = data.draw(st.integers(1, x.numel()))
    (found,) = ops.kth_largest_magnitude(x, k)
    assert same(found, sorted_magnitude(x, k))


@pytest.mark.parametrize("mode", ["generated", "interpreted"])
@pytest.mark.parametrize("dtype", [DType.F32, DType.F64], ids=lambda d: d.name)
@pytest.mark.parametrize("kind", ["normal", "equal", "zero", "few values", "one"])
def test_it_is_exact_over_many_tiles(kind: str, dtype: DType, mode: str) -> None:
    count = 1 if kind == "one" else 3 * CHUNK + 1000
    x = normal(count, dtype=dtype, spread=1e-3)
    if kind == "equal":
        x = torch.full_like(x, -0.7)
    elif kind == "zero":
        x = torch.zeros_like(x)
    elif kind == "few values":
        x = (x * 3000).round() / 3
    (load,) = loads([x])
    for k in sorted({1, max(1, count // 3), count}):
        threshold = ops.kth_largest_magnitude(load, k)
        result = schedule_run(ops.trim(delta_of(load), threshold), [x], mode=mode, tile=CHUNK)  # type: ignore[arg-type]
        (found,) = result.values[threshold.key]
        assert found == sorted_magnitude(x, k)
        kept = int((result.tensor != 0).sum())
        assert kept == int(((x.abs() >= found) & (x != 0)).sum())


def delta_of(x: Node) -> Node:
    """x - 0·x: what is trimmed must be a difference."""
    return ops.delta(x, ops.scale(x, 0.0))


@pytest.mark.parametrize("dtype", [DType.F32, DType.F64], ids=lambda d: d.name)
def test_every_histogram_counts_the_bits_it_says(dtype: DType) -> None:
    x = normal(2 * CHUNK + 5, dtype=dtype, spread=1e-2)
    width = 31 if dtype is DType.F32 else 63
    (load,) = loads([x])
    nodes = [n for n in walk([ops.kth_largest_magnitude(load, 9)]) if n.op.name == "histogram"]
    assert len(nodes) == (2 if width == 31 else 4)
    magnitudes = bits_of(x).astype(np.uint64)
    wanted, shift = int(np.sort(magnitudes)[-9]), width
    for n in nodes:
        size = n.attributes["bits"]
        inside = magnitudes[magnitudes >> np.uint64(shift) == wanted >> shift]
        shift -= size
        digits = (inside >> np.uint64(shift)) & np.uint64((1 << size) - 1)
        counts = np.bincount(digits.astype(np.int64), minlength=1 << size)
        assert eager(n, [x]).tolist() == counts.tolist()
    assert shift == 0


def test_selection_extends_the_prefix_and_lowers_the_rank() -> None:
    counts = np.array([5, 0, 3, 2], dtype=np.int64)
    for rank, expected in [(1, [3, 1]), (2, [3, 2]), (3, [2, 1]), (5, [2, 3]), (6, [0, 1]), (10, [0, 5])]:
        found = ops.select(counts, np.array([1, rank]), bits=2)
        assert found.tolist() == [4 + expected[0], expected[1]]


class TestKeepLargest:
    def test_density_one_is_the_tensor_itself_and_zero_keeps_nothing(self) -> None:
        x = torch.tensor([1.0, -2.0, 0.0])
        assert ops.keep_largest(x, 1.0) is x
        assert ops.keep_largest(x, 1.5) is x
        assert ops.keep_largest(x, 0.0).tolist() == [0.0, 0.0, 0.0]
        assert ops.keep_largest(x, -0.5).tolist() == [0.0, 0.0, 0.0]

    def test_at_least_one_element_stays_at_any_density_above_zero(self) -> None:
        assert ops.keep_largest(torch.tensor([1.0, -2.0, 0.5]), 1e-9).tolist() == [0.0, -2.0, 0.0]

    def test_equals_of_the_threshold_all_stay(self) -> None:
        x = torch.tensor([1.0, -1.0, 1.0, 3.0, 0.5])
        assert ops.keep_largest(x, 0.4).tolist() == [1.0, -1.0, 1.0, 3.0, 0.0]

    def test_an_empty_tensor_stays_empty(self) -> None:
        assert ops.keep_largest(torch.empty(0, 3), 0.5).shape == (0, 3)

    def test_nan_is_kept_to_be_reported(self) -> None:
        x = torch.tensor([1.0, math.nan, 2.0, 0.5])
        kept = ops.keep_largest(x, 0.5)
        assert kept.isnan().tolist() == [False, True, False, False]
        assert kept[[0, 2, 3]].tolist() == [0.0, 2.0, 0.0]

    @given(
        values=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=60),
        density=st.floats(0, 1),
    )
    def test_it_keeps_what_a_sort_would_and_its_equals(self, values: list[float], density: float) -> None:
        x = torch.tensor(values, dtype=torch.float32)
        kept = ops.keep_largest(x, density)
        if density in (0.0, 1.0):
            return
        order = sorted((abs(float(v)) for v in x), reverse=True)
        threshold = order[max(1, int(density * len(values))) - 1]
        assert_same_bits(kept, torch.where(x.abs() >= threshold, x, torch.zeros(())))
