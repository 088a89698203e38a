"""A mixture's experts become one MLP again, and its body the dense family's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mergegraph.architectures import moe_family
from mergegraph.architectures.dense import Dense
from mergegraph.architectures.dense_recipe import Chosen, dense_recipe
from mergegraph.architectures.moe import MoeFamily, Obstacle, Options, Recipe
from mergegraph.architectures.moe_layer import MoeLayer, moe_layer
from mergegraph.architectures.recipe import recipe
from mergegraph.architectures.slots import ROLES
from mergegraph.tensorspec import DType, TensorSpec
from tests.architectures.baking import Array, bake
from tests.architectures.dense_models import HIDDEN, SIZE, dense

LAYER = "model.layers.1."


def family(name: str) -> MoeFamily:
    found = moe_family(name)
    assert found is not None
    return found


def numbers(model: Dense, seed: int) -> dict[str, Array]:
    draw = np.random.default_rng(seed)
    return {n: draw.normal(size=s.shape) for n, s in model.tensors.items()}


def mixture(name: str, base: Dense, **options: Any) -> tuple[Dense, dict[str, Array], list[dict[str, Array]]]:
    """A mixture of two experts with different weights, those weights, and the experts'."""
    shared = options.pop("shared", 0)
    wanted = Options(2, 2, shared, **options)
    made = recipe(family(name), base, [base, base], [base] * shared, wanted)
    assert isinstance(made, Recipe), made
    weights = [numbers(base, seed) for seed in (0, 1, 2)]
    baked = bake(made, weights[0], weights[:2], weights[2:])
    return Dense(made.config, {n: TensorSpec(x.shape, DType.F32) for n, x in baked.items()}), baked, weights


def back(name: str, moe: Dense, *chosen: Chosen, shared: float = 0.0) -> Recipe:
    made = dense_recipe(family(name), moe, chosen, shared)
    assert isinstance(made, Recipe), made
    return made


PAIRS = [
    ("mixtral", dense("llama", head_dim=8, rope_theta=5e5)),
    ("mixtral", dense("mistral", sliding_window=5)),
    ("qwen2_moe", dense("qwen2", biases="qkv")),
    ("qwen3_moe", dense("qwen3", rope_theta=1e6)),
    ("glm4_moe", dense("llama")),
    ("glm4_moe", dense("qwen3")),
    ("granitemoe", dense("granite", logits_scaling=3.0, attention_multiplier=0.5)),
    ("flex_olmo", dense("olmo2")),
    ("ernie4_5_moe", dense("ernie4_5", head=False)),
]


@pytest.mark.parametrize(("name", "base"), PAIRS, ids=[f"{n}-{b.config['model_type']}" for n, b in PAIRS])
def test_an_expert_of_a_mixture_is_the_model_it_came_from(name: str, base: Dense) -> None:
    moe, baked, weights = mixture(name, base, shared=int(name == "qwen2_moe"))
    made = back(name, moe, Chosen(1))
    assert {k: v for k, v in base.config.items() if made.config.get(k) != v} == {}
    extracted = bake(made, baked, [], [])
    assert list(extracted) == list(base.tensors)
    for tensor, values in extracted.items():
        own = weights[1] if ".mlp." in tensor else weights[0]
        assert (values == own[tensor]).all(), tensor


def test_a_set_of_experts_lies_side_by_side_with_scaled_outputs() -> None:
    moe, baked, weights = mixture("mixtral", dense("llama"))
    made = back("mixtral", moe, Chosen(1, 0.25), Chosen(0, 0.75))
    assert made.config["intermediate_size"] == 2 * SIZE
    found = bake(made, baked, [], [])
    up, down = LAYER + "mlp.up_proj.weight", LAYER + "mlp.down_proj.weight"
    assert (found[up] == np.concatenate([weights[1][up], weights[0][up]])).all()
    expected = np.concatenate([0.25 * weights[1][down], 0.75 * weights[0][down]], axis=1)
    assert (found[down] == expected).all()


def test_the_shared_expert_may_come_along() -> None:
    moe, baked, weights = mixture("glm4_moe", dense("llama"), shared=1)
    made = back("glm4_moe", moe, Chosen(0), shared=0.5)
    down = LAYER + "mlp.down_proj.weight"
    found = bake(made, baked, [], [])[down]
    assert (found[:, SIZE:] == 0.5 * weights[2][down]).all()
    assert made.config["intermediate_size"] == 2 * SIZE


def test_layers_that_were_dense_are_padded_to_the_size_of_the_others() -> None:
    moe, baked, weights = mixture("glm4_moe", dense("llama"), keep_dense_layers=1)
    made = back("glm4_moe", moe, Chosen(0), Chosen(1))
    found = bake(made, baked, [], [])["model.layers.0.mlp.gate_proj.weight"]
    assert (found[:SIZE] == weights[0]["model.layers.0.mlp.gate_proj.weight"]).all()
    assert found.shape == (2 * SIZE, HIDDEN)
    assert (found[SIZE:] == 0).all()


def test_stacked_experts_are_read_in_place() -> None:
    moe, baked, weights = mixture("qwen3_moe", dense("qwen3"), layout="stacked")
    found = bake(back("qwen3_moe", moe, Chosen(1)), baked, [], [])
    for role in ROLES:
        name = f"{LAYER}mlp.{role}_proj.weight"
        assert (found[name] == weights[1][name]).all()


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("gemma4_text", {}, "no dense family has the body of a gemma4_text model"),
        ("glm4_moe", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor: 0.5"),
        ("ernie4_5_moe", {"use_bias": True}, "use_bias: True"),
        ("granitemoehybrid", {"position_embedding_type": None}, "position_embedding_type: None"),
    ],
)
def test_a_body_that_no_dense_family_has_is_refused(name: str, change: dict[str, Any], said: str) -> None:
    found = dense_recipe(family(name), Dense(change, {}), [Chosen(0)])
    assert isinstance(found, tuple)
    assert said in str(found[0])


def test_experts_that_are_not_there_are_refused() -> None:
    moe, _, _ = mixture("mixtral", dense("llama"))

    def said(model: Dense, *chosen: Chosen, shared: float = 0.0) -> str:
        found = dense_recipe(family("mixtral"), model, chosen, shared)
        assert isinstance(found, tuple) and all(isinstance(o, Obstacle) for o in found)
        return "\n".join(map(str, found))

    assert "layer 0 has experts 0 to 1, and no expert 2" in said(moe, Chosen(2))
    assert "no expert is chosen" in said(moe)
    assert "layer 0 has no shared expert" in said(moe, Chosen(0), shared=1.0)
    assert "no layer has experts" in said(dense("mixtral"), Chosen(0))
    name = LAYER + "block_sparse_moe.experts.1.w3.weight"
    lacking = Dense(moe.config, {n: s for n, s in moe.tensors.items() if n != name})
    assert "layer 1 lacks a matrix of expert 1" in said(lacking, Chosen(1))


def test_a_layer_says_what_has_an_entry_for_each_expert() -> None:
    moe, _, _ = mixture("ernie4_5_moe", dense("ernie4_5"))
    layer = layer_of(moe, "ernie4_5_moe")
    assert layer.router == (("mlp.gate.weight", 0), ("mlp.moe_statics.e_score_correction_bias", 1))
    assert layer.stacks == ()
    assert layer.sizes == (2, SIZE, HIDDEN)


def test_a_layer_says_what_its_stacks_are() -> None:
    moe, _, _ = mixture("granitemoe", dense("granite"))
    layer = layer_of(moe, "granitemoe")
    names = ("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight")
    assert (layer.layout, layer.stacks) == ("stacked", names)


def test_a_plain_layer_is_no_mixture() -> None:
    base = dense("llama")
    specs = {n.removeprefix(LAYER): s for n, s in base.tensors.items() if n.startswith(LAYER)}
    assert moe_layer(family("mixtral"), specs) is None


def layer_of(moe: Dense, name: str) -> MoeLayer:
    specs = {n.removeprefix(LAYER): s for n, s in moe.tensors.items() if n.startswith(LAYER)}
    found = moe_layer(family(name), specs)
    assert found is not None
    return found
