"""What holds for every merge method, whatever its formula. A new file in the package is covered at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from mergegraph.graph.node import Locality, Node, walk
from mergegraph.kernels.reduction import CHUNK
from mergegraph.methods import all_methods, get_method
from mergegraph.methods.base import MergeMethod
from mergegraph.plan.merge import parse_plan
from mergegraph.tensorspec import DType, Space
from tests.methods.arguments import (
    adds_up,
    build,
    eager_merge,
    merge_expression,
    model_count,
    operand_count,
    resolved,
    variants,
)
from tests.runtime.harness import assert_same_bits, dtype_of, loads, normal, schedule_run, stream

METHODS = [pytest.param(method, id=name) for name, method in all_methods().items()]
VARIANTS = [
    pytest.param(method, settings, id=f"{name}, {title}")
    for name, method in all_methods().items()
    for title, settings in variants(method).items()
]
STORED: dict[str, tuple[tuple[DType, ...], DType]] = {
    "bf16": ((DType.BF16,), DType.BF16),
    "f16 and f32": ((DType.F16, DType.F32), DType.F16),
    "f64": ((DType.F64,), DType.F64),
    "bf16 and f64": ((DType.BF16, DType.F64, DType.F32), DType.F32),
}
COUNT = 2 * CHUNK + 1003
SHAPES: list[tuple[int, ...]] = [(), (0,), (1,), (0, 3), (3, 0), (5, 1), (1, 5), (2, 3, 4)]


@dataclass(frozen=True)
class Inputs:
    """Tensors like those of fine-tunes: a common part, and small changes."""

    method: MergeMethod
    dtypes: tuple[DType, ...] = (DType.BF16,)
    wanted: int = 2

    def like(self, *shape: int, change: float = 0.1) -> list[Tensor]:
        common = normal(*shape, dtype=DType.F64, seed=99)
        tensors = []
        for i in range(operand_count(self.method, self.wanted)):
            own = common + change * normal(*shape, dtype=DType.F64, seed=i)
            tensors.append(own.to(getattr(torch, self.dtypes[i % len(self.dtypes)].torch_name)))
        return tensors


def both(method: MergeMethod, tensors: list[Tensor], settings: dict[str, Any], **options: Any) -> Tensor:
    """The merge in bfloat16, after checking that a scheduled run gives the same bits."""
    expected = eager_merge(method, tensors, settings, DType.BF16)
    expression = merge_expression(method, tensors, settings, DType.BF16)
    assert_same_bits(schedule_run(expression, tensors, **options).tensor, expected)
    return expected


@pytest.mark.parametrize(("method", "settings"), VARIANTS)
def test_a_scheduled_run_gives_what_the_method_gives_on_tensors(method: MergeMethod, settings: Any) -> None:
    both(method, Inputs(method).like(COUNT), settings)


@pytest.mark.parametrize("stored", [kind for kind in STORED if kind != "bf16"])
@pytest.mark.parametrize("method", METHODS)
def test_it_does_so_for_every_stored_dtype(method: MergeMethod, stored: str) -> None:
    dtypes, out = STORED[stored]
    tensors = Inputs(method, dtypes).like(COUNT)
    expected, expression = eager_merge(method, tensors, {}, out), merge_expression(method, tensors, {}, out)
    found = schedule_run(expression, tensors).tensor
    if out is DType.F64 and any(n.op.locality is Locality.ROWWISE for n in walk([expression])):
        # Passes over rows add up row by row, which float64 can tell from chunk by chunk.
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    else:
        assert_same_bits(found, expected)


@pytest.mark.parametrize("method", METHODS)
def test_tiles_their_order_and_the_backend_change_nothing(method: MergeMethod) -> None:
    tensors = Inputs(method).like(9 * CHUNK + 17)
    for options in ({"tile": CHUNK, "backwards": True}, {"tile": 16 * CHUNK}, {"mode": "interpreted"}):
        both(method, tensors, {}, **options)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("method", "settings"), VARIANTS)
def test_any_shape_can_be_merged(method: MergeMethod, settings: Any, shape: tuple[int, ...]) -> None:
    found = both(method, Inputs(method).like(*shape), settings)
    assert tuple(found.shape) == shape
    assert found.isfinite().all()


@pytest.mark.parametrize("wanted", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_as_many_models_as_the_method_takes(method: MergeMethod, wanted: int) -> None:
    if model_count(method, wanted) == wanted:
        assert both(method, Inputs(method, wanted=wanted).like(40, 5), {}).isfinite().all()


@pytest.mark.parametrize(("method", "settings"), VARIANTS)
def test_the_result_has_the_spec_that_its_node_says(method: MergeMethod, settings: Any) -> None:
    for dtypes, _ in STORED.values():
        tensors = Inputs(method, dtypes).like(3, 5)
        node = build(method, list(loads(tensors)), settings)
        assert isinstance(node, Node)
        result = build(method, list(tensors), settings)
        assert (tuple(result.shape), dtype_of(result)) == (node.spec.shape, node.spec.dtype)
        assert (node.spec.shape, node.spec.space) == ((3, 5), Space.WEIGHT)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_arguments_build_the_same_node(method: MergeMethod) -> None:
    tensors = Inputs(method).like(3, 5)
    first, second = (build(method, list(loads(tensors)), {}) for _ in range(2))
    assert first.key == second.key


@pytest.mark.parametrize(("method", "settings"), VARIANTS)
def test_merging_equal_models_gives_that_model(method: MergeMethod, settings: dict[str, Any]) -> None:
    """Whatever rounding there is in float32 is far below what bfloat16 resolves."""
    if not adds_up(method, settings):
        return
    x = Inputs(method).like(31, 33)[0]
    x.view(-1)[:7] = torch.tensor([0.0, 1.0, -1.0, 3e38, -3e38, 1e-30, 2.0**-126])
    merged = both(method, [x.clone() for _ in range(operand_count(method))], settings)
    assert torch.equal(merged, x)


NOT_HOMOGENEOUS = {
    "arcee_fusion": "a softmax is not",
    "karcher": "tol is a length",
    "multislerp": "eps is a length",
    "nearswap": "t is a length",
    "pcb": "a hyperbolic tangent is not",
    "ram": "epsilon is a length",
    "ramplus_tl": "epsilon is a length",
    "sce": "weights are equal below a fixed energy",
}


@pytest.mark.parametrize(("method", "settings"), VARIANTS)
def test_a_merge_of_scaled_models_is_the_scaled_merge(method: MergeMethod, settings: Any) -> None:
    """By a power of two, which no rounding can see; where lengths are compared with a number, nearly so."""
    tensors = Inputs(method, (DType.F64,)).like(31, 33)
    merged = eager_merge(method, tensors, settings, DType.F64)
    scaled = eager_merge(method, [16.0 * x for x in tensors], settings, DType.F64)
    if method.name not in NOT_HOMOGENEOUS:
        assert torch.equal(scaled, 16.0 * merged)
    elif method.name in ("karcher", "multislerp", "sce"):
        torch.testing.assert_close(scaled, 16.0 * merged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("method", "settings"), VARIANTS)
def test_the_order_of_the_models_does_not_matter(method: MergeMethod, settings: Any) -> None:
    """Weights, parameters and random streams go with their model."""
    tensors = Inputs(method, (DType.F64,), 3).like(31, 33)
    base, models, shared, each = resolved(method, tensors, settings)
    forwards = method.build(base, models, shared, each)
    backwards = method.build(base, models[::-1], shared, each[::-1])
    torch.testing.assert_close(backwards, forwards, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", [pytest.param(m, id=n) for n, m in all_methods().items() if m.random])
def test_a_stream_decides_the_mask_and_nothing_else_does(method: MergeMethod) -> None:
    base, models, shared, each = resolved(method, Inputs(method, (DType.F64,), 1).like(31, 33), {})
    found = [
        method.build(base, models, shared, (each[0].including("stream", stream(slot)),)) for slot in (1, 1, 2)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("method", METHODS)
def test_a_density_of_zero_leaves_the_base_and_of_one_loses_nothing(method: MergeMethod) -> None:
    density = method.parameter("density")
    if density is None or density.minimum is None:  # none, or one without an effect
        return
    tensors = Inputs(method).like(31, 33)
    assert torch.equal(eager_merge(method, tensors, {"density": 0.0}, DType.BF16), tensors[0])
    whole = get_method("ties" if "sign" in method.summary else "task_arithmetic")
    own = {"normalize": False}
    assert torch.equal(
        eager_merge(method, tensors, {"density": 1.0, **own}, DType.BF16),
        eager_merge(whole, tensors, {"density": 1.0, **own}, DType.BF16),
    )


@pytest.mark.parametrize(("method", "settings"), VARIANTS)
def test_inputs_are_left_as_they_are(method: MergeMethod, settings: dict[str, Any]) -> None:
    tensors = Inputs(method, (DType.F32,)).like(4, 5)
    before = [x.clone() for x in tensors]
    build(method, list(tensors), settings)
    for x, y in zip(tensors, before, strict=True):
        assert_same_bits(x, y)


@pytest.mark.parametrize(("method", "settings"), VARIANTS)
def test_tensors_of_zeros_merge_to_zeros(method: MergeMethod, settings: dict[str, Any]) -> None:
    zeros = [torch.zeros_like(x) for x in Inputs(method).like(5, 7)]
    assert torch.equal(both(method, zeros, settings), zeros[0])


@pytest.mark.parametrize(("method", "settings"), VARIANTS)
def test_changes_that_are_all_equal_are_no_problem(method: MergeMethod, settings: dict[str, Any]) -> None:
    """Every magnitude is the threshold then, and every norm the same."""
    tensors = Inputs(method).like(5, 7)
    equal = [tensors[0]] + [tensors[0] + 0.5 for _ in tensors[1:]]
    assert both(method, equal, settings).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_vectors_that_point_in_opposite_directions_are_no_problem(method: MergeMethod) -> None:
    tensors = Inputs(method).like(5, 7)
    opposite = [tensors[0] if i % 2 == 0 else -tensors[0] for i in range(len(tensors))]
    assert both(method, opposite, {}).isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("method", METHODS)
def test_a_number_that_is_not_finite_never_disappears(method: MergeMethod, bad: float) -> None:
    """It is reported by the run, which counts such numbers in what it writes."""
    for i in range(operand_count(method)):
        tensors = Inputs(method, (DType.F32,)).like(5, 7)
        tensors[i][2, 3] = bad
        merged = build(method, list(tensors), {})
        assert not merged.isfinite()[2, 3], f"operand {i}"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_says_where_it_comes_from_and_shows_a_plan(method: MergeMethod) -> None:
    assert get_method(method.name) is method
    for text in (method.summary, method.formula, method.deviations, method.reference.paper):
        assert text.strip()
    assert method.reference.link.startswith("https://")
    assert all(p.doc for p in method.parameters)
    assert parse_plan(method.example, "example.yml").method == method.name
