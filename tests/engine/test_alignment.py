"""Matching the experts of two mixtures, against every permutation there is."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from mergegraph.compiler.inputs import Input
from mergegraph.engine import alignment
from mergegraph.engine.alignment import assignments
from mergegraph.engine.opening import Opened, inputs_of, open_model
from mergegraph.errors import GraphError
from mergegraph.plan.surgery import AlignBy
from mergegraph.plan.values import parse_model_ref
from mergegraph.storage.reader import Reader
from tests.engine.mixtures import EXPERTS, LAYERS, Array, Mixtures, Tensors, mixtral, stacked

ROLES = ("w1", "w2", "w3")
MOE = "model.layers.{}.block_sparse_moe."


def unrelated(seed: int) -> Tensors:
    """A mixture whose experts have nothing to do with those of any other seed."""
    random = np.random.default_rng(seed)
    return {n: random.standard_normal(x.shape).astype(np.float32) for n, x in mixtral(0).items()}


def found(a: Path, b: Path, by: AlignBy) -> dict[str, tuple[int, ...]]:
    refs = [parse_model_ref(str(place)) for place in (a, b)]
    indexes = {ref: open_model(ref) for ref in refs}
    opened = Opened(indexes, {ref: str(ref) for ref in refs})
    inputs: list[Input] = list(inputs_of(refs, refs[0], opened).values())
    with Reader({model.key: model.index for model in inputs}) as reader:
        return assignments(inputs[0], inputs[1], by, reader)


def cosine(x: Array, y: Array) -> float:
    a, b = x.astype(np.float64).ravel(), y.astype(np.float64).ravel()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def best(a: Tensors, b: Tensors, layer: int, by: str) -> tuple[int, ...]:
    """The order of `b` whose experts are most like those of `a`, by trying all."""
    prefix = MOE.format(layer)
    likeness = np.zeros((EXPERTS, EXPERTS))
    for i in range(EXPERTS):
        for j in range(EXPERTS):
            if by == "router":
                likeness[i, j] = cosine(a[f"{prefix}gate.weight"][i], b[f"{prefix}gate.weight"][j])
            else:
                pairs = (
                    (a[f"{prefix}experts.{i}.{r}.weight"], b[f"{prefix}experts.{j}.{r}.weight"])
                    for r in ROLES
                )
                likeness[i, j] = sum(cosine(x, y) for x, y in pairs)
    totals = {order: sum(likeness[range(EXPERTS), order]) for order in permutations(range(EXPERTS))}
    return max(totals, key=lambda order: totals[order])


@pytest.mark.parametrize("by", ["router", "weights"])
@pytest.mark.parametrize("seed", range(4))
def test_no_permutation_is_better(tmp_path: Path, by: AlignBy, seed: int) -> None:
    models = Mixtures(tmp_path)
    a, b = unrelated(seed), unrelated(seed + 100)
    order = found(models.write("a", a), models.write("b", stacked(b)), by)
    assert order == {f"model.layers.{i}.": best(a, b, i, by) for i in range(LAYERS)}


@pytest.mark.parametrize("by", ["router", "weights"])
@pytest.mark.parametrize("layouts", [(False, False), (True, True), (True, False), (False, True)])
def test_a_planted_order_is_found_in_any_layout_and_dtype(
    tmp_path: Path, by: AlignBy, layouts: tuple[bool, bool]
) -> None:
    models = Mixtures(tmp_path)
    orders = ((2, 0, 3, 1), (0, 1, 2, 3), (3, 2, 1, 0))
    a, b = unrelated(1), unrelated(1)
    for layer, order in enumerate(orders):
        prefix = MOE.format(layer)
        b[f"{prefix}gate.weight"] = a[f"{prefix}gate.weight"][list(order)]
        for new, old in enumerate(order):
            for role in ROLES:
                b[f"{prefix}experts.{new}.{role}.weight"] = a[f"{prefix}experts.{old}.{role}.weight"]
    first = models.write("a", stacked(a) if layouts[0] else a)
    second = models.write("b", stacked(b) if layouts[1] else b, narrow=True)
    inverse = {f"model.layers.{i}.": tuple(map(int, np.argsort(order))) for i, order in enumerate(orders)}
    assert found(first, second, by) == inverse
    assert found(second, first, by) == {f"model.layers.{i}.": order for i, order in enumerate(orders)}


@pytest.mark.parametrize("by", ["router", "weights"])
def test_reading_in_blocks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: AlignBy
) -> None:
    models = Mixtures(tmp_path)
    a, b = models.write("a", stacked(unrelated(1))), models.write("b", unrelated(2))
    whole = found(a, b, by)
    monkeypatch.setattr(alignment, "_ELEMENTS", 7 * EXPERTS)
    assert found(a, b, by) == whole


def test_size_does_not_matter_only_direction_does(tmp_path: Path) -> None:
    models = Mixtures(tmp_path)
    a = unrelated(1)
    b = {n: x * (100.0 if ".experts.3." in n else 1e-3) for n, x in a.items()}
    order = found(models.write("a", a), models.write("b", b), "weights")
    assert set(order.values()) == {tuple(range(EXPERTS))}


def test_routers_of_zeros_leave_the_order_alone(tmp_path: Path) -> None:
    models = Mixtures(tmp_path)
    zero = {n: np.zeros_like(x) if "gate" in n else x for n, x in unrelated(1).items()}
    order = found(models.write("a", zero), models.write("b", zero), "router")
    assert set(order.values()) == {tuple(range(EXPERTS))}


def test_models_without_experts_are_said(tmp_path: Path) -> None:
    models = Mixtures(tmp_path)
    dense = {n: x for n, x in unrelated(1).items() if "block_sparse_moe" not in n}
    with pytest.raises(GraphError, match="has no experts"):
        found(models.write("a", dense), models.write("b", dense), "router")


def test_other_sizes_of_experts_are_said(tmp_path: Path) -> None:
    models = Mixtures(tmp_path)
    with pytest.raises(GraphError, match="has different shapes in"):
        found(models.write("a", mixtral(1)), models.write("b", mixtral(1, inner=32)), "weights")


def test_a_missing_router_is_said(tmp_path: Path) -> None:
    models = Mixtures(tmp_path)
    bare = {n: x for n, x in unrelated(1).items() if "layers.1.block_sparse_moe.gate" not in n}
    whole = models.write("whole", unrelated(1))
    bare_place = models.write("bare", bare)
    with pytest.raises(GraphError, match=r"bare has no router in model\.layers\.1\."):
        found(bare_place, whole, "router")
    with pytest.raises(GraphError, match=r"bare has no model\.layers\.1\.block_sparse_moe\.gate\.weight"):
        found(whole, bare_place, "router")
