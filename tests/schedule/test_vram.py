"""What is held on GPUs: by hand for small cases, within both budgets or refused by name."""

from __future__ import annotations

import pytest

from mergegraph import ops
from mergegraph.errors import MemoryBudgetError
from mergegraph.graph.graph import Graph, Output, Piece, SourceTensor
from mergegraph.graph.node import Node
from mergegraph.kernels.reduction import CHUNK
from mergegraph.schedule.memory import COMPILER_BYTES, TORCH_BYTES, WRITE_BYTES
from mergegraph.schedule.program import Program
from mergegraph.schedule.tiling import cut, programs
from mergegraph.schedule.vram import (
    ALIGNMENT,
    FINITE_BYTES,
    FOLD_BYTES,
    SLOTS,
    TEMPORARIES,
    TILES,
    WORKERS_PER_GPU,
    Gpus,
    Staging,
    aligned,
    compute_bytes,
    device_bytes,
    fit_gpus,
    input_sizes,
    lifetimes,
    output_sizes,
    pinned,
    staging,
    state_sizes,
)
from mergegraph.tensorspec import DType, TensorSpec

MIB, GIB = 2**20, 2**30
LARGE = (4096, 8192)


def loads(shape: tuple[int, ...], count: int = 2, dtype: DType = DType.BF16) -> list[Node]:
    return [ops.load(i, TensorSpec(shape, dtype)) for i in range(count)]


def average(shape: tuple[int, ...] = LARGE) -> Node:
    return ops.cast(ops.weighted_sum(*loads(shape), (0.5, 0.5)), dtype="BF16")


def arc(shape: tuple[int, ...] = LARGE) -> Node:
    a, b = loads(shape)
    return ops.cast(ops.weighted_sum(a, b, ops.slerp(ops.gram(a, b), 0.3)), dtype="BF16")


def row_arc(shape: tuple[int, ...] = LARGE) -> Node:
    a, b = loads(shape)
    return ops.cast(ops.weighted_sum(a, b, ops.row_arc(a, b, 0.3)), dtype="BF16")


def program(*expressions: Node, name: str = "out") -> Program:
    pieces = tuple(Piece(e, tuple(SourceTensor("m", f"x{i}") for i in range(3)), ()) for e in expressions)
    spec = TensorSpec(expressions[0].spec.shape, expressions[0].spec.dtype)
    (found,) = programs(Graph({name: Output(spec, pieces)}))
    return found


def test_what_goes_there_and_back_is_counted_byte_by_byte() -> None:
    (phase,) = cut(average())
    assert input_sizes(phase, 1000) == [2000, 2000]
    assert output_sizes(phase, 16, 1000) == [2000, 8]
    measure, add = cut(arc())
    assert (input_sizes(measure, 1000), output_sizes(measure, 16, 1000)) == ([2000, 2000], [])
    assert state_sizes(measure, 3 * CHUNK) == [3 * 3 * 8]
    assert state_sizes(add, 3 * CHUNK) == []


def test_numbers_of_rows_and_columns_travel_with_the_tiles_that_use_them() -> None:
    a, b = loads((100, 64))
    shared = ops.row_arc(a, b, 0.3)
    first = ops.weighted_sum(a, b, shared)
    expression = ops.scale(first, ops.restoring_factor(ops.l1_norm(a), ops.l1_norm(first)))
    *_, before, last = cut(expression)
    assert output_sizes(before, 32, 640) == [8 * 10 * 2]
    assert input_sizes(last, 640) == [1280, 1280, 8 * 10 * 2]
    products = ops.column_products(a, b)
    by_column = cut(ops.column_sum(a, b, ops.column_arc(products, 0.5)))[-1]
    assert input_sizes(by_column, 640) == [1280, 1280, 8 * 2 * 64]


def test_parts_of_a_buffer_begin_at_multiples() -> None:
    assert aligned([]) == 0
    assert aligned([1, ALIGNMENT, ALIGNMENT + 1, 0]) == 4 * ALIGNMENT


@pytest.mark.parametrize(
    ("size", "taken"), [(0, 1), (1, 1), (2, 2), (3, 4), (2**20, 2**20), (2**20 + 1, 2**21)]
)
def test_pinned_memory_comes_in_powers_of_two(size: int, taken: int) -> None:
    assert pinned(size) == taken


def test_a_value_is_dropped_after_its_last_use_but_never_one_that_is_needed_at_the_end() -> None:
    a, b, c = loads((100,), 3)
    one, two = ops.delta(b, a), ops.delta(c, a)
    sign = ops.elect_sign(one, two)
    merged = ops.disjoint_merge(sign, one, two, (1.0, 1.0), normalize=True)
    (phase,) = cut(ops.cast(ops.apply_delta(a, merged, 1.0), dtype="BF16"))
    names = {n.key: n.op.name for n in (*phase.loads, *phase.body)}
    dead = dict(zip([n.op.name for n in phase.body], lifetimes(phase), strict=True))
    assert sorted(names[key] for key in dead["disjoint_merge"]) == ["delta", "delta", "elect_sign"]
    assert [names[key] for key in dead["elect_sign"]] == []
    assert sorted(names[key] for key in dead["apply_delta"]) == ["disjoint_merge", "load"]
    measure = cut(arc())[0]
    assert lifetimes(measure) == ()


def test_the_peak_of_a_sum_is_its_operands_its_result_and_scratch() -> None:
    """In float32: two loads, the sum, and what the kernel holds; casting comes later, with less."""
    (phase,) = cut(average())
    assert compute_bytes(phase, 1000) == 1000 * 4 * (2 + 1 + 2 * 2 + TEMPORARIES)


def test_a_fold_is_charged_in_whole_chunks() -> None:
    measure = cut(arc())[0]
    assert compute_bytes(measure, CHUNK) == CHUNK * (2 * 4 + FOLD_BYTES + 2)
    assert compute_bytes(measure, CHUNK + 1) == (CHUNK + 1) * 8 + 2 * CHUNK * (FOLD_BYTES + 2)
    assert FINITE_BYTES < FOLD_BYTES


def test_a_slot_holds_the_largest_tile_of_any_program_and_copies_need_none() -> None:
    small, large = program(average((10, 10))), program(average())
    copied = program(loads((10_000, 10_000))[0])
    tile = 4 * CHUNK
    assert staging([copied], tile) == Staging(0, 0)
    assert staging([small], tile) == Staging(2 * ALIGNMENT, 2 * ALIGNMENT)
    assert staging([small, large, copied], tile) == Staging(2 * 2 * tile, 2 * tile + ALIGNMENT)


def test_what_a_worker_holds_on_its_device_does_not_grow_with_the_tensor() -> None:
    for build in (average, arc, row_arc):
        sizes = [device_bytes([program(build((rows, 8192)))], 16 * CHUNK) for rows in (2048, 4096, 400_000)]
        assert len(set(sizes)) == 1


def test_tiles_are_of_tens_of_megabytes_where_there_is_room() -> None:
    found = fit_gpus([program(arc())], 2, 8 * GIB, 0, Gpus(1, 64 * GIB))
    assert (found.tile, found.workers) == (TILES[0][0] * CHUNK, 2)
    assert found.tile * 2 >= 16 * MIB
    assert found.staging == staging([program(arc())], found.tile)


@pytest.mark.parametrize(
    ("threads", "gpus", "workers"), [(64, 1, WORKERS_PER_GPU), (64, 3, 3 * WORKERS_PER_GPU), (5, 2, 5)]
)
def test_every_gpu_has_a_few_workers_as_far_as_there_are_threads(
    threads: int, gpus: int, workers: int
) -> None:
    found = fit_gpus([program(arc())], threads, 64 * GIB, 0, Gpus(gpus, 64 * GIB))
    assert found.workers == workers
    share = -(-workers // gpus)
    assert found.vram_peak == share * device_bytes([program(arc())], found.tile)


def test_less_memory_means_smaller_tiles_then_fewer_workers_and_no_bound_is_exceeded() -> None:
    one = program(arc())
    seen = []
    for vram in (32 * GIB, 2 * GIB, GIB, GIB // 2, GIB // 4, 100 * MIB, 30 * MIB):
        found = fit_gpus([one], 4, 16 * GIB, 0, Gpus(1, vram))
        assert found.vram_peak <= vram
        seen.append((found.tile, found.workers))
    assert seen == sorted(seen, key=lambda x: (x[0] >= TILES[0][-1] * CHUNK, x[1], x[0]), reverse=True)
    assert len(set(seen)) > 3


def test_a_tight_budget_on_the_host_is_kept_as_well() -> None:
    one, base = program(arc()), COMPILER_BYTES + TORCH_BYTES + WRITE_BYTES
    for extra in (2 * GIB, 200 * MIB, 20 * MIB):
        found = fit_gpus([one], 4, base + extra, 0, Gpus(1, 32 * GIB))
        slots = SLOTS * (pinned(found.staging.inputs) + pinned(found.staging.outputs))
        assert base + found.workers * slots <= found.peak_bytes <= base + extra


def test_too_little_gpu_memory_is_refused_with_the_tensor_the_bytes_and_the_option() -> None:
    todo = [program(average((10, 10)), name="small"), program(arc(), name="large")]
    with pytest.raises(MemoryBudgetError, match=r"^large needs [\d,]+ bytes of GPU memory") as caught:
        fit_gpus(todo, 4, 8 * GIB, 0, Gpus(2, MIB))
    error = caught.value
    assert (error.tensor, error.budget, error.option) == ("large", MIB, "--vram")
    assert "--vram" in str(error.hint)
    enough = fit_gpus(todo, 4, 8 * GIB, 0, Gpus(2, error.needed))
    assert enough.vram_peak == error.needed


def test_too_little_memory_on_the_host_is_refused_as_ever() -> None:
    with pytest.raises(MemoryBudgetError, match=r"^out needs [\d,]+ bytes of working memory") as caught:
        fit_gpus([program(arc())], 4, MIB, 0, Gpus(1, 8 * GIB))
    assert caught.value.option == "--memory"
    assert fit_gpus([program(arc())], 4, caught.value.needed, 0, Gpus(1, 8 * GIB)).workers == 1


def test_a_matrix_that_is_needed_as_a_whole_is_charged_as_a_whole() -> None:
    def whole(side: int) -> int:
        a, b, c = loads((side, side), 3)
        merged = ops.isotropic(ops.delta(b, a), ops.delta(c, a), own=0)
        one = program(ops.cast(ops.apply_delta(a, merged, 1.0), dtype="BF16"))
        return device_bytes([one], CHUNK)

    assert whole(4096) > 3.9 * whole(2048) > 3.9 * 3.9 * whole(1024) * 0.4
