"""Generated code gives, bit for bit, what torch gives op by op: for every op and every stored dtype."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mergegraph import ops
from mergegraph.graph.node import Locality, Node
from mergegraph.kernels.random import uniform
from mergegraph.runtime.tilecode import tile_source
from mergegraph.schedule.tiling import LONG_ROW, cut
from mergegraph.tensorspec import DType
from tests.runtime.harness import Mode, assert_same_bits, eager, loads, normal, schedule_run, steps_apart

MODES: tuple[Mode, ...] = ("generated", "interpreted")
BF16, F16, F32, F64 = DType.BF16, DType.F16, DType.F32, DType.F64
FLOATS = (BF16, F16, F32, F64)

# Stored dtypes of the operands (taken in turn) and of the result.
STORED: dict[str, tuple[tuple[DType, ...], DType]] = {
    "bf16": ((BF16,), BF16),
    "f16": ((F16,), F16),
    "f32": ((F32,), F32),
    "f64": ((F64,), F64),
    "f16 and f32": ((F16, F32), BF16),
    "some float64": ((BF16, F64, F32), F32),
}
KINDS = ("bf16", "some float64")  # in these each op is tried by itself
COUNT = 70_001  # more than one reduction chunk, and no multiple of any vector width

Build = Callable[..., Any]


def _deltas(*xs: Any) -> list[Any]:
    return [ops.delta(x, xs[0]) for x in xs[1:]]


def _cast_between(*xs: Any) -> Any:
    return ops.delta(ops.cast(xs[0], dtype="F16"), ops.cast(xs[1], dtype="BF16"))


def _disjoint(normalize: bool) -> Build:
    def build(*xs: Any) -> Any:
        deltas = _deltas(*xs)
        sign = ops.elect_sign(*deltas)
        return ops.disjoint_merge(sign, *deltas, (0.3, -1.7), normalize=normalize)

    return build


EXPRESSIONS: dict[str, Build] = {
    "cast": _cast_between,
    "weighted_sum": lambda *xs: ops.weighted_sum(*xs, (0.1, -0.7, 1 / 3)),
    "scale": lambda x, *_: ops.scale(x, 0.3),
    "delta": lambda x, y, _: ops.delta(x, y),
    "apply_delta": lambda *xs: ops.apply_delta(xs[0], ops.delta(xs[2], xs[1]), 0.7),
    "trim": lambda x, y, _: ops.trim(ops.delta(x, y), 0.4),
    "elect_sign": lambda *xs: ops.elect_sign(*_deltas(*xs)),
    "disjoint_merge": _disjoint(normalize=True),
    "disjoint_merge, not normalised": _disjoint(normalize=False),
    "line": lambda x, *_: ops.line(x, (0.3, -0.7)),
    "nearswap": lambda x, y, _: ops.nearswap(x, y, 0.3),
    "nearswap, backwards": lambda x, y, _: ops.nearswap(x, y, -0.3),
    "cap": lambda x, y, _: ops.cap(ops.delta(x, y), 0.4),
    "keep_where": lambda *xs: ops.keep_where(*_deltas(*xs), 0.4),
    "signed_mean": lambda *xs: ops.signed_mean(
        ops.elect_sign(*_deltas(*xs)), *_deltas(*xs), (0.3, 0.0), floor=1e-6
    ),
    "variance": lambda *xs: ops.variance(*_deltas(*xs)),
    "agreed": lambda *xs: ops.agreed(
        ops.weighted_sum(*_deltas(*xs), (0.7, 1.1)), *_deltas(*xs), (0.4, 0.9), least=2
    ),
    "limit": lambda x, y, _: ops.limit(ops.delta(x, y), 0.2, 0.7),
    "stretch": lambda x, y, _: ops.stretch(ops.delta(x, y), 0.2, 0.7),
    "stretch, without a distance": lambda x, y, _: ops.stretch(ops.delta(x, y), 0.0, 0.0),
    "contest": lambda *xs: ops.contest(_deltas(*xs)[0], *_deltas(*xs), count=3),
    "average_by": lambda *xs: ops.average_by(*_deltas(*xs), *_deltas(*xs)[::-1]),
    "overlap_mean": lambda *xs: ops.overlap_mean(*_deltas(*xs), (1.1, 0.9), epsilon=0.4),
    "drop": lambda x, y, _: ops.drop(ops.delta(x, y), 1 / 3, (123.0, 16777215.0)),
    "affine": lambda x, y, _: ops.affine(x, (1 / 3, -0.7)),
    "gate": lambda x, y, _: ops.gate(x),
    "neurons": lambda x, y, _: ops.neurons(x, (0.5, 1.0), (123.0, 16777215.0), width=7, down=False),
    "neurons, down": lambda x, y, _: ops.neurons(x, (0.5, 1.0), (123.0, 16777215.0), width=7, down=True),
    "inside": lambda x, y, _: ops.inside(x, ops.neurons(y, (0.5, 1.0), (1.0, 2.0), width=7, down=True)),
    "redraw": lambda x, y, _: ops.redraw(
        x, ops.neurons(y, (0.5, 1.0), (1.0, 2.0), width=7, down=True), (0.5, 2.0), (123.0, 16777215.0)
    ),
    "noise": lambda x, y, _: ops.noise(x, 0.25, (123.0, 16777215.0)),
    "spread": lambda x, y, _: ops.spread(x, 0.25, (123.0, 16777215.0)),
    "importance": lambda x, y, _: ops.importance(ops.delta(x, y), 0.3),
    "column_sum": lambda x, y, _: ops.column_sum(x, y, ops.column_arc(ops.column_products(x, y), 0.3)),
}


def tensors_of(stored: tuple[DType, ...], count: int = COUNT) -> list[Tensor]:
    """Three vectors with everything in them that float arithmetic treats specially."""
    special = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-7, -6e-8, 1e-40, 65519.0, 65520.0, -7e4, 1.0]
    pairs = torch.tensor(list(product(special, repeat=3)), dtype=torch.float64)
    found = []
    for i in range(3):
        x = normal(count, dtype=F64, seed=i)
        x[: len(pairs)] = pairs[:, i]
        found.append(x.to(getattr(torch, stored[i % len(stored)].torch_name)))
    return found


def test_every_elementwise_op_is_tried() -> None:
    elementwise = [op.name for op in ops.all_ops().values() if op.locality is Locality.ELEMENTWISE]
    assert {name.partition(",")[0] for name in EXPRESSIONS} == {*elementwise} - {"identical"}


def _everything(*xs: Any) -> Any:
    """Every op in one expression, so that other dtypes cost one compilation each."""
    merged = EXPRESSIONS["disjoint_merge"](*xs)
    kept = ops.scale(ops.trim(merged, 0.3), 1.1)
    summed = ops.weighted_sum(ops.apply_delta(xs[0], kept, 0.7), xs[1], xs[2], (0.1, -0.7, 1 / 3))
    return ops.cast(summed, dtype="BF16")


CASES = [
    *(
        pytest.param(build, kind, id=f"{name}, {kind}")
        for name, build in EXPRESSIONS.items()
        for kind in KINDS
    ),
    *(pytest.param(_everything, kind, id=f"everything, {kind}") for kind in STORED if kind not in KINDS),
]


@pytest.mark.parametrize(("build", "stored"), CASES)
def test_generated_code_equals_torch_bit_for_bit(build: Build, stored: str) -> None:
    dtypes, out = STORED[stored]
    tensors = tensors_of(dtypes)
    expression = ops.cast(build(*loads(tensors)), dtype=out.name)
    assert all(phase.generated for phase in cut(expression))
    expected = eager(expression, tensors)
    generated = schedule_run(expression, tensors)
    assert_same_bits(generated.tensor, expected)
    assert generated.nonfinite == int((~torch.isfinite(expected)).sum())
    interpreted = schedule_run(expression, tensors, mode="interpreted")
    assert_same_bits(interpreted.tensor, expected)
    assert interpreted.nonfinite == generated.nonfinite


# ---- rows and columns ------------------------------------------------------------------------------


def _shown(numbers: Callable[..., Any], column: int = 0) -> Build:
    """An expression whose elements are one of the numbers that `numbers` gives for their row."""

    def build(x: Any, y: Any, z: Any, one: Any, zero: Any) -> Any:
        found = numbers(x, y, z)
        if column < 0:
            return ops.importance(ops.delta(one, zero), found)
        picked = [one if i == column else zero for i in range(2)]
        return ops.weighted_sum(*picked, found)

    return build


ROWWISE: dict[str, Build] = {
    "row_arc": _shown(lambda x, y, _: ops.row_arc(x, y, 0.3)),
    "row_arc, the second": _shown(lambda x, y, _: ops.row_arc(x, y, 0.3), 1),
    "row_stock": _shown(lambda x, y, _: ops.row_stock(x, y)),
    "row_divergence": _shown(lambda x, y, _: ops.row_divergence(x, y), -1),
}
ROW_SHAPES: list[tuple[int, ...]] = [
    (),
    (0, 3),
    (3, 0),
    (0,),
    (1,),
    (9,),
    (5, 1),
    (1, 5),
    (67, 129),
    (3, 5, 7),
]


def row_tensors(shape: tuple[int, ...], dtype: DType) -> list[Tensor]:
    """Three tensors with equal, opposite and zero rows among them, then ones and zeros."""
    x, y, z = (normal(*shape, dtype=F64, seed=i) for i in range(3))
    if len(shape) == 2 and shape[0] > 4:
        y[0], y[1], y[2], x[3] = x[0], -2 * x[1], 0.0, 0.0
        y[4] = x[4] * (1 + 1e-9)
    return [t.to(getattr(torch, dtype.torch_name)) for t in (x, y, z, torch.ones(shape), torch.zeros(shape))]


def test_every_rowwise_op_is_tried() -> None:
    rowwise = {op.name for op in ops.all_ops().values() if op.locality is Locality.ROWWISE}
    assert {name.partition(",")[0] for name in ROWWISE} | {"drop_by_rank"} == rowwise


@pytest.mark.parametrize("dtype", (BF16, F32, F64), ids=lambda d: d.name)
@pytest.mark.parametrize("shape", ROW_SHAPES, ids=str)
@pytest.mark.parametrize("name", ROWWISE)
def test_numbers_of_rows_are_those_of_torch(name: str, shape: tuple[int, ...], dtype: DType) -> None:
    """In float32 to the last bit but one; in float64 to what is left when sums are added in another order."""
    tensors = row_tensors(shape, dtype)
    expression = ROWWISE[name](*loads(tensors))
    assert all(phase.generated for phase in cut(expression))
    expected = eager(expression, tensors)
    for mode in MODES:
        found = schedule_run(expression, tensors, mode=mode).tensor
        assert found.shape == expected.shape
        if dtype is F64:
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        else:
            assert steps_apart(found, expected) <= 1 or torch.allclose(found, expected, rtol=1e-6, atol=1e-12)


def _by_rank(x: Any, zero: Any) -> Any:
    return ops.drop_by_rank(ops.delta(x, zero), (0.2, 0.7), (12345.0, 678.0))


def by_stable_sort(rows: Tensor) -> Tensor:
    """What stays of float rows, from the exact rank of every element."""
    count = rows.shape[-1]
    ranks = np.argsort(np.argsort(rows.abs().numpy(), axis=-1, kind="stable"), axis=-1, kind="stable")
    share = torch.from_numpy(ranks).to(rows.dtype) / (count - 1) if count > 1 else torch.full_like(rows, 0.5)
    u = uniform(np.array([12345.0, 678.0]), 0, rows.numel(), torch.device("cpu")).reshape(rows.shape)
    kept = (u.to(rows.dtype) < 0.2 + 0.7 * share) | ~rows.isfinite()
    return torch.where(kept & (rows != 0), rows, torch.zeros_like(rows))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", ROW_SHAPES, ids=str)
def test_dropping_by_rank_knows_the_exact_rank(shape: tuple[int, ...], dtype: DType, mode: Mode) -> None:
    x, *_, zero = row_tensors(shape, dtype)
    if x.numel():
        x.view(-1)[0] = torch.nan  # ranks last, and stays
        x.view(-1)[-1] = -0.0
    found = schedule_run(_by_rank(*loads([x, zero])), [x, zero], mode=mode).tensor
    columns = shape[-1] if shape else 1
    rows = x.to(found.dtype).reshape(x.numel() // max(columns, 1), columns)
    assert_same_bits(found, by_stable_sort(rows).reshape(shape))


def _hard_rows(kind: str, columns: int) -> Tensor:
    """Rows whose ranks a histogram tells apart badly."""
    x = normal(7, columns, dtype=F64, seed=columns)
    match kind:
        case "few magnitudes":
            x = (x * 2).round() / 4
        case "one magnitude":
            x = x.sign() * 1e-3
        case "an outlier":
            x[:, columns // 2] = 1e9
        case "infinite":
            x[:, 0], x[:, -1], x[1, :] = torch.inf, torch.nan, -torch.inf
        case "tiny":
            x *= 1e-42
        case "nearly equal":
            x = 1 + x * 1e-6
        case "many powers of two":
            x = 2.0 ** (40 * x)
    return x


@pytest.mark.parametrize("dtype", (F32, F64), ids=lambda d: d.name)
@pytest.mark.parametrize("columns", [2, 65, 700, 5000])
@pytest.mark.parametrize(
    "kind",
    [
        "few magnitudes",
        "one magnitude",
        "an outlier",
        "infinite",
        "tiny",
        "nearly equal",
        "many powers of two",
    ],
)
def test_ranks_of_rows_that_are_hard_to_rank_are_exact_too(kind: str, columns: int, dtype: DType) -> None:
    x = _hard_rows(kind, columns).to(getattr(torch, dtype.torch_name))
    zero = torch.zeros_like(x)
    found = schedule_run(_by_rank(*loads([x, zero])), [x, zero]).tensor
    assert_same_bits(found, by_stable_sort(x))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [*ROWWISE, "drop_by_rank"])
def test_rows_do_not_depend_on_tiles_or_their_order(name: str, mode: Mode) -> None:
    tensors = row_tensors((1301, 129), BF16)
    build = ROWWISE.get(name, lambda x, y, *_: _by_rank(x, y))
    expression = ops.cast(build(*loads(tensors)), dtype="F32")
    expected = schedule_run(expression, tensors, mode=mode).tensor
    for tile in (1, 65_536, 1_048_576):
        found = schedule_run(expression, tensors, mode=mode, tile=tile, backwards=True).tensor
        assert_same_bits(found, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(70, 65), (1301, 129), (3, 70_000), (500, 3)], ids=str)
def test_numbers_of_rows_are_the_same_in_every_phase_that_uses_them(
    shape: tuple[int, ...], mode: Mode
) -> None:
    """Long rows' numbers are kept by the first phase, short ones' are computed again."""
    x, y, *_ = row_tensors(shape, BF16)
    a, b = loads([x, y])
    scores = ops.importance(ops.delta(a, b), ops.row_divergence(a, b))
    expression = ops.keep_where(ops.delta(a, b), scores, ops.kth_largest_magnitude(scores, 2 * shape[0]))
    first, *later = [phase for phase in cut(expression) if phase.sample == 1]
    assert (bool(first.kept), bool(first.known_rows)) == (shape[1] >= LONG_ROW, False)
    assert {(bool(p.kept), bool(p.known_rows)) for p in later} == {(False, shape[1] >= LONG_ROW)}
    expected = eager(expression, [x, y])
    for tile in (65_536, 1_048_576):
        found = schedule_run(expression, [x, y], mode=mode, tile=tile, backwards=True).tensor
        assert_same_bits(found, expected)


@pytest.mark.parametrize("dtype", [BF16, F64], ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(70, 65), (1301, 129), (3, 70_000), (500, 3)], ids=str)
def test_rows_that_were_marked_keep_the_same_elements(shape: tuple[int, ...], dtype: DType) -> None:
    """Marked or not, in tiles of any size and order; zeros and what is not finite included."""
    x, y, *_ = row_tensors(shape, dtype)
    x[0, :3] = torch.tensor([torch.nan, torch.inf, 0.0])
    x[-1] = y[-1]
    a, b = loads([x, y])
    change = ops.delta(a, b)
    kept = ops.drop_by_rank(change, (0.4, 0.2), ops.stream(0))
    expression = ops.cast(ops.apply_delta(b, ops.scale(kept, ops.l1_norm(kept)), 1.0), dtype="F32")
    assert [bool(p.marks) for p in cut(expression)] == [shape[1] >= LONG_ROW, False]
    expected = schedule_run(expression, [x, y], mode="interpreted").tensor
    for tile in (65_536, 1_048_576):
        found = schedule_run(expression, [x, y], tile=tile, backwards=True).tensor
        assert_same_bits(found, expected)


@pytest.mark.parametrize("mode", MODES)
def test_random_masks_do_not_depend_on_tiles_or_their_order(mode: Mode) -> None:
    tensors = [normal(300_001, dtype=BF16, seed=i) for i in range(3)]
    expression = ops.cast(EXPRESSIONS["drop"](*loads(tensors)), dtype="F32")
    expected = eager(expression, tensors)
    for tile in (65_536, 1_048_576):
        found = schedule_run(expression, tensors, mode=mode, tile=tile, backwards=True).tensor
        assert_same_bits(found, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(700, 301), (3, 5, 7), (1, 9), (9, 1), (7,), (), (0, 4), (4, 0)], ids=str)
def test_columns_have_their_own_coefficients(shape: tuple[int, ...], mode: Mode) -> None:
    tensors = [normal(*shape, dtype=F32, seed=i) for i in range(2)]
    x, y = loads(tensors)
    expression = ops.column_sum(x, y, ops.column_arc(ops.column_products(x, y), 0.3))
    expected = eager(expression, tensors)
    for tile in (65_536, 1_048_576):
        result = schedule_run(expression, tensors, mode=mode, tile=tile, backwards=True)
        assert_same_bits(result.tensor, expected)
    if shape == (700, 301):
        a, b = (t[:, 13].double() for t in tensors)
        angle = torch.acos(a @ b / (a.norm() * b.norm()))
        by_hand = (torch.sin(0.7 * angle) * a + torch.sin(0.3 * angle) * b) / torch.sin(angle)
        torch.testing.assert_close(expected[:, 13].double(), by_hand, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", (F32, F64), ids=lambda d: d.name)
def test_a_result_is_stored_without_a_cast_too(dtype: DType) -> None:
    tensors = tensors_of((dtype,), 2000)
    expression = ops.scale(loads(tensors)[0], 1.5)
    assert expression.spec.dtype is dtype
    assert_same_bits(schedule_run(expression, tensors).tensor, tensors[0] * 1.5)


def test_a_value_that_several_ops_use_is_computed_once() -> None:
    a, b = loads(tensors_of((F32,))[:2])
    shared = ops.delta(a, b)
    source = tile_source(cut(ops.apply_delta(b, ops.weighted_sum(shared, shared, (0.5, 0.25)), 1.0))[0])
    assert source.count(" - ") == 1


def _one(a: Node, b: Node, t: float) -> Node:
    return ops.cast(ops.weighted_sum(a, b, ops.slerp(ops.gram(a, b), t)), dtype="BF16")


def test_code_depends_on_structure_and_not_on_numbers_or_shapes() -> None:
    first = [tile_source(p) for p in cut(_one(*loads([normal(3, 4), normal(3, 4)]), 0.3))]
    second = [tile_source(p) for p in cut(_one(*loads([normal(70_000), normal(70_000)]), 0.9))]
    other = [tile_source(p) for p in cut(_one(*loads([normal(3, 4), normal(3, 4, dtype=BF16)]), 0.3))]
    assert first == second
    assert len(first) == 2
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_the_same_plan_gives_the_same_code() -> None:
    again = [tile_source(cut(_one(*loads([normal(5), normal(5)]), 0.3))[1]) for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize("tile", [65_536, 131_072, 1_048_576])
def test_an_output_does_not_depend_on_tiles_or_their_order(tile: int) -> None:
    tensors = tensors_of((BF16,), 600_001)
    expression = ops.cast(EXPRESSIONS["weighted_sum"](*loads(tensors)), dtype="BF16")
    expected = eager(expression, tensors)
    assert_same_bits(schedule_run(expression, tensors, tile=tile, backwards=True).tensor, expected)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (5, 1), (1, 5), (3, 7)])
def test_any_shape_will_do(shape: tuple[int, ...]) -> None:
    tensors = [normal(*shape, dtype=BF16, seed=i) for i in range(3)]
    expression = ops.cast(EXPRESSIONS["weighted_sum"](*loads(tensors)), dtype="BF16")
    assert_same_bits(schedule_run(expression, tensors).tensor, eager(expression, tensors))
