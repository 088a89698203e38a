"""Every tensor of a mixture, and what it is put together from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mergegraph.architectures import all_moe_families, moe_family
from mergegraph.architectures.dense import Dense
from mergegraph.architectures.moe import Fill, Gate, OutTensor, Part, Recipe, Source
from mergegraph.architectures.moe import Options as Wanted
from mergegraph.architectures.recipe import SMALL, recipe
from mergegraph.checkpoint.view import RowOrder
from mergegraph.tensorspec import DType
from tests.architectures.baking import Array, bake
from tests.architectures.dense_models import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, SIZE, dense, phi3

LAYER = "model.layers.1."


def build(name: str, base: Dense, **options: Any) -> Recipe:
    family = moe_family(name)
    assert family is not None
    experts = options.pop("experts_from", [base])
    shared = options.pop("shared_from", [])
    wanted = Wanted(**{"experts": 2, "active": 2, "shared": len(shared), **options})
    made = recipe(family, base, experts, shared, wanted)
    assert isinstance(made, Recipe), made
    return made


def layer(made: Recipe) -> dict[str, OutTensor]:
    return {t.name.removeprefix(LAYER): t for t in made.tensors if t.name.startswith(LAYER)}


def numbers(model: Dense, start: int = 0) -> dict[str, Array]:
    """Weights that are all different."""
    found, at = {}, float(start)
    for name, spec in model.tensors.items():
        found[name] = np.arange(at, at + spec.numel).reshape(spec.shape)
        at += spec.numel
    return found


def test_mixtrals_tensors_stand_in_natural_order() -> None:
    made = build("mixtral", dense("llama"))
    names = [t.name for t in made.tensors]
    assert names[0] == "model.embed_tokens.weight"
    assert names[-2:] == ["model.norm.weight", "lm_head.weight"]
    assert list(layer(made)) == [
        "input_layernorm.weight",
        "self_attn.q_proj.weight",
        "self_attn.k_proj.weight",
        "self_attn.v_proj.weight",
        "self_attn.o_proj.weight",
        "post_attention_layernorm.weight",
        "block_sparse_moe.gate.weight",
        "block_sparse_moe.experts.0.w1.weight",
        "block_sparse_moe.experts.0.w3.weight",
        "block_sparse_moe.experts.0.w2.weight",
        "block_sparse_moe.experts.1.w1.weight",
        "block_sparse_moe.experts.1.w3.weight",
        "block_sparse_moe.experts.1.w2.weight",
    ]


def test_a_copied_tensor_is_the_base_models_and_whole() -> None:
    made = layer(build("mixtral", dense("llama")))
    name = "self_attn.q_proj.weight"
    assert made[name].parts == (Part(Source("base"), LAYER + name),)
    assert made[name].dtype is None


def test_w1_is_the_gate_w3_up_and_w2_down_of_its_own_expert() -> None:
    base = dense("llama")
    made = layer(build("mixtral", base, experts_from=[base, base]))
    found = {n: t.parts for n, t in made.items() if ".experts." in n}
    roles = {"w1": "gate", "w3": "up", "w2": "down"}
    for e in (0, 1):
        for role, dense_role in roles.items():
            source = f"{LAYER}mlp.{dense_role}_proj.weight"
            expected = (Part(Source("expert", e), source),)
            assert found[f"block_sparse_moe.experts.{e}.{role}.weight"] == expected


def test_router_rows_come_from_the_gates_unless_they_are_zero() -> None:
    gate = layer(build("mixtral", dense("llama")))["block_sparse_moe.gate.weight"]
    assert (gate.shape, gate.parts) == ((2, HIDDEN), (Gate(1),))
    zero = layer(build("mixtral", dense("llama"), zero_router=True))["block_sparse_moe.gate.weight"]
    assert zero.parts == (Fill(0.0),)


def test_stacked_experts_hold_gate_rows_before_up_rows() -> None:
    base, other = dense("llama"), dense("llama")
    made = build("mixtral", base, experts_from=[base, other], layout="stacked")
    assert {"mlp.gate.weight", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"} < set(layer(made))
    first, second = numbers(base), numbers(other, 10**6)
    baked = bake(made, first, [first, second], [])
    stack, downs = baked[LAYER + "mlp.experts.gate_up_proj"], baked[LAYER + "mlp.experts.down_proj"]
    assert (stack.shape, downs.shape) == ((2, 2 * SIZE, HIDDEN), (2, HIDDEN, SIZE))
    for e, weights in enumerate((first, second)):
        assert (stack[e, :SIZE] == weights[LAYER + "mlp.gate_proj.weight"]).all()
        assert (stack[e, SIZE:] == weights[LAYER + "mlp.up_proj.weight"]).all()
        assert (downs[e] == weights[LAYER + "mlp.down_proj.weight"]).all()


def test_llama4s_stacks_are_transposed_with_gate_columns_before_up_columns() -> None:
    base = dense("llama")
    made = build("llama4_text", base, zero_router=True)
    weights = numbers(base)
    baked = bake(made, weights, [weights], [])
    stack, downs = baked[LAYER + "feed_forward.experts.gate_up_proj"], None
    downs = baked[LAYER + "feed_forward.experts.down_proj"]
    assert (stack.shape, downs.shape) == ((2, HIDDEN, 2 * SIZE), (2, SIZE, HIDDEN))
    # The router's sigmoid halves what enters an expert, and two experts add up.
    assert (stack[1, :, :SIZE] == 2 * weights[LAYER + "mlp.gate_proj.weight"].T).all()
    assert (stack[1, :, SIZE:] == 2 * weights[LAYER + "mlp.up_proj.weight"].T).all()
    assert (downs[1] == weights[LAYER + "mlp.down_proj.weight"].T / 2).all()


@pytest.mark.parametrize("layout", ["per-expert", "stacked"])
def test_a_smaller_expert_is_padded_with_zero_neurons(layout: str) -> None:
    base, small = dense("llama"), dense("llama", size=8)
    made = build("qwen2_moe", base, experts_from=[small, base], shared_from=[small], layout=layout)
    assert made.config["moe_intermediate_size"] == SIZE
    assert made.config["shared_expert_intermediate_size"] == 8
    assert any("padded" in note for note in made.notes)
    weights, little = numbers(base), numbers(small, 10**6)
    baked = bake(made, weights, [little, weights], [little])
    if layout == "stacked":
        gate, down = baked[LAYER + "mlp.experts.gate_up_proj"][0], baked[LAYER + "mlp.experts.down_proj"][0]
    else:
        gate = baked[LAYER + "mlp.experts.0.gate_proj.weight"]
        down = baked[LAYER + "mlp.experts.0.down_proj.weight"]
    assert (gate[:8] == little[LAYER + "mlp.gate_proj.weight"]).all()
    assert (gate[8:SIZE] == 0).all()
    assert (down[:, :8] == little[LAYER + "mlp.down_proj.weight"]).all()
    assert (down[:, 8:] == 0).all()


def test_experts_repeat_when_there_are_fewer_models_than_experts() -> None:
    base = dense("llama")
    made = layer(build("mixtral", base, experts_from=[base, base], experts=4))
    part = made["block_sparse_moe.experts.3.w1.weight"].parts[0]
    assert isinstance(part, Part)
    assert part.source == Source("expert", 3)


def test_correction_biases_are_zero_and_float32() -> None:
    bias = layer(build("glm4_moe", dense("llama")))["mlp.gate.e_score_correction_bias"]
    assert (bias.shape, bias.dtype, bias.parts) == ((2,), DType.F32, (Fill(0.0),))
    ernie = layer(build("ernie4_5_moe", dense("ernie4_5")))
    bias = ernie["mlp.moe_statics.e_score_correction_bias"]
    assert (bias.shape, bias.dtype) == ((1, 2), DType.F32)
    assert ernie["mlp.gate.weight"].dtype is DType.F32
    assert layer(build("mixtral", dense("llama")))["block_sparse_moe.gate.weight"].dtype is None


def test_a_shared_expert_that_loaders_demand_is_zero() -> None:
    made = layer(build("glm4_moe", dense("llama")))
    for role, shape in {"gate": (SIZE, HIDDEN), "up": (SIZE, HIDDEN), "down": (HIDDEN, SIZE)}.items():
        tensor = made[f"mlp.shared_experts.{role}_proj.weight"]
        assert (tensor.shape, tensor.parts) == (shape, (Fill(0.0),))


def test_a_family_that_can_do_without_a_shared_expert_has_none() -> None:
    for name, base in {"ernie4_5_moe": dense("ernie4_5"), "deepseek": dense("llama")}.items():
        assert not [n for n in layer(build(name, base)) if "shared" in n]


def test_a_zero_shared_expert_is_small_where_its_size_is_free() -> None:
    base = dense("qwen3_5_text", size=100)
    made = build("qwen3_5_moe_text", base)
    assert made.config["shared_expert_intermediate_size"] == SMALL
    assert layer(made)["mlp.shared_expert.down_proj.weight"].shape == (HIDDEN, SMALL)


def test_a_listed_shared_expert_is_that_models_mlp() -> None:
    base = dense("llama")
    made = layer(build("qwen2_moe", base, shared_from=[base]))
    part = Part(Source("shared", 0), LAYER + "mlp.up_proj.weight")
    assert made["mlp.shared_expert.up_proj.weight"].parts == (part,)


def test_several_shared_experts_lie_side_by_side() -> None:
    base, other = dense("llama"), dense("llama")
    made = build("glm4_moe", base, shared_from=[base, other])
    assert made.config["n_shared_experts"] == 2
    first, second = numbers(base), numbers(other, 10**6)
    baked = bake(made, first, [first], [first, second])
    gate = baked[LAYER + "mlp.shared_experts.gate_proj.weight"]
    down = baked[LAYER + "mlp.shared_experts.down_proj.weight"]
    assert (gate[SIZE:] == second[LAYER + "mlp.gate_proj.weight"]).all()
    assert (down[:, :SIZE] == first[LAYER + "mlp.down_proj.weight"]).all()


def test_the_gate_of_a_shared_expert_is_zero_unless_it_has_prompts() -> None:
    base = dense("llama")
    plain = layer(build("qwen2_moe", base, shared_from=[base]))["mlp.shared_expert_gate.weight"]
    assert (plain.shape, plain.parts) == ((1, HIDDEN), (Fill(0.0),))
    asked = layer(build("qwen2_moe", base, shared_from=[base], shared_prompts=True))
    assert asked["mlp.shared_expert_gate.weight"].parts == (Gate(1, "shared"),)


def test_missing_biases_are_zero_and_there_are_no_others() -> None:
    base = dense("llama")
    made = layer(build("qwen2_moe", base, shared_from=[base]))
    shapes = {n: t.shape for n, t in made.items() if n.endswith(".bias")}
    rows = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    assert shapes == {
        "self_attn.q_proj.bias": (rows[0],),
        "self_attn.k_proj.bias": (rows[1],),
        "self_attn.v_proj.bias": (rows[1],),
    }
    assert all(made[n].parts == (Fill(0.0),) for n in shapes)
    biased = layer(build("granitemoe", dense("qwen2", biases="qkv")))
    assert biased["self_attn.o_proj.bias"].parts == (Fill(0.0),)
    assert biased["self_attn.q_proj.bias"].parts == (Part(Source("base"), LAYER + "self_attn.q_proj.bias"),)


def test_rotary_rows_are_reordered_for_queries_and_keys_only() -> None:
    made = layer(build("mixtral", dense("ernie4_5", head_dim=8)))
    order = RowOrder(8, 8, "halves")
    for name, part in ((n, t.parts[0]) for n, t in made.items() if n.startswith("self_attn")):
        assert isinstance(part, Part)
        found = part.view.order if part.view is not None else None
        assert found == (order if name[10] in "qk" else None), name


def test_only_the_rotated_part_of_a_head_is_reordered() -> None:
    base = dense("helium", head_dim=8, biases="qkv", attention_bias=True, partial_rotary_factor=0.5)
    made = layer(build("glm4_moe", base))
    for name in ("self_attn.q_proj.weight", "self_attn.q_proj.bias"):
        part = made[name].parts[0]
        assert isinstance(part, Part) and part.view is not None
        assert part.view.order == RowOrder(8, 4, "halves")


def test_a_reordered_head_pairs_neighbours_with_halves() -> None:
    """Rows 0 1 2 3 of a head are pairs (0, 1) and (2, 3); halves pair row 0 with 2 and 1 with 3."""
    base = dense("ernie4_5")
    weights = numbers(base)
    baked = bake(build("mixtral", base), weights, [weights], [])
    name = LAYER + "self_attn.k_proj.weight"
    assert (baked[name] == weights[name][[0, 2, 1, 3, 4, 6, 5, 7]]).all()


def test_fused_projections_are_split() -> None:
    base = phi3()
    made = build("mixtral", base)
    weights = numbers(base)
    baked = bake(made, weights, [weights], [])
    fused = weights[LAYER + "self_attn.qkv_proj.weight"]
    queries, keys = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    assert (baked[LAYER + "self_attn.q_proj.weight"] == fused[:queries]).all()
    assert (baked[LAYER + "self_attn.k_proj.weight"] == fused[queries : queries + keys]).all()
    assert (baked[LAYER + "self_attn.v_proj.weight"] == fused[queries + keys :]).all()
    both = weights[LAYER + "mlp.gate_up_proj.weight"]
    assert (baked[LAYER + "block_sparse_moe.experts.1.w1.weight"] == both[:SIZE]).all()
    assert (baked[LAYER + "block_sparse_moe.experts.1.w3.weight"] == both[SIZE:]).all()
    assert not [n for n in baked if "qkv_proj" in n or "gate_up" in n]


def test_gemmas_constants_move_into_its_tensors() -> None:
    base = dense("gemma", head=False)
    made = {t.name: t.parts[0] for t in build("mixtral", base).tensors}
    embed = "model.embed_tokens.weight"
    assert made[embed] == Part(Source("base"), embed, scale=HIDDEN**0.5)
    assert made["lm_head.weight"] == Part(Source("base"), embed)
    for norm in ("model.norm.weight", LAYER + "input_layernorm.weight"):
        assert made[norm] == Part(Source("base"), norm, shift=1.0)
    assert build("mixtral", base).config["tie_word_embeddings"] is False


def test_a_tied_model_has_no_head_and_a_redundant_one_is_dropped_with_a_note() -> None:
    for head in (True, False):
        made = build("mixtral", dense("llama", head=head, tie_word_embeddings=True))
        assert "lm_head.weight" not in [t.name for t in made.tensors]
        assert any("lm_head" in note for note in made.notes) is head
        assert made.config["tie_word_embeddings"] is True


def test_buffers_that_loaders_compute_are_left_out() -> None:
    base = dense("llama", extra={LAYER + "self_attn.rotary_emb.inv_freq": (2,)})
    assert "self_attn.rotary_emb.inv_freq" not in layer(build("mixtral", base))


def test_layers_past_the_last_are_dropped_with_a_note() -> None:
    base = dense("llama", extra={f"model.layers.{LAYERS}.mlp.gate_proj.weight": (SIZE, HIDDEN)})
    made = build("mixtral", base)
    assert not [t for t in made.tensors if t.name.startswith(f"model.layers.{LAYERS}.")]
    assert any(f"layers from {LAYERS} on are dropped" in note for note in made.notes)


def test_layers_that_stay_dense_keep_the_base_models_mlp() -> None:
    made = build("llama4_text", dense("llama"), zero_router=True, keep_dense_layers=2)
    assert layer(made)["feed_forward.up_proj.weight"].parts == (
        Part(Source("base"), LAYER + "mlp.up_proj.weight"),
    )
    assert not [n for n in layer(made) if "experts" in n or "router" in n]
    assert [t for t in made.tensors if t.name.startswith("model.layers.2.feed_forward.experts")]


def test_gemma4_keeps_its_mlp_beside_the_experts() -> None:
    base = dense(
        "gemma4_text",
        head=False,
        extra={f"model.layers.{i}.pre_feedforward_layernorm.weight": (HIDDEN,) for i in range(LAYERS)},
    )
    made = layer(build("gemma4_text", base))
    assert made["mlp.up_proj.weight"].parts == (Part(Source("base"), LAYER + "mlp.up_proj.weight"),)
    assert made["router.per_expert_scale"].parts == (Fill(1.0),)
    copied = Part(Source("base"), LAYER + "pre_feedforward_layernorm.weight")
    assert made["pre_feedforward_layernorm_2.weight"].parts == (copied,)
    assert made["experts.gate_up_proj"].shape == (2, 2 * SIZE, HIDDEN)


def test_a_family_that_needs_something_unusual_says_so() -> None:
    assert any("trust_remote_code" in note for note in build("deepseek", dense("llama")).notes)
    rope = {"rope_type": "yarn", "factor": 2.0, "llama_4_scaling_beta": 0.1}
    base = dense("ministral3", rope_parameters={**rope, "original_max_position_embeddings": 99})
    assert any("past position 99" in note for note in build("mixtral", base).notes)


def test_no_two_families_claim_one_model_type() -> None:
    claimed = [model_type for family in all_moe_families() for model_type in family.model_types]
    assert len(claimed) == len(dict.fromkeys(claimed))
