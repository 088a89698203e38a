"""The proven peak: by hand for small cases, and the same for tensors of any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergegraph import ops
from mergegraph.errors import MemoryBudgetError
from mergegraph.graph.graph import Graph, Output, Piece, SourceTensor
from mergegraph.graph.node import Locality, Node, Op
from mergegraph.kernels.reduction import CHUNK
from mergegraph.schedule.memory import (
    BLOCK_BYTES,
    COMPILER_BYTES,
    JOB_TILES,
    JOBS_PER_WORKER,
    TILE,
    TORCH_BYTES,
    WRITE_BYTES,
    arity,
    buffer_bytes,
    code_bytes,
    fit,
    program_bytes,
    state_bytes,
    tile_elements,
)
from mergegraph.schedule.program import Program
from mergegraph.schedule.tiling import programs
from mergegraph.tensorspec import DType, TensorSpec

ROWS = Op("rows", Locality.ROWWISE, lambda specs, _: TensorSpec(specs[0].shape, DType.F32), workspace=3)
WHOLE = Op("whole", Locality.WHOLE, lambda specs, _: TensorSpec(specs[0].shape, DType.F32), workspace=16)
MIB = 2**20


def loads(shape: tuple[int, ...], dtype: DType = DType.BF16, count: int = 3) -> list[Node]:
    return [ops.load(i, TensorSpec(shape, dtype)) for i in range(count)]


def average(shape: tuple[int, ...], dtype: DType = DType.BF16) -> Node:
    a, b, _ = loads(shape, dtype)
    return ops.cast(ops.weighted_sum(a, b, (0.5, 0.5)), dtype=dtype.name)


def slerp(shape: tuple[int, ...], dtype: DType = DType.BF16) -> Node:
    a, b, _ = loads(shape, dtype)
    return ops.cast(ops.weighted_sum(a, b, ops.slerp(ops.gram(a, b), 0.3)), dtype=dtype.name)


def ties(shape: tuple[int, ...], dtype: DType = DType.BF16) -> Node:
    a, b, c = loads(shape, dtype)
    kept = [ops.keep_largest(ops.delta(x, a), 0.2) for x in (b, c)]
    merged = ops.disjoint_merge(ops.elect_sign(*kept), *kept, (1.0, 1.0), normalize=True)
    return ops.cast(ops.apply_delta(a, merged, 1.0), dtype=dtype.name)


def rows(shape: tuple[int, ...], dtype: DType = DType.BF16) -> Node:
    return ops.cast(ROWS(loads(shape, dtype)[0]), dtype=dtype.name)


def whole(shape: tuple[int, ...], dtype: DType = DType.BF16) -> Node:
    return ops.cast(WHOLE(loads(shape, dtype)[0]), dtype=dtype.name)


def copy(shape: tuple[int, ...], dtype: DType = DType.BF16) -> Node:
    return loads(shape, dtype)[0]


STREAMED: list[Callable[..., Node]] = [copy, average, slerp, ties]


def program(expression: Node, name: str = "w") -> Program:
    sources = tuple(SourceTensor(f"m{i}", name) for i in range(3))
    spec = TensorSpec(expression.spec.shape, expression.spec.dtype)
    (found,) = programs(Graph({name: Output(spec, (Piece(expression, sources),))}))
    return found


def test_buffers_of_a_weighted_sum_are_its_operands_and_its_result() -> None:
    (phase,) = program(average((1000, 4096))).phases
    assert buffer_bytes(phase, 16, TILE) == TILE * (2 + 2 + 2)
    assert buffer_bytes(phase, 16, 1) == CHUNK * 6, "no tile is smaller than a chunk"


def test_a_phase_that_only_measures_has_no_output_but_scratch() -> None:
    measure, combine = program(slerp((1000, 4096))).phases
    assert buffer_bytes(measure, 16, TILE) == TILE * (2 + 2) + 2 * BLOCK_BYTES
    assert buffer_bytes(combine, 16, TILE) == TILE * (2 + 2 + 2)
    (gram,) = measure.reductions
    assert arity(gram) == 2
    assert state_bytes(measure, 10 * CHUNK) == 10 * state_bytes(measure, 1)
    assert state_bytes(measure, 1) == 3 * 8, "three dot products in float64"


def test_counts_do_not_grow_with_the_tensor() -> None:
    first, *_ = program(ties((1000, 4096))).phases
    assert state_bytes(first, 1) == state_bytes(first, 10**9) > 0


def test_tiles_are_whole_chunks_and_chunks_whole_rows() -> None:
    (phase,) = program(rows((1000, 1000))).phases
    assert phase.chunk == 65_000
    assert tile_elements(phase, 2 * CHUNK) == 130_000
    assert tile_elements(phase, 1) == 65_000
    (wide,) = program(rows((3, 1_000_000))).phases
    assert tile_elements(wide, TILE) == 1_000_000


def test_an_interpreted_phase_is_charged_for_every_value_and_its_workspace() -> None:
    (phase,) = program(rows((1000, 1000))).phases
    stored, values = 2 + 2, 4 + (4 + 3) + 4
    elements = tile_elements(phase, TILE)
    row_blocks = 8 * 1000 * 2  # one operand's row and the result's, in float64
    assert elements == TILE // phase.chunk * phase.chunk or elements == phase.chunk
    assert buffer_bytes(phase, 16, TILE) == elements * (stored + values) + row_blocks


def test_an_op_that_needs_the_whole_tensor_is_charged_in_full() -> None:
    small, large = (program_bytes(program(whole((n, 1000))), TILE, 1) for n in (1000, 4000))
    assert 3.9 < large / small < 4.1
    assert large > 4000 * 1000 * (4 + 16)


def test_an_op_may_say_what_it_needs_for_a_whole_tensor() -> None:
    """Here for a square of its shorter side, which no number of bytes per element could say."""
    squared = Op(
        "squared", Locality.WHOLE, WHOLE.infer, workspace=lambda specs, _: 8 * min(specs[0].shape) ** 2
    )
    for shape in ((30, 4000), (300, 400)):
        (phase,) = program(squared(loads(shape)[0])).phases
        elements, stored, values = 120_000, 2 + 4, 4 + 4
        assert buffer_bytes(phase, 32, TILE) == elements * (stored + values) + 8 * shape[0] ** 2


def test_a_whole_tensor_is_charged_once_however_its_size_divides() -> None:
    """One element more than a multiple of 8 must not cost eight times as much."""
    even, odd = (program_bytes(program(whole((n,))), TILE, 1) for n in (800_000, 800_001))
    assert 0 < odd - even < 100


def test_torch_is_charged_where_something_runs_without_generated_code() -> None:
    streamed, interpreted = (code_bytes([program(build((10, 10)))]) for build in (average, whole))
    assert interpreted - streamed == TORCH_BYTES
    assert code_bytes([program(copy((10, 10)))]) == COMPILER_BYTES


@pytest.mark.parametrize("build", STREAMED)
def test_a_streamed_program_costs_the_same_at_any_size(build: Callable[..., Node]) -> None:
    """A gigabyte, or the nine of the largest embeddings there are: a few numbers more for each chunk."""
    shapes = ((128_000, 4096), (262_144, 16_384))
    usual, huge = (program_bytes(program(build(shape)), TILE, 4) for shape in shapes)
    assert huge - usual < 32 * MIB
    assert huge < 64 * MIB


@pytest.mark.parametrize("build", [*STREAMED, rows])
def test_costs_grow_with_workers_and_tiles(build: Callable[..., Node]) -> None:
    one = program(build((1000, 4096)))
    costs = [program_bytes(one, TILE, workers) for workers in (1, 2, 3)]
    assert costs == [costs[0], 2 * costs[0], 3 * costs[0]]
    assert program_bytes(one, CHUNK, 1) < costs[0]


@given(st.integers(1, 10**7), st.integers(1, 8), st.sampled_from([TILE, CHUNK, 5 * CHUNK]))
def test_jobs_states_and_what_is_held_are_all_counted(numel: int, workers: int, tile: int) -> None:
    one = program(slerp((numel,)))
    measure = one.phases[0]
    least = buffer_bytes(measure, 16, tile) + JOBS_PER_WORKER * (
        state_bytes(measure, JOB_TILES * tile_elements(measure, tile)) + state_bytes(measure, numel)
    )
    assert program_bytes(one, tile, workers) >= workers * least


# ---- fitting ---------------------------------------------------------------------------------------------


def fixed(graph_bytes: int = 0) -> int:
    return COMPILER_BYTES + WRITE_BYTES + graph_bytes


def test_with_room_enough_all_threads_and_large_tiles_are_used() -> None:
    one = program(ties((1000, 4096)))
    chosen = fit([one], 8, 2**40, 12_345)
    assert (chosen.workers, chosen.tile) == (8, TILE)
    assert chosen.peak_bytes >= program_bytes(one, TILE, 8) + 12_345


def test_smaller_tiles_are_tried_before_fewer_threads_and_nothing_exceeds_the_budget() -> None:
    one = program(average((1000, 4096)))
    roomy = fit([one], 4, 2**40, 0)
    settings = []
    budget = roomy.peak_bytes
    while True:
        try:
            chosen = fit([one], 4, budget, 0)
        except MemoryBudgetError as error:
            assert error.needed > budget
            assert error.needed == settings[-1][2], "the least setting is what is asked for"
            break
        assert chosen.peak_bytes <= budget
        settings.append((chosen.workers, chosen.tile, chosen.peak_bytes))
        budget = chosen.peak_bytes - 1
    assert [s[:2] for s in settings[:2]] == [(4, TILE), (4, CHUNK)]
    assert settings[-1][:2] == (1, CHUNK)
    assert [s[2] for s in settings] == sorted((s[2] for s in settings), reverse=True)
    assert [s[0] for s in settings] == sorted((s[0] for s in settings), reverse=True)


def test_the_error_names_the_tensor_that_needs_most() -> None:
    listed = [
        program(average((10, 10)), "small"),
        program(whole((5000, 1000)), "huge"),
        program(slerp((9,)), "tiny"),
    ]
    with pytest.raises(MemoryBudgetError, match=r"^huge needs .* bytes") as caught:
        fit(listed, 4, 64 * MIB, 0)
    assert caught.value.tensor == "huge"
    assert fit(listed, 4, caught.value.needed, 0).workers == 1


def test_the_largest_of_programs_that_share_an_expression_counts() -> None:
    """Thousands of tensors share one expression; the pieces of one may be of different sizes."""
    a = program(whole((10, 1000)), "a")
    shared: list[Any] = [
        Program(f"w{n}", 0, TensorSpec((n, 1000), DType.BF16), a.phases, a.sources, (), None, False)
        for n in (1, 9, 3)
    ]
    assert fit(shared, 1, 2**40, 0).peak_bytes == fit([shared[1]], 1, 2**40, 0).peak_bytes


def test_a_plan_without_tensors_needs_only_itself() -> None:
    assert fit([], 2, 2**40, 100).peak_bytes == fixed(100)
    with pytest.raises(MemoryBudgetError, match="the plan itself"):
        fit([], 2, 10, 100)


@pytest.mark.parametrize("build", STREAMED)
def test_tensors_of_no_or_one_element_are_planned_like_others(build: Callable[..., Node]) -> None:
    for shape in ((), (0,), (3, 0), (1,)):
        assert fit([program(build(shape))], 2, 2**30, 0).workers == 2
