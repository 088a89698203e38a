"""The instruction set: what each op says about its result is what its kernel returns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mergegraph import ops
from mergegraph.errors import GraphError, TensorValueError
from mergegraph.graph.node import Locality, Node, Op, constant, node, walk
from mergegraph.kernels.eager import RowValues
from mergegraph.tensorspec import DType, Space, TensorSpec
from tests.runtime.harness import dtype_of, eager, loads, normal, schedule_run

Expression = Callable[..., Any]
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (0, 3), (5, 1), (2, 3)]
DTYPES: dict[str, tuple[DType, DType]] = {
    "bf16": (DType.BF16, DType.BF16),
    "f16 and f32": (DType.F16, DType.F32),
    "f32 and f64": (DType.F32, DType.F64),
    "f64": (DType.F64, DType.F64),
}


def _delta(a: Any, b: Any) -> Any:
    return ops.delta(a, b)


def _digits(x: Any) -> Any:
    width = 63 if ops.is_float64(x) else 31
    return ops.histogram(x, bits=4, width=width, sample=1, spare=False)


def _magnitudes(x: Any) -> Any:
    return ops.magnitudes(x, width=63 if ops.is_float64(x) else 31, size=ops.numel(x))


def _around(x: Any) -> Any:
    width = 63 if ops.is_float64(x) else 31
    return ops.around(_digits(x), 1.0, bits=4, width=width, total=100, share=False)


def _bracket(x: Any) -> Any:
    return ops.narrow(_digits(x), 1.0, _around(x), bits=4, width=63 if ops.is_float64(x) else 31)


EXAMPLES: dict[str, Expression] = {
    "identical": lambda a, b: ops.IDENTICAL(a, a, a),
    "cast": lambda a, b: ops.cast(a, dtype="F16"),
    "weighted_sum": lambda a, b: ops.weighted_sum(a, b, (0.5, 2.0)),
    "scale": lambda a, b: ops.scale(a, 2.0),
    "delta": _delta,
    "apply_delta": lambda a, b: ops.apply_delta(a, _delta(b, a), 0.5),
    "trim": lambda a, b: ops.trim(_delta(a, b), 0.5),
    "elect_sign": lambda a, b: ops.elect_sign(_delta(a, b), _delta(b, a)),
    "disjoint_merge": lambda a, b: ops.disjoint_merge(
        ops.elect_sign(_delta(a, b)), _delta(a, b), _delta(b, a), (1.0, 2.0), normalize=True
    ),
    "gram": lambda a, b: ops.gram(a, b),
    "slerp": lambda a, b: ops.slerp(ops.gram(a, b), 0.5),
    "line": lambda a, b: ops.line(a, (0.5, -2.0)),
    "nearswap": lambda a, b: ops.nearswap(a, b, 0.5),
    "cap": lambda a, b: ops.cap(_delta(a, b), 0.5),
    "keep_where": lambda a, b: ops.keep_where(_delta(a, b), _delta(b, a), 0.5),
    "signed_mean": lambda a, b: ops.signed_mean(
        ops.elect_sign(_delta(a, b)), _delta(a, b), _delta(b, a), (1.0, 2.0), floor=1e-6
    ),
    "variance": lambda a, b: ops.variance(_delta(a, b), _delta(b, a)),
    "agreed": lambda a, b: ops.agreed(_delta(a, b), _delta(a, b), _delta(b, a), (0.4, 0.5), least=2),
    "limit": lambda a, b: ops.limit(_delta(a, b), 0.2, 0.7),
    "stretch": lambda a, b: ops.stretch(_delta(a, b), 0.2, 0.7),
    "contest": lambda a, b: ops.contest(_delta(a, b), _delta(b, a), _delta(b, a), count=2),
    "average_by": lambda a, b: ops.average_by(*(_delta(a, b), _delta(b, a)) * 2),
    "decorrelated": lambda a, b: ops.decorrelated(_delta(a, b), _delta(b, a), rank=1),
    "isotropic": lambda a, b: ops.isotropic(_delta(a, b), _delta(b, a), own=0),
    "overlap_mean": lambda a, b: ops.overlap_mean(_delta(a, b), _delta(b, a), (1.0, 2.0), epsilon=0.1),
    "drop": lambda a, b: ops.drop(_delta(a, b), 0.5, (3.0, 4.0)),
    "affine": lambda a, b: ops.affine(a, (0.5, -2.0)),
    "gate": lambda a, b: ops.gate(a),
    "neurons": lambda a, b: ops.neurons(a, (0.5, 1.0), (3.0, 4.0), width=3, down=False),
    "inside": lambda a, b: ops.inside(a, b),
    "moments": lambda a, b: ops.moments(ops.gram(a, b)),
    "redraw": lambda a, b: ops.redraw(a, b, (0.5, 2.0), (3.0, 4.0)),
    "noise": lambda a, b: ops.noise(a, 0.5, (3.0, 4.0)),
    "spread": lambda a, b: ops.spread(a, 0.5, (3.0, 4.0)),
    "importance": lambda a, b: ops.importance(_delta(a, b), ops.row_divergence(a, b)),
    "row_arc": lambda a, b: ops.row_arc(a, b, 0.3),
    "row_stock": lambda a, b: ops.row_stock(_delta(a, b), _delta(b, a), _delta(a, b)),
    "row_divergence": lambda a, b: ops.row_divergence(a, b),
    "drop_by_rank": lambda a, b: ops.drop_by_rank(_delta(a, b), (0.2, 0.6), (3.0, 4.0)),
    "column_products": lambda a, b: ops.column_products(a, b),
    "column_arc": lambda a, b: ops.column_arc(ops.column_products(a, b), 0.5),
    "column_sum": lambda a, b: ops.column_sum(a, b, ops.column_arc(ops.column_products(a, b), 0.5)),
    "arc": lambda a, b: ops.arc(ops.gram(a, b), 0.5),
    "sphere_mean": lambda a, b: ops.sphere_mean(ops.gram(a, b, a), (0.2, 0.3, 0.5), eps=1e-8),
    "karcher_mean": lambda a, b: ops.karcher_mean(ops.gram(a, b, a), max_iter=5, tol=1e-5),
    "stock": lambda a, b: ops.stock(ops.gram(a, b, a)),
    "squares": lambda a, b: ops.squares(a, b, a),
    "energy_weights": lambda a, b: ops.energy_weights(ops.squares(a, b), count=6),
    "nonzero": lambda a, b: ops.nonzero(_delta(a, b)),
    "overlap": lambda a, b: ops.overlap(_delta(a, b), _delta(b, a), epsilon=0.1),
    "rescue_factors": lambda a, b: ops.rescue_factors(
        ops.overlap(_delta(a, b), _delta(b, a), epsilon=0.1), r=0.1, alpha=0.2, epsilon=0.1
    ),
    "rank_of_share": lambda a, b: ops.rank_of_share(ops.nonzero(_delta(a, b)), share=0.5),
    "unless_empty": lambda a, b: ops.unless_empty(ops.l1_norm(a), 1.0),
    "quartile_fence": lambda a, b: ops.quartile_fence(ops.l1_norm(a), ops.l1_norm(b), 3.0),
    "l1_norm": lambda a, b: ops.l1_norm(a),
    "restoring_factor": lambda a, b: ops.restoring_factor(ops.l1_norm(a), ops.l1_norm(b)),
    "histogram": lambda a, b: _digits(_delta(a, b)),
    "magnitudes": lambda a, b: _magnitudes(_delta(a, b)),
    "of_rank": lambda a, b: ops.of_rank(_magnitudes(a), 2.0, width=63 if ops.is_float64(a) else 31),
    "around": lambda a, b: _around(_delta(a, b)),
    "narrow": lambda a, b: _bracket(_delta(a, b)),
    "threshold": lambda a, b: ops.threshold(_bracket(_delta(a, b)), width=63 if ops.is_float64(a) else 31),
}


OF_MATRICES = ("decorrelated", "isotropic")


def test_every_op_has_an_example() -> None:
    assert {*EXAMPLES} == {*ops.all_ops()} - {"load", "stream", "lowest"}


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_spec_rule_says_what_the_kernel_returns(name: str, shape: tuple[int, ...], dtypes: str) -> None:
    a, b = (normal(*shape, dtype=dtype, seed=i) for i, dtype in enumerate(DTYPES[dtypes]))
    if name in ("select", "threshold") and a.numel() == 0:
        return  # nothing can be selected from nothing
    if name in OF_MATRICES and (a.dim() != 2 or a.numel() == 0):
        return
    spec = EXAMPLES[name](*loads([a, b])).spec
    value = EXAMPLES[name](a, b)
    if spec.space is Space.ROW:
        assert isinstance(value, RowValues)
        assert (tuple(value.numbers.shape), dtype_of(value.numbers)) == (spec.shape, spec.dtype)
    elif spec.space is Space.STAT:
        assert isinstance(value, np.ndarray)
        assert (value.shape, value.dtype) == (
            spec.shape,
            {DType.F64: np.float64, DType.I64: np.int64}[spec.dtype],
        )
    else:
        assert isinstance(value, torch.Tensor)
        assert (tuple(value.shape), dtype_of(value)) == (spec.shape, spec.dtype)


def test_a_stream_is_two_numbers_that_only_a_plan_knows() -> None:
    assert ops.stream(3).spec == TensorSpec((2,), DType.F64, Space.STAT)
    assert ops.stream(3).attributes == {"slot": 3}
    with pytest.raises(GraphError, match="no random stream outside of a plan"):
        ops.STREAM(slot=3)


def test_arithmetic_gives_float32_or_float64_and_keeps_the_space() -> None:
    a, b, wide = loads([normal(3, dtype=d) for d in (DType.BF16, DType.F16, DType.F64)])
    assert ops.weighted_sum(a, b, (1.0, 2.0)).spec == TensorSpec((3,), DType.F32, Space.WEIGHT)
    assert ops.weighted_sum(a, wide, (1.0, 2.0)).spec == TensorSpec((3,), DType.F64, Space.WEIGHT)
    change = ops.delta(a, b)
    assert change.spec == TensorSpec((3,), DType.F32, Space.DELTA)
    for kept in (ops.scale(change, 2.0), ops.trim(change, 1.0), ops.weighted_sum(change, (2.0,))):
        assert kept.spec.space is Space.DELTA
    assert ops.apply_delta(wide, change, 1.0).spec == TensorSpec((3,), DType.F64, Space.WEIGHT)
    assert ops.cast(change, dtype="BF16").spec == TensorSpec((3,), DType.BF16, Space.DELTA)


# ---- what does not fit ---------------------------------------------------------------------------

A, B, OTHER, INTEGER, ONE, WIDE = loads(
    [
        normal(2, 3),
        normal(2, 3, dtype=DType.BF16, seed=1),
        normal(3, 2),
        torch.zeros(2, 3, dtype=torch.int64),
        normal(1),
        normal(2, 3, dtype=DType.F64),
    ]
)
D = ops.delta(A, B)
STAT = constant((1.0, 2.0))
COUNTS = _digits(D)
ROWS = ops.row_stock(D, D, D)
COLUMNS = ops.column_products(A, B)

WRONG: dict[str, Expression] = {
    # spaces
    "a delta of a delta": lambda: ops.delta(D, B),
    "a sum over spaces": lambda: ops.weighted_sum(A, D, (1.0, 1.0)),
    "a delta applied to a delta": lambda: ops.apply_delta(D, D, 1.0),
    "a weight applied as a delta": lambda: ops.apply_delta(A, B, 1.0),
    "trimming a weight": lambda: ops.trim(A, 1.0),
    "electing from weights": lambda: ops.elect_sign(A, B),
    "merging weights disjointly": lambda: ops.disjoint_merge(A, A, (1.0,), normalize=True),
    "dot products over spaces": lambda: ops.gram(A, D),
    # shapes
    "a sum over shapes": lambda: ops.weighted_sum(A, OTHER, (1.0, 1.0)),
    "a delta over shapes": lambda: ops.delta(A, OTHER),
    "a delta applied to another shape": lambda: ops.apply_delta(OTHER, D, 1.0),
    "dot products over shapes": lambda: ops.gram(A, OTHER),
    "identity over shapes": lambda: ops.IDENTICAL(A, OTHER),
    "identity over dtypes": lambda: ops.IDENTICAL(A, B),
    # dtypes
    "arithmetic on integers": lambda: ops.weighted_sum(INTEGER, (1.0,)),
    "dot products of integers": lambda: ops.gram(INTEGER, INTEGER),
    "casting integers": lambda: ops.cast(INTEGER, dtype="F32"),
    "casting to integers": lambda: ops.cast(A, dtype="I64"),
    # how many statistics
    "too few weights": lambda: ops.weighted_sum(A, B, (1.0,)),
    "too many weights": lambda: ops.weighted_sum(A, B, (1.0, 2.0, 3.0)),
    "no weights": lambda: ops.weighted_sum(A, B),
    "weights of nothing": lambda: node(ops.weighted_sum, (1.0,)),
    "two factors": lambda: ops.scale(A, (1.0, 2.0)),
    "two thresholds": lambda: ops.trim(D, (1.0, 2.0)),
    "two scales of a delta": lambda: ops.apply_delta(A, D, (1.0, 2.0)),
    "too few weights of deltas": lambda: ops.disjoint_merge(D, D, D, (1.0,), normalize=True),
    "half a Gram matrix": lambda: ops.slerp(STAT, 0.5),
    "two positions on the circle": lambda: ops.slerp(ops.gram(A, B), (0.5, 0.5)),
    "a histogram in half a bracket": lambda: ops.histogram(D, (0.0, 1.0), bits=15, width=31),
    "a histogram in a norm": lambda: ops.histogram(D, STAT, bits=16, width=31),
    "half the bits of a float64": lambda: ops.histogram(ops.delta(WIDE, A), bits=16, width=31),
    "more bits than a float32 has": lambda: ops.histogram(D, bits=16, width=63),
    "magnitudes of half the bits": lambda: ops.magnitudes(ops.delta(WIDE, A), width=31, size=A.spec.numel),
    "magnitudes of other elements": lambda: ops.magnitudes(D, width=31, size=A.spec.numel + 1),
    "a rank of a norm": lambda: ops.of_rank(STAT, 1.0, width=31),
    "magnitudes without a rank": lambda: ops.of_rank(_magnitudes(D), width=31),
    "a bracket from other counts": lambda: ops.narrow(_digits(D), 1.0, _around(D), bits=5, width=31),
    "a bracket without a rank": lambda: ops.narrow(_digits(D), _around(D), bits=4, width=31),
    "a bracket within nothing": lambda: ops.narrow(_digits(D), 1.0, bits=4, width=31),
    "a bracket in a norm": lambda: ops.narrow(_digits(D), 1.0, STAT, bits=4, width=31),
    "a bracket around nothing": lambda: node(ops.around, bits=4, width=31, total=1, share=False),
    "a threshold from one number": lambda: node(ops.threshold, (1.0,), width=31),
    "norms of two tensors to restore": lambda: ops.restoring_factor(ops.gram(A, B), ops.l1_norm(A)),
    # how many tensors
    "a delta of one": lambda: ops.delta(A),
    "a delta of three": lambda: ops.delta(A, B, A),
    "scaling two tensors": lambda: ops.scale(A, B),
    "scaling without a factor": lambda: ops.scale(A),
    "scaling by a tensor of one element": lambda: ops.scale(A, ONE),
    "scaling nothing": lambda: node(ops.scale),
    "applying no delta": lambda: ops.apply_delta(A, 1.0),
    "applying two deltas": lambda: ops.apply_delta(A, D, D, 1.0),
    "trimming without a threshold": lambda: ops.trim(D),
    "trimming by a tensor of one element": lambda: ops.trim(ops.delta(ONE, ONE), ops.delta(ONE, ONE)),
    "casting two tensors": lambda: ops.cast(A, A, dtype="F32"),
    "electing from nothing": lambda: node(ops.elect_sign),
    "a sign and no deltas": lambda: ops.disjoint_merge(D, constant(()), normalize=True),
    "dot products of nothing": lambda: node(ops.gram),
    "a norm of two tensors": lambda: ops.l1_norm(A, A),
    "a norm of nothing": lambda: node(ops.l1_norm),
    "a histogram of two tensors": lambda: ops.histogram(D, D, bits=16, width=31),
    "a bracket from nothing": lambda: node(ops.narrow, bits=4, width=31),
    "identity of nothing": lambda: node(ops.IDENTICAL),
    # tensors where statistics belong, and the other way round
    "a tensor as a Gram matrix": lambda: ops.slerp(loads([normal(2, 2)])[0], 0.5),
    "dot products of statistics": lambda: node(ops.gram, STAT, STAT),
    "a norm of a statistic": lambda: node(ops.l1_norm, STAT),
    "scaling a statistic": lambda: node(ops.scale, STAT, 2.0),
    "casting a statistic": lambda: node(ops.cast, STAT, dtype="F32"),
    "counting a statistic": lambda: node(ops.histogram, STAT, bits=16, width=31),
    "identity of statistics": lambda: node(ops.IDENTICAL, STAT, STAT),
    "a threshold of a tensor": lambda: ops.threshold(loads([normal(2)])[0], width=31),
    "a bracket in a tensor": lambda: ops.narrow(A, 1.0, _around(D), bits=4, width=31),
    # rows, and numbers for each of them
    "arcs between three rows": lambda: ops.row_arc(A, B, A, 0.5),
    "arcs without a position": lambda: ops.row_arc(A, B),
    "arcs between spaces": lambda: ops.row_arc(A, D, 0.5),
    "arcs over shapes": lambda: ops.row_arc(A, OTHER, 0.5),
    "arcs of integers": lambda: ops.row_arc(INTEGER, INTEGER, 0.5),
    "a divergence from nothing": lambda: ops.row_divergence(A),
    "a divergence over shapes": lambda: ops.row_divergence(A, OTHER),
    "a divergence with a statistic": lambda: ops.row_divergence(A, B, 1.0),
    "ratios of nothing": lambda: node(ops.row_stock),
    "ratios over spaces": lambda: ops.row_stock(D, A),
    "dropping two tensors by rank": lambda: ops.drop_by_rank(D, D, (0.2, 0.6), (1.0, 2.0)),
    "dropping a weight by rank": lambda: ops.drop_by_rank(A, (0.2, 0.6), (1.0, 2.0)),
    "dropping by rank with one chance": lambda: ops.drop_by_rank(D, 0.5, (1.0, 2.0)),
    "dropping numbers per row": lambda: ops.drop_by_rank(ROWS, (0.2, 0.6), (1.0, 2.0)),
    "importance without a divergence": lambda: ops.importance(D),
    "importance with two numbers per row": lambda: ops.importance(D, ROWS),
    "numbers per row as a tensor": lambda: ops.scale(ROWS, 2.0),
    "numbers per row to fold": lambda: ops.gram(ROWS, ROWS),
    "too many numbers per row": lambda: ops.weighted_sum(A, ROWS),
    # and for each column
    "products of three columns": lambda: node(COLUMNS.op, A, B, A, **COLUMNS.attributes),
    "products over shapes": lambda: ops.column_products(A, OTHER),
    "products over spaces": lambda: ops.column_products(A, D),
    "products of other columns": lambda: node(COLUMNS.op, OTHER, OTHER, **COLUMNS.attributes),
    "arcs of columns without a position": lambda: ops.column_arc(COLUMNS),
    "arcs of a Gram matrix": lambda: ops.column_arc(ops.gram(A, B), 0.5),
    "sums of columns without coefficients": lambda: ops.column_sum(A, B),
    "sums with coefficients of other columns": lambda: ops.column_sum(
        OTHER, OTHER, ops.column_arc(COLUMNS, 0.5)
    ),
    "sums of three columns": lambda: ops.column_sum(A, B, A, ops.column_arc(COLUMNS, 0.5)),
    # other statistics
    "a Gram matrix that is none": lambda: node(ops.stock, STAT),
    "a mean without a Gram matrix": lambda: node(ops.karcher_mean, max_iter=1, tol=0.1),
    "too few weights for a mean": lambda: ops.sphere_mean(ops.gram(A, B), (1.0,), eps=0.1),
    "a mean without weights": lambda: ops.sphere_mean(ops.gram(A, B), eps=0.1),
    "half an arc": lambda: ops.arc(ops.gram(A, B, A), 0.5),
    "energies of two kinds": lambda: ops.energy_weights(ops.squares(A), ops.squares(B), count=6),
    "energies of a Gram matrix": lambda: ops.energy_weights(ops.gram(A, B), count=6),
    "factors from a Gram matrix and weights": lambda: ops.rescue_factors(
        ops.gram(A, B), 1.0, r=1.0, alpha=1.0, epsilon=0.1
    ),
    "factors from one norm": lambda: ops.rescue_factors(ops.l1_norm(A), r=1.0, alpha=1.0, epsilon=0.1),
    "nonzero elements of two": lambda: ops.nonzero(A, B),
    "an overlap over shapes": lambda: ops.overlap(A, OTHER, epsilon=0.1),
    "squares over spaces": lambda: ops.squares(A, D),
    "a share of two counts": lambda: ops.rank_of_share(STAT, share=0.5),
    "a threshold without its rank": lambda: ops.unless_empty(ops.l1_norm(A)),
    "a fence from two quartiles": lambda: ops.quartile_fence(ops.l1_norm(A), ops.l1_norm(B)),
    # elementwise ops with statistics
    "half a line": lambda: ops.line(A, 1.0),
    "lines of two": lambda: ops.line(A, B, (1.0, 2.0)),
    "swapping deltas": lambda: ops.nearswap(D, D, 0.5),
    "swapping over shapes": lambda: ops.nearswap(A, OTHER, 0.5),
    "swapping without a distance": lambda: ops.nearswap(A, B),
    "capping a weight": lambda: ops.cap(A, 1.0),
    "keeping weights": lambda: ops.keep_where(A, A, 1.0),
    "keeping without a score": lambda: ops.keep_where(D, 1.0),
    "keeping by a score of another shape": lambda: ops.keep_where(D, ops.delta(OTHER, OTHER), 1.0),
    "variance of weights": lambda: ops.variance(A, B),
    "agreement with nothing": lambda: ops.agreed(D, constant(()), least=1),
    "agreement without thresholds": lambda: ops.agreed(D, D, least=1),
    "agreement of weights": lambda: ops.agreed(A, A, (0.5,), least=1),
    "limits of a weight": lambda: ops.limit(A, 0.1, 0.2),
    "half a limit": lambda: ops.limit(D, 0.1),
    "stretching without an end": lambda: ops.stretch(D, 0.1),
    "a contest of two": lambda: ops.contest(D, D, count=2),
    "a contest of weights": lambda: ops.contest(A, A, A, count=2),
    "an average with too few weights": lambda: ops.average_by(D, D, D),
    "an average by weights of another shape": lambda: ops.average_by(D, ops.delta(OTHER, OTHER)),
    "an average of nothing": lambda: node(ops.average_by),
    # whole matrices
    "singular vectors of a vector": lambda: ops.decorrelated(ops.delta(ONE, ONE), rank=1),
    "singular vectors of weights": lambda: ops.isotropic(A, A, own=0),
    "singular vectors of two shapes": lambda: ops.isotropic(D, ops.delta(OTHER, OTHER), own=0),
    "singular vectors of nothing": lambda: ops.isotropic(*[_delta(*loads([normal(0, 3)] * 2))] * 2, own=0),
    "singular vectors and a number": lambda: ops.decorrelated(D, 1.0, rank=1),
    "a mean of nothing": lambda: ops.signed_mean(D, constant(()), floor=0.1),
    "a mean with too few weights": lambda: ops.signed_mean(D, D, D, (1.0,), floor=0.1),
    "overlap without factors": lambda: ops.overlap_mean(D, D, epsilon=0.1),
    "overlap of weights": lambda: ops.overlap_mean(A, (1.0,), epsilon=0.1),
    "dropping weights": lambda: ops.drop(A, 0.5, (1.0, 2.0)),
    "dropping without a stream": lambda: ops.drop(D, 0.5),
    "dropping by half a stream": lambda: ops.drop(D, 0.5, 1.0),
    # an order that no kernel could read
    "weights before tensors": lambda: ops.weighted_sum((1.0, 2.0), A, B),
    "a factor before its tensor": lambda: ops.scale(2.0, A),
    "counts as weights": lambda: ops.weighted_sum(A, B, _bracket(D)),
    # attributes
    "an unknown dtype": lambda: ops.cast(A, dtype="F12"),
}


@pytest.mark.parametrize("what", WRONG)
def test_operands_that_do_not_fit_are_a_graph_error(what: str) -> None:
    with pytest.raises(GraphError) as caught:
        WRONG[what]()
    assert str(caught.value)


# ---- eager use -----------------------------------------------------------------------------------


def test_an_op_computes_on_tensors_and_builds_on_nodes() -> None:
    x = torch.tensor([1.0, 2.0])
    assert ops.scale(x, 3.0).tolist() == [3.0, 6.0]
    assert isinstance(ops.scale(loads([x])[0], 3.0), Node)


def test_eager_arithmetic_widens_as_the_engine_does() -> None:
    """In bfloat16 the sum would be rounded to 256."""
    x = torch.tensor([256.0], dtype=torch.bfloat16)
    assert ops.weighted_sum(x, torch.ones_like(x), (1.0, 1.0)).item() == 257.0
    tiny = torch.tensor([2.0**-40], dtype=torch.float64)
    assert ops.delta(tiny, torch.zeros(1, dtype=torch.bfloat16)).dtype is torch.float64


def test_eager_ops_leave_their_operands_alone() -> None:
    for name, build in EXAMPLES.items():
        a, b = normal(4, 3), normal(4, 3, seed=1)
        before = (a.clone(), b.clone())
        build(a, b)
        assert torch.equal(a, before[0]), name
        assert torch.equal(b, before[1]), name


IDENTICAL_CASES = [
    torch.tensor(7),
    torch.tensor(True),
    torch.tensor([1, 2, 3]),
    torch.empty(0, 4, dtype=torch.int32),
    torch.tensor(1.5),
    torch.ones(2, 2, dtype=torch.uint8),
]


@pytest.mark.parametrize("x", IDENTICAL_CASES, ids=lambda x: f"{x.dtype}{list(x.shape)}")
def test_identical_tensors_of_any_dtype_and_shape_are_passed_on(x: torch.Tensor) -> None:
    found = ops.IDENTICAL(x, x.clone())
    assert torch.equal(found, x)
    assert found.dtype is x.dtype
    assert found.shape == x.shape


def test_tensors_that_should_be_identical_and_are_not_are_an_error() -> None:
    with pytest.raises(TensorValueError):
        ops.IDENTICAL(torch.tensor([1, 2]), torch.tensor([1, 3]))
    with pytest.raises(TensorValueError):  # equal as numbers, not as bytes
        ops.IDENTICAL(torch.tensor([0.0]), torch.tensor([-0.0]))


def test_identical_bytes_are_copied_and_others_refused_when_scheduled() -> None:
    x = torch.arange(200_000)
    expression = ops.IDENTICAL(*loads([x, x.clone()]))
    assert torch.equal(schedule_run(expression, [x, x.clone()]).tensor, x)
    other = x.clone()
    other[199_999] = 0
    with pytest.raises(TensorValueError, match="out"):
        schedule_run(expression, [x, other])


# ---- compositions --------------------------------------------------------------------------------


def test_helpers_read_nodes_and_tensors_alike() -> None:
    x = normal(3, 5, dtype=DType.F64)
    (load,) = loads([x])
    assert (ops.numel(load), ops.numel(x)) == (15, 15)
    assert (ops.is_float64(load), ops.is_float64(x), ops.is_float64(x.float())) == (True, True, False)


def test_restoring_a_norm_gives_the_norm_back() -> None:
    x = normal(5000, dtype=DType.F64)
    kept = ops.keep_largest(x, 0.2)
    assert (kept != 0).sum() == 1000
    assert ops.l1_norm(ops.restore_l1(kept, x)) == pytest.approx(ops.l1_norm(x), rel=1e-12)


def test_every_op_knows_its_kernel() -> None:
    for op in ops.all_ops().values():
        if op.locality is not Locality.SOURCE:
            assert op.implementation is not None
        assert repr(op) == f"Op({op.name})"


def test_a_kernel_may_be_given_itself() -> None:
    double = Op("double", Locality.WHOLE, lambda specs, _: specs[0], kernel=lambda x: x + x)
    assert double(torch.tensor([1.5])).tolist() == [3.0]
    expression = double(loads([torch.tensor([1.5])])[0])
    assert eager(expression, [torch.tensor([1.5])]).tolist() == [3.0]
    assert [n.op.name for n in walk([expression])] == ["load", "double"]
