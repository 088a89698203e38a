"""Expressions are cut at their reductions; what a later phase needs again is read again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mergegraph import ops
from mergegraph.errors import GraphError
from mergegraph.graph.graph import Graph, Output, Piece, SourceTensor
from mergegraph.graph.node import Locality, Node, Op, walk
from mergegraph.kernels.reduction import CHUNK
from mergegraph.ops.selection import SAMPLE, SAMPLED
from mergegraph.schedule.program import Phase, marks_bytes, marks_shape
from mergegraph.schedule.tiling import MARKS_BYTES, cut, programs
from mergegraph.tensorspec import DType, TensorSpec

SPEC = TensorSpec((300, 500), DType.BF16)
A, B, C = (ops.load(i, SPEC) for i in range(3))

ROWS = Op("rows", Locality.ROWWISE, lambda specs, _: specs[0])
WHOLE = Op("whole", Locality.WHOLE, lambda specs, _: specs[0])


def average() -> Node:
    return ops.cast(ops.weighted_sum(A, B, (0.5, 0.5)), dtype="BF16")


def slerp() -> Node:
    return ops.cast(ops.weighted_sum(A, B, ops.slerp(ops.gram(A, B), 0.3)), dtype="BF16")


def ties(shape: tuple[int, ...] = SPEC.shape, rescale: bool = False) -> Node:
    kept = []
    a, b, c = (ops.load(i, TensorSpec(shape, DType.BF16)) for i in range(3))
    for x in (b, c):
        change = ops.delta(x, a)
        trimmed = ops.keep_largest(change, 0.2)
        kept.append(ops.restore_l1(trimmed, change) if rescale else trimmed)
    merged = ops.disjoint_merge(ops.elect_sign(*kept), *kept, (1.0, 1.0), normalize=True)
    return ops.cast(ops.apply_delta(a, merged, 1.0), dtype="BF16")


def restored(shape: tuple[int, ...] = SPEC.shape) -> Node:
    return ties(shape, rescale=True)


def normed(shape: tuple[int, ...] = SPEC.shape) -> Node:
    """One operand is trimmed as it is, the other is scaled by a norm before."""
    a, b, c = (ops.load(i, TensorSpec(shape, DType.BF16)) for i in range(3))
    change = ops.delta(b, a)
    scaled = ops.scale(ops.delta(c, a), ops.restoring_factor(ops.l1_norm(change), (1.0,)))
    kept = [ops.keep_largest(change, 0.2), ops.keep_largest(scaled, 0.2)]
    return ops.cast(ops.weighted_sum(*kept, (1.0, 2.0)), dtype="BF16")


def uneven() -> Node:
    """One operand needs two passes before it is known, the other none."""
    change = ops.delta(B, A)
    return ops.cast(ops.weighted_sum(ops.keep_largest(change, 0.5), change, (1.0, 2.0)), dtype="BF16")


EXPRESSIONS: list[Callable[[], Node]] = [average, slerp, ties, restored, normed, uneven]


def names(nodes: tuple[Node, ...]) -> list[str]:
    return [n.op.name for n in nodes]


def test_no_reduction_means_one_phase() -> None:
    (phase,) = cut(average())
    assert names(phase.loads) == ["load", "load"]
    assert names(phase.body) == ["weighted_sum", "cast"]
    assert names(phase.stats) == names(phase.small) == ["constant"]
    assert phase.reductions == ()
    assert phase.result == average()


def test_slerp_reads_twice_first_to_measure_then_to_combine() -> None:
    measure, combine = cut(slerp())
    assert (names(measure.reductions), names(measure.body), measure.result) == (["gram"], [], None)
    assert (names(combine.small), names(combine.body)) == (["slerp"], ["weighted_sum", "cast"])
    assert names(combine.stats) == ["slerp"]
    assert combine.reductions == ()


def test_magnitudes_of_small_tensors_are_collected_and_all_models_share_the_pass() -> None:
    first, last = cut(ties((SAMPLED // 16 - 1, 16)))
    assert names(first.reductions) == ["magnitudes", "magnitudes"]
    assert names(first.body) == ["delta", "delta"]
    assert names(last.small) == ["of_rank", "of_rank"]
    assert last.spent == first.reductions


def test_trimming_counts_in_narrower_brackets_and_all_models_share_the_passes() -> None:
    sample, first, second, *_, last = cut(ties((SAMPLED // 16, 16)))
    for phase in (sample, first, second):
        assert names(phase.reductions) == ["histogram", "histogram"]
        assert names(phase.body) == ["delta", "delta"]
    assert [s.spec.dtype for s in first.stats] == [DType.I64, DType.I64]
    assert names(first.small) == ["around", "around"]
    assert names(second.small) == ["narrow", "narrow"]
    assert names(last.small) == ["narrow", "threshold", "narrow", "threshold"]


def test_large_tensors_are_sampled_first_and_only_one_pass_over_everything_is_expected() -> None:
    phases = cut(ties((SAMPLED // 16, 16)))
    assert [p.sample for p in phases] == [SAMPLE, 1, 1, 1, 1, 1]
    assert [p.spare for p in phases] == [False, False, True, True, True, False]
    stored = sum(load.spec.nbytes for load in phases[0].loads)
    assert [p.streamed_bytes for p in phases] == [stored // SAMPLE, stored, 0, 0, 0, stored]


def test_what_looks_at_everything_does_not_share_a_pass_with_a_sample() -> None:
    """The norm of the whole is taken in the pass after the sample's; that of the rest afterwards."""
    passes = [sorted(names(p.reductions)) for p in cut(restored((SAMPLED // 16, 16)))]
    assert passes[:2] == [["histogram", "histogram"], ["histogram", "histogram", "l1_norm", "l1_norm"]]
    assert passes[-2:] == [["l1_norm", "l1_norm"], []]


def test_a_norm_that_is_needed_at_once_takes_a_pass_beside_the_sample() -> None:
    phases = cut(normed((SAMPLED // 16, 16)))
    assert [(names(p.reductions), p.sample) for p in phases[:2]] == [
        (["histogram"], SAMPLE),
        (["l1_norm"], 1),
    ]


def dropped(shape: tuple[int, ...] = SPEC.shape) -> Node:
    """What stays of a task vector by rank, restored to its norm: dropped in two passes, but decided once."""
    a, b = (ops.load(i, TensorSpec(shape, DType.BF16)) for i in range(2))
    change = ops.delta(b, a)
    kept = ops.drop_by_rank(change, (0.4, 0.2), ops.stream(0))
    return ops.cast(ops.apply_delta(a, ops.restore_l1(kept, change), 1.0), dtype="BF16")


def test_what_rows_keep_is_marked_in_the_first_pass_for_the_second() -> None:
    first, second = cut(dropped())
    assert (names(first.marks), names(first.marked)) == (["drop_by_rank"], [])
    assert (names(second.marks), names(second.marked)) == ([], ["drop_by_rank"])
    assert marks_shape(first.marks[0]) == (300, 63)
    assert marks_bytes(first.marks[0]) == 300 * 63


@pytest.mark.parametrize("shape", [(500, 63), (0, 64), (64, 0), (), (7,)], ids=str)
def test_short_rows_are_not_marked(shape: tuple[int, ...]) -> None:
    marked = [bool(phase.marks or phase.marked) for phase in cut(dropped(shape))]
    assert marked == [shape == (0, 64), shape == (0, 64)]


def test_rows_are_marked_only_where_it_is_asked_for_and_takes_little_memory() -> None:
    assert not any(phase.marks or phase.marked for phase in cut(dropped(), marking=False))
    rows = MARKS_BYTES // 1024
    assert [bool(p.marks) for p in cut(dropped((rows, 8192)))] == [True, False]
    assert [bool(p.marks) for p in cut(dropped((rows + 1, 8192)))] == [False, False]


def test_a_norm_of_the_whole_is_taken_on_the_way_and_that_of_the_rest_afterwards() -> None:
    phases = cut(restored((SAMPLED // 16 - 1, 16)))
    assert [sorted(names(p.reductions)) for p in phases] == [
        ["l1_norm", "l1_norm", "magnitudes", "magnitudes"],
        ["l1_norm", "l1_norm"],
        [],
    ]
    assert "trim" in names(phases[1].body)


@pytest.mark.parametrize("build", EXPRESSIONS, ids=lambda f: f.__name__)
def test_whatever_a_phase_needs_is_known_by_then(build: Callable[[], Node]) -> None:
    root = build()
    known: set[bytes] = set()
    reductions: list[Node] = []
    phases = cut(root)
    for phase in phases:
        for n in phase.small:
            assert all(x.key in known for x in n.inputs)
            known.add(n.key)
        assert all(stat.key in known for stat in phase.stats)
        here = {load.key for load in phase.loads}
        for n in phase.body:
            assert all(x.key in here or x.key in known for x in n.inputs), n
            here.add(n.key)
        for n in phase.reductions:
            assert all(x.key in here or x.key in known for x in n.inputs), n
        known |= {n.key for n in phase.reductions}
        reductions += phase.reductions
    assert len(reductions) == len({n.key for n in reductions}), "each reduction is folded once"
    assert {n.key for n in reductions} == {n.key for n in walk([root]) if n.op.locality is Locality.REDUCE}
    assert [phase.result for phase in phases] == [None] * (len(phases) - 1) + [root]


@pytest.mark.parametrize("build", EXPRESSIONS, ids=lambda f: f.__name__)
def test_a_phase_reads_and_computes_nothing_in_vain(build: Callable[[], Node]) -> None:
    for phase in cut(build()):
        roots = [*phase.reductions, *([phase.result] if phase.result else [])]
        used = {x.key for n in (*phase.body, *roots) for x in n.inputs} | {n.key for n in roots}
        assert all(n.key in used for n in (*phase.loads, *phase.body, *phase.stats))
        assert len({n.key for n in (*phase.loads, *phase.body)}) == len(phase.loads) + len(phase.body)


def test_cutting_is_repeatable() -> None:
    assert cut(restored()) == cut(restored())


class TestUnits:
    def phase(self, op: Op | None, shape: tuple[int, ...]) -> Phase:
        x = ops.load(0, TensorSpec(shape, DType.F32))
        return cut(op(x) if op else ops.scale(x, 2.0))[-1]

    def test_elementwise_phases_may_be_cut_anywhere(self) -> None:
        assert self.phase(None, (3, 5)).unit == 1
        assert self.phase(None, (3, 5)).chunk == CHUNK
        assert self.phase(None, (3, 5)).generated

    @pytest.mark.parametrize(
        ("shape", "unit"), [((3, 500), 500), ((500,), 500), ((2, 3, 4), 4), ((), 1), ((3, 0), 1)]
    )
    def test_rowwise_phases_are_cut_between_rows(self, shape: tuple[int, ...], unit: int) -> None:
        phase = self.phase(ROWS, shape)
        assert phase.unit == unit
        assert phase.chunk % unit == 0
        assert phase.chunk % 8 == 0
        assert CHUNK - unit < phase.chunk < CHUNK + 8 * unit
        assert not phase.generated

    def test_a_row_longer_than_a_chunk_is_a_chunk_if_tiles_then_begin_at_whole_words(self) -> None:
        assert self.phase(ROWS, (2, CHUNK + 8)).chunk == CHUNK + 8
        assert self.phase(ROWS, (2, CHUNK + 3)).chunk == 8 * (CHUNK + 3)

    def test_a_whole_tensor_is_one_unit(self) -> None:
        assert self.phase(WHOLE, (300, 500)).unit == 150_000
        assert self.phase(WHOLE, (300, 500)).chunk == 150_000
        assert self.phase(WHOLE, (0, 5)).unit == 1

    def test_only_the_phases_that_need_rows_pay_for_them(self) -> None:
        x, y = (ops.load(i, TensorSpec((4, 100), DType.F32)) for i in range(2))
        measure, combine = cut(ops.weighted_sum(x, ROWS(y), ops.slerp(ops.gram(x, y), 0.5)))
        assert (measure.unit, combine.unit) == (1, 100)
        assert (measure.generated, combine.generated) == (True, False)


def output(expression: Node, *sources: str, copies: int = 1) -> Output:
    piece = Piece(expression, tuple(SourceTensor("m", s) for s in sources))
    shape = (expression.spec.shape[0] * copies, *expression.spec.shape[1:])
    return Output(TensorSpec(shape, expression.spec.dtype), (piece,) * copies)


class TestPrograms:
    def test_one_per_piece_in_order_each_at_its_own_bytes(self) -> None:
        found = programs(Graph({"x": output(average(), "a", "b", copies=3), "y": output(A, "a")}))
        assert [(p.tensor, p.offset) for p in found] == [
            ("x", 0),
            ("x", SPEC.nbytes),
            ("x", 2 * SPEC.nbytes),
            ("y", 0),
        ]
        assert sum(p.spec.nbytes for p in found) == 4 * SPEC.nbytes

    def test_outputs_of_one_expression_share_its_phases(self) -> None:
        first, second, other = programs(
            Graph(
                {
                    "x": output(slerp(), "a", "b"),
                    "y": output(slerp(), "c", "d"),
                    "z": output(average(), "a", "b"),
                }
            )
        )
        assert first.phases is second.phases
        assert first.phases is not other.phases
        assert [second.source(load).tensor for load in second.phases[0].loads] == ["c", "d"]

    @pytest.mark.parametrize(
        ("expression", "raw"),
        [(A, True), (ops.IDENTICAL(A, B), True), (average(), False)],
        ids=["copy", "check", "merge"],
    )
    def test_copies_are_of_bytes(self, expression: Node, raw: bool) -> None:
        (program,) = programs(Graph({"x": output(expression, "a", "b")}))
        assert program.raw is raw
        assert program.phases[-1].result == expression

    def test_integers_are_only_ever_copied(self) -> None:
        spec = TensorSpec((5,), DType.I64)
        (program,) = programs(
            Graph({"x": output(ops.IDENTICAL(ops.load(0, spec), ops.load(1, spec)), "a", "b")})
        )
        assert program.streamed_bytes == 80
        assert program.work_bytes == 120

    def test_every_phase_counts_its_own_reading(self) -> None:
        (program,) = programs(Graph({"x": output(slerp(), "a", "b")}))
        assert program.streamed_bytes == 4 * SPEC.nbytes
        assert program.work_bytes == 5 * SPEC.nbytes

    def test_a_piece_of_another_dtype_than_its_output_is_an_error(self) -> None:
        wrong: Any = Output(TensorSpec(SPEC.shape, DType.F32), output(average(), "a", "b").parts)
        with pytest.raises(GraphError, match="x is F32, but a piece is BF16"):
            programs(Graph({"x": wrong}))
