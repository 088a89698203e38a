"""The k-th largest magnitude is found exactly, by counting in brackets of float bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mergegraph import ops
from mergegraph.graph.node import Node
from mergegraph.kernels import batched, folds
from mergegraph.kernels.reduction import CHUNK, Span
from mergegraph.kernels.select import around, narrow
from mergegraph.ops.selection import SAMPLE, SAMPLED
from mergegraph.runtime.executor import phase_functions
from mergegraph.runtime.progress import Progress
from mergegraph.runtime.workers import Worker
from mergegraph.schedule.memory import TILE
from mergegraph.tensorspec import DType
from tests.runtime.harness import Memory, assert_same_bits, loads, normal, program_of, schedule_run

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
@pytest.mark.parametrize("kind", ["normal", "equal", "zero", "few values", "one", "small"])
def test_it_is_exact_over_many_tiles(kind: str, dtype: DType, mode: str) -> None:
    count = {"one": 1, "small": 12_345}.get(kind, 3 * CHUNK + 1000)
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


# ---- counting in a bracket -------------------------------------------------------------------------------


def counted(x: Tensor, low: int, shift: int, span: int, bins: int) -> np.ndarray:  # type: ignore[type-arg]
    """The reference: above the bracket; in each bin; not the first pattern of its bin."""
    offsets = bits_of(x).astype(object) - low
    inside = [int(o) for o in offsets if 0 <= o <= span]
    counts, inexact = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
    for o in inside:
        counts[o >> shift] += 1
        inexact[o >> shift] += o & ((1 << shift) - 1) != 0
    return np.concatenate([[int((offsets > span).sum())], counts, inexact])


@pytest.mark.parametrize("kernel", ["compiled", "torch"])
@pytest.mark.parametrize("dtype", [DType.F32, DType.F64], ids=lambda d: d.name)
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("count", [1, 7, 4096, 9001])
def test_a_histogram_counts_above_a_bracket_and_in_it(
    kernel: str, dtype: DType, share: float, count: int
) -> None:
    x = normal(count, dtype=dtype, spread=1e-2)
    ordered = np.sort(bits_of(x)).astype(object)
    low, high = (
        int(ordered[int(count * (0.5 - share / 2))]),
        int(ordered[int((count - 1) * (0.5 + share / 2))]),
    )
    span, bits = max(high - low, 0), 6
    shift = max(0, span.bit_length() - bits)
    bracket = np.array([low, shift, span, int(ordered[count // 2])], dtype=np.int64)
    attrs = {"width": 63 if dtype is DType.F64 else 31, "bits": bits}
    if kernel == "compiled":
        found = folds.histogram([x], [bracket], attrs)
    else:
        state = torch.zeros(1, 1 + 2 * 2**bits, dtype=torch.int64)
        batched.histogram(state, [x], Span(0, CHUNK), [bracket], attrs)
        found = state[0].numpy()
    assert found.tolist() == counted(x, low, shift, span, 1 << bits).tolist()


@pytest.mark.parametrize("kernel", ["compiled", "torch"])
def test_a_histogram_without_a_bracket_counts_everything(kernel: str) -> None:
    x = torch.cat([normal(5000), torch.tensor([0.0, -0.0, math.inf, math.nan, 1e-45])])
    attrs = {"width": 31, "bits": 11}
    if kernel == "compiled":
        found = folds.histogram([x], [], attrs)
    else:
        state = torch.zeros(1, 1 + 2 * 2**11, dtype=torch.int64)
        batched.histogram(state, [x], Span(0, CHUNK), [], attrs)
        found = state[0].numpy()
    assert found.tolist() == counted(x, 0, 20, 2**31 - 1, 2**11).tolist()


# ---- brackets --------------------------------------------------------------------------------------------


def narrowed(x: Tensor, k: int, bracket: np.ndarray, bits: int) -> np.ndarray:  # type: ignore[type-arg]
    attrs = {"width": 63 if x.dtype is torch.float64 else 31, "bits": bits}
    found: np.ndarray = narrow(  # type: ignore[type-arg]
        folds.histogram([x], [bracket], attrs), np.array([float(k)]), bracket, **attrs
    )
    return found


@given(data=st.data(), width=st.sampled_from([32, 64]), bits=st.sampled_from([2, 11, 15]))
def test_any_bracket_leads_to_the_answer_even_one_that_misses_it(
    data: st.DataObject, width: int, bits: int
) -> None:
    x = of_bits(data.draw(patterns(width)), width)
    k = data.draw(st.integers(1, x.numel()))
    most = (1 << (width - 1)) - 1
    low = data.draw(st.integers(0, most))
    high = data.draw(st.integers(low, most))
    shift = max(0, (high - low).bit_length() - bits)
    bracket = np.array([low, shift, high - low, data.draw(st.integers(low, high))], dtype=np.int64)
    for _ in range(1 + -(-(width - 1) // bits)):
        bracket = narrowed(x, k, bracket, bits)
    assert bracket[1] == -1
    assert int(bracket[0]) == int(np.sort(bits_of(x))[-k])


def test_a_bracket_that_was_narrowed_to_one_number_stays() -> None:
    found = np.array([7, -1, 0, 7])
    assert narrow(np.zeros(0), np.array([3.0]), found, width=31, bits=11) is found


def test_numbers_with_few_bits_are_settled_by_one_pass() -> None:
    """As differences of 16-bit weights are: what no bin tells apart is not there."""
    x = (normal(10_000) * 64).round() / 64
    everything = np.array([0, 31 - 15, 2**31 - 1, 0])
    assert narrowed(x, 3000, everything, 15)[1] == -1


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("kind", ["normal", "mostly zero", "equal", "two scales"])
@pytest.mark.parametrize("part", [0.001, 0.2, 0.5, 0.99])
def test_a_sample_suggests_a_bracket_that_holds_the_answer_and_little_else(
    kind: str, part: float, share: bool
) -> None:
    x = normal(1 << 16, spread=1e-3)
    if kind == "mostly zero":
        x[torch.arange(len(x)) % 3 != 1] = 0
    elif kind == "equal":
        x = torch.full_like(x, 0.25)
    elif kind == "two scales":
        x[: 1 << 15] *= 100
    nonzero = int((x != 0).sum())
    wanted = max(1, int(part * (nonzero if share else len(x))))
    counts = folds.histogram([x[::16].contiguous()], [], {"width": 31, "bits": 16})
    rank = np.array([part if share else float(wanted)])
    found = around(counts, rank, width=31, bits=15, total=len(x), share=share)
    low, shift, span, guess = (int(i) for i in found)
    assert low <= int(np.sort(bits_of(x))[-wanted]) <= low + span
    assert low <= guess <= low + span
    assert span >> shift < 1 << 15
    inside = bits_of(x)
    inside = inside[(inside >= low) & (inside <= low + span) & (inside != guess)]
    assert len(inside) <= 0.2 * len(x)


def test_a_sample_of_nothing_suggests_everything() -> None:
    found = around(np.zeros(1 + 2 * 16), np.array([1.0]), width=31, bits=15, total=5, share=False)
    assert found.tolist() == [0, 16, 2**31 - 1, 0]


# ---- whole tensors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["generated", "interpreted"])
@pytest.mark.parametrize("dtype", [DType.F32, DType.F64], ids=lambda d: d.name)
@pytest.mark.parametrize("kind", ["normal", "sorted", "few values", "an outlier", "zero but for one"])
def test_it_is_exact_where_a_sample_comes_first(kind: str, dtype: DType, mode: str) -> None:
    """Also where the sample misleads: in a sorted tensor, and where all that matters is one element."""
    count = SAMPLED + 4097
    x = normal(count, dtype=dtype, spread=1e-3)
    if kind == "sorted":
        x = x.sort().values
    elif kind == "few values":
        x = (x * 3000).round() / 3
    elif kind == "an outlier":
        x[-1] = 1e6
    elif kind == "zero but for one":
        x = torch.zeros_like(x)
        x[count // 2] = 1e-30
    (load,) = loads([x])
    for k in (1, 2, count // 3, count):
        threshold = ops.kth_largest_magnitude(load, k)
        result = schedule_run(ops.trim(delta_of(load), threshold), [x], mode=mode)  # type: ignore[arg-type]
        (found,) = result.values[threshold.key]
        assert found == sorted_magnitude(x, k)
        assert found == ops.kth_largest_magnitude(x, k)[0]


def test_a_wrong_guess_of_the_rank_costs_a_pass_and_not_the_result() -> None:
    x = normal(SAMPLED, spread=1e-3)
    (load,) = loads([x])
    for share in (0.0, 0.3, 1.0):
        threshold = ops.kth_largest_magnitude(
            load, ops.rank_of_share(ops.nonzero(load), share=0.5), share=share
        )
        result = schedule_run(ops.trim(delta_of(load), threshold), [x])
        (found,) = result.values[threshold.key]
        assert found == sorted_magnitude(x, int(0.5 * int((x != 0).sum())))


def test_passes_that_have_nothing_to_find_out_read_nothing() -> None:
    x = ((normal(SAMPLED) * 64).round() / 64).to(torch.bfloat16)
    (load,) = loads([x])
    expression = ops.trim(delta_of(load), ops.kth_largest_magnitude(load, SAMPLED // 2))
    program = program_of(expression, 1)
    memory = Memory({"x0": x}, program.spec.nbytes)
    worker = Worker(memory, memory, phase_functions([program]))
    progress = Progress(program, TILE)
    jobs = progress.start()
    while jobs:
        jobs = [follow for job in jobs for follow in progress.absorb(worker.execute(job))]
    assert progress.tally.read == program.streamed_bytes == x.nbytes // SAMPLE + 2 * x.nbytes


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
