"""Which places experts and routers are loaded from, once some are picked."""

from __future__ import annotations

import pytest

from mergegraph.architectures.expert_names import DEEPSEEK, GRANITE, MIXTRAL, QWEN, ExpertNames
from mergegraph.checkpoint.view import Picked, View
from mergegraph.compiler.experts import Place
from mergegraph.compiler.selection import experts_in, selected
from mergegraph.errors import GraphError
from mergegraph.tensorspec import DType, TensorSpec

HIDDEN, INNER = 6, 5


def place(name: str, *shape: int, dtype: DType = DType.BF16) -> Place:
    return Place(name, TensorSpec(shape, dtype))


def mixture(
    experts: int = 4, layers: tuple[int, ...] = (1, 2), router: str = "mlp.gate.weight"
) -> dict[str, Place]:
    """Places of a mixture whose layer 0 is dense."""
    found = {"model.embed_tokens.weight": place("model.embed_tokens.weight", 9, HIDDEN)}
    found["model.layers.0.mlp.up_proj.weight"] = place("dense", INNER, HIDDEN)
    for layer in layers:
        prefix = f"model.layers.{layer}."
        found[prefix + router] = place(prefix + router, experts, HIDDEN)
        bias = prefix + "mlp.gate.e_score_correction_bias"
        found[bias] = place(bias, experts, dtype=DType.F32)
        for e in range(experts):
            for role in ("gate_proj", "up_proj", "down_proj"):
                name = f"{prefix}mlp.experts.{e}.{role}.weight"
                shape = (HIDDEN, INNER) if role == "down_proj" else (INNER, HIDDEN)
                found[name] = place(name, *shape)
        shared = prefix + "mlp.shared_experts.up_proj.weight"
        found[shared] = place(shared, INNER, HIDDEN)
    return found


def test_experts_are_counted_layer_by_layer() -> None:
    assert experts_in(mixture()) == {"model.layers.1.": 4, "model.layers.2.": 4}
    assert experts_in({"model.layers.0.mlp.shared_experts.0.weight": place("a", 2)}) == {}
    assert experts_in({}) == {}


def test_experts_are_renumbered_and_routers_follow() -> None:
    picks = {"model.layers.1.": (3, 0), "model.layers.2.": (1, 2)}
    before, after = mixture(), selected(mixture(), picks, DEEPSEEK)
    for layer, pick in picks.items():
        for new, old in enumerate(pick):
            for role in ("gate_proj", "up_proj", "down_proj"):
                name = f"{layer}mlp.experts.{new}.{role}.weight"
                assert after[name] == before[f"{layer}mlp.experts.{old}.{role}.weight"]
        rows = after[layer + "mlp.gate.weight"]
        assert rows == Place(
            layer + "mlp.gate.weight",
            TensorSpec((2, HIDDEN), DType.BF16),
            View(0, 2, HIDDEN, HIDDEN, 1, Picked(pick)),
        )
        bias = after[layer + "mlp.gate.e_score_correction_bias"]
        assert bias.spec == TensorSpec((2,), DType.F32) and bias.view == View(0, 2, 1, 1, 1, Picked(pick))
    assert experts_in(after) == {"model.layers.1.": 2, "model.layers.2.": 2}
    kept = [n for n in before if "experts." not in n.replace("shared_experts", "") and ".gate." not in n]
    assert all(after[name] == before[name] for name in kept)
    assert list(after) == [name for name in before if name in after], "in the old order"


def test_layers_that_are_not_picked_from_stay_as_they_are() -> None:
    before = mixture()
    after = selected(before, {"model.layers.2.": (0,)}, DEEPSEEK)
    for name, found in before.items():
        if not name.startswith("model.layers.2."):
            assert after[name] == found


def test_a_bias_may_have_an_axis_before_that_of_experts() -> None:
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    found = {**mixture(), name: place(name, 1, 4)}
    after = selected(found, {"model.layers.1.": (2,), "model.layers.2.": (2,)}, DEEPSEEK)[name]
    assert after.spec.shape == (1, 1) and after.view == View(0, 1, 1, 1, 1, Picked((2,)))


@pytest.mark.parametrize(
    ("names", "router"),
    [
        (QWEN, "mlp.gate.weight"),
        (MIXTRAL, "block_sparse_moe.gate.weight"),
        (MIXTRAL, "mlp.gate.weight"),
        (GRANITE, "block_sparse_moe.router.layer.weight"),
        (GRANITE, "block_sparse_moe.router.weight"),
    ],
)
def test_routers_are_known_in_every_spelling(names: ExpertNames, router: str) -> None:
    picks = {"model.layers.1.": (3, 1), "model.layers.2.": (0, 2)}
    after = selected(mixture(router=router), picks, names)
    assert after["model.layers.1." + router].spec.shape == (2, HIDDEN)


def test_experts_without_a_router_are_not_renumbered_in_silence() -> None:
    with pytest.raises(GraphError, match=r"model\.layers\.2\. has experts, and no router"):
        found = {n: p for n, p in mixture().items() if n != "model.layers.2.mlp.gate.weight"}
        found = {n: p for n, p in found.items() if n != "model.layers.2.mlp.gate.e_score_correction_bias"}
        selected(found, {"model.layers.1.": (0,), "model.layers.2.": (0,)}, DEEPSEEK)


def test_a_router_of_another_size_is_said() -> None:
    name = "model.layers.1.mlp.gate.weight"
    with pytest.raises(GraphError, match=r"\[5, 6\] has no entry for each of 4 experts"):
        selected({**mixture(), name: place(name, 5, HIDDEN)}, {"model.layers.1.": (0,)}, DEEPSEEK)
