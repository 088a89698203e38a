"""The random generator: exact, uniform, independent, and a function of stream and element alone."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor

from mergegraph import ops
from mergegraph.compiler.seeds import stream_of
from mergegraph.kernels.random import drop_by, uniform
from mergegraph.tensorspec import DType
from tests.methods import formulas
from tests.runtime.harness import Mode, assert_same_bits, loads, normal, schedule_run, stream

MILLION = 1_000_000
STREAMS = [stream_of(seed, tensor, model) for seed in (0, 1) for tensor in "ab" for model in ("x", "y")]


def numbers(key: tuple[float, float], count: int = MILLION, first: int = 0) -> Tensor:
    return uniform(np.array(key), first, count, torch.device("cpu"))


def chi_square(counts: Tensor) -> float:
    """How many standard deviations the statistic is from what equal chances give."""
    expected = float(counts.sum()) / len(counts)
    statistic = float(((counts.double() - expected) ** 2).sum()) / expected
    degrees = len(counts) - 1
    return (statistic - degrees) / math.sqrt(2 * degrees)


def test_numbers_are_those_of_the_definition_in_exact_integers() -> None:
    for key in [*STREAMS[:3], (0.0, 0.0), (2.0**24 - 1, 2.0**24 - 1)]:
        assert numbers(key, 1000).double().tolist() == formulas.uniform(key, 1000).tolist()


def test_the_first_numbers_are_known() -> None:
    """A change of the generator changes every mask that anybody has; this makes it noticed."""
    found = (numbers((0.0, 0.0), 3).double() * 2**24).tolist()
    assert found == [float(x) for x in (formulas.uniform((0.0, 0.0), 3) * 2**24)]
    start = formulas._mixed(0x9E3779B97F4A7C15)
    assert start == 0xE220A8397B1DCDAF  # the first output of SplitMix64 with seed 0, as published


@pytest.mark.parametrize("key", STREAMS[:4], ids=str)
def test_a_million_numbers_are_uniform(key: tuple[float, float]) -> None:
    u = numbers(key)
    assert float(u.min()) >= 0.0
    assert float(u.max()) < 1.0
    assert float(u.double().mean()) == pytest.approx(0.5, abs=5 / math.sqrt(12 * MILLION))
    for bins in (10, 256, 1000):
        assert abs(chi_square(torch.bincount((u.double() * bins).long(), minlength=bins))) < 5


@pytest.mark.parametrize("bit", range(24))
def test_every_bit_is_even(bit: int) -> None:
    ones = int(((numbers(STREAMS[0]).double() * 2**24).long() >> bit & 1).sum())
    assert abs(ones - MILLION / 2) < 5 * math.sqrt(MILLION / 4)


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 4096, 65536])
def test_neighbouring_elements_are_independent(lag: int) -> None:
    u = numbers(STREAMS[0], MILLION + lag)
    cells = (u[:MILLION].double() * 16).long() * 16 + (u[lag:].double() * 16).long()
    assert abs(chi_square(torch.bincount(cells, minlength=256))) < 5


def test_streams_are_independent_of_each_other() -> None:
    """Of other seeds, tensors and models, and of neighbouring keys."""
    keys = [*STREAMS, (5.0, 6.0), (5.0, 7.0), (6.0, 6.0), (6.0, 5.0)]
    drawn = [(numbers(key, 200_000).double() * 16).long() for key in keys]
    for a, b in combinations(drawn, 2):
        assert abs(chi_square(torch.bincount(a * 16 + b, minlength=256))) < 6
        assert abs(chi_square(torch.bincount(a[:-1] * 16 + b[1:], minlength=256))) < 6


def test_any_part_of_a_stream_can_be_drawn_by_itself() -> None:
    """So tiles, threads and resumed runs see the same numbers, far beyond 32 bits too."""
    u = numbers(STREAMS[0], 100_000)
    for first, count in ((0, 1), (1, 10), (65_536, 1), (99_999, 1), (12_345, 54_321)):
        assert_same_bits(numbers(STREAMS[0], count, first), u[first : first + count])
    far = numbers(STREAMS[0], 4, 2**40)
    assert far.unique().numel() == 4
    assert far.tolist() != u[:4].tolist()


def test_a_stream_depends_on_seed_tensor_and_model_and_nothing_else() -> None:
    assert len({*STREAMS}) == len(STREAMS)
    assert stream_of(None, "a", "x") == stream_of(0, "a", "x")
    assert stream_of(12, "a", "x") != stream_of(1, "2a", "x")
    assert stream_of(1, "ab", "c") != stream_of(1, "a", "bc")
    for high, low in STREAMS:
        assert high == int(high)
        assert low == int(low)
        assert 0 <= high < 2**24
        assert 0 <= low < 2**24


@pytest.mark.parametrize("mode", ["generated", "interpreted"])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32, DType.F64], ids=lambda d: d.name)
def test_generated_code_and_torch_drop_the_same_elements(dtype: DType, mode: Mode) -> None:
    x = normal(200_003, dtype=dtype)
    x[x == 0] = 1.0
    (load,) = loads([x])
    changed = ops.delta(load, ops.scale(load, 0.0))
    found = schedule_run(ops.drop(changed, 0.3, ops.stream(0)), [x], mode=mode, tile=65_536, backwards=True)
    kept = (numbers(stream(0), len(x)).double() < np.float32(0.3)) & (x != 0)
    assert_same_bits(found.tensor, torch.where(kept, x.to(found.tensor.dtype), 0.0))


@pytest.mark.parametrize("keep", [0.0, 1e-3, 0.5, 0.999, 1.0])
def test_the_share_that_stays_is_the_chance(keep: float) -> None:
    share = float((ops.drop(torch.ones(MILLION), keep, STREAMS[2]) != 0).double().mean())
    assert share == pytest.approx(keep, abs=5 * math.sqrt(keep * (1 - keep) / MILLION))


def test_each_element_may_have_its_own_chance() -> None:
    chances = torch.linspace(0.0, 1.0, MILLION)
    kept = (drop_by(torch.ones(MILLION), chances, np.array(STREAMS[3])) != 0).double().reshape(10, -1)
    assert kept.mean(dim=1).tolist() == pytest.approx([0.05 + 0.1 * i for i in range(10)], abs=0.01)


def test_what_is_kept_is_kept_exactly_and_dropping_gives_positive_zeros() -> None:
    x = normal(1000, dtype=DType.F64)
    found = ops.drop(x, 0.5, STREAMS[0])
    assert_same_bits(found, torch.where(found != 0, x, torch.zeros_like(x)))
