"""Generated code gives, bit for bit, what torch gives op by op: for every op and every stored dtype."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from mergegraph import ops
from mergegraph.graph.node import Locality, Node
from mergegraph.runtime.tilecode import tile_source
from mergegraph.schedule.tiling import cut
from mergegraph.tensorspec import DType
from tests.runtime.harness import assert_same_bits, eager, loads, normal, schedule_run

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
