"""The config of a mixture says everything that the dense model's computation depends on."""

from __future__ import annotations

from typing import Any

import pytest

from mergegraph.architectures import moe_family
from mergegraph.architectures.dense import Dense
from mergegraph.architectures.moe import Options, Recipe
from mergegraph.architectures.recipe import recipe
from tests.architectures.dense_models import HEAD_DIM, LAYERS, SIZE, dense

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def config(name: str, base: Dense, **options: Any) -> dict[str, Any]:
    family = moe_family(name)
    assert family is not None
    needs = family.shared is not None and family.shared.absent == "refused"
    wanted = Options(**{"experts": 4, "active": 2, "shared": int(needs), **options})
    made = recipe(family, base, [base], [base] * wanted.shared, wanted)
    assert isinstance(made, Recipe), made
    return dict(made.config)


def test_mixtral_says_what_llama_says_and_how_it_routes() -> None:
    found = config("mixtral", dense("llama", rms_norm_eps=1e-4, hidden_act="gelu", eos_token_id=7))
    assert found["architectures"] == ["MixtralForCausalLM"]
    assert found["model_type"] == "mixtral"
    assert (found["num_local_experts"], found["num_experts"], found["num_experts_per_tok"]) == (4, 4, 2)
    assert (found["intermediate_size"], found["head_dim"], found["num_key_value_heads"]) == (SIZE, 4, 2)
    assert (found["rms_norm_eps"], found["hidden_act"], found["eos_token_id"]) == (1e-4, "gelu", 7)
    assert "attention_bias" not in found


def test_what_a_dense_config_leaves_out_is_what_its_class_assumes() -> None:
    """Mixtral's class assumes a rotary base of a million, an epsilon of 1e-5 and no window."""
    found = config("mixtral", dense("mistral"))
    assert found["sliding_window"] == 4096
    assert found["rope_theta"] == found["rope_parameters"]["rope_theta"] == 10000.0
    assert found["rms_norm_eps"] == 1e-6
    assert found["tie_word_embeddings"] is False
    assert config("mixtral", dense("ernie4_5", head=False))["tie_word_embeddings"] is True


def test_a_missing_head_dim_is_written_out() -> None:
    found = config("mixtral", dense("llama", head_dim=HEAD_DIM, num_key_value_heads=2))
    assert found["head_dim"] == HEAD_DIM
    wide = config("mixtral", dense("llama", head_dim=8))
    assert wide["head_dim"] == 8


@pytest.mark.parametrize("window", [None, 5])
def test_mixtral_keeps_the_sliding_window(window: int | None) -> None:
    assert config("mixtral", dense("mistral", sliding_window=window))["sliding_window"] == window


def test_qwen2_moe_lists_the_layers_whose_attention_slides() -> None:
    base = dense("qwen2", biases="qkv", use_sliding_window=True, sliding_window=5, max_window_layers=2)
    found = config("qwen2_moe", base)
    assert found["layer_types"] == ["full_attention", "full_attention", "sliding_attention"]
    assert (found["sliding_window"], found["max_window_layers"]) == (5, 2)
    assert found["use_sliding_window"] is True


def test_a_window_that_is_switched_off_is_none() -> None:
    found = config("qwen2_moe", dense("qwen2", biases="qkv", sliding_window=5))
    assert found["layer_types"] == ["full_attention"] * LAYERS
    assert (found["use_sliding_window"], found["sliding_window"]) == (False, None)


@pytest.mark.parametrize(
    "spelt",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3},
        {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_type": "absent", "type": "llama3"}},
        {"rope_parameters": {"rope_theta": 5e5, **LLAMA3}},
    ],
    ids=["older", "oldest", "newer"],
)
def test_scaled_rotary_frequencies_are_written_for_old_and_new_loaders(spelt: dict[str, Any]) -> None:
    if "type" in spelt.get("rope_scaling", {}):
        spelt = {**spelt, "rope_scaling": {k: v for k, v in spelt["rope_scaling"].items() if v != "absent"}}
    found = config("mixtral", dense("llama", **spelt))
    assert found["rope_parameters"] == {"rope_theta": 5e5, **LLAMA3}
    assert (found["rope_theta"], found["rope_scaling"]) == (5e5, LLAMA3)


def test_an_unscaled_rotary_embedding_has_no_scaling() -> None:
    found = config("mixtral", dense("llama", rope_theta=5e5, rope_scaling=None))
    assert found["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e5}
    assert "rope_scaling" not in found


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe", "dots1", "glm4_moe", "deepseek"])
def test_the_weights_of_the_chosen_experts_sum_to_one(name: str) -> None:
    base = dense("qwen3" if name in ("qwen3_moe", "dots1") else "llama")
    assert config(name, base)["norm_topk_prob"] is True


@pytest.mark.parametrize("name", ["dots1", "glm4_moe"])
def test_deepseeks_routing_has_one_group_and_no_scale(name: str) -> None:
    found = config(name, dense("qwen3"))
    assert (found["n_group"], found["topk_group"], found["routed_scaling_factor"]) == (1, 1, 1.0)
    assert (found["n_routed_experts"], found["n_shared_experts"]) == (4, 1)
    assert (found["first_k_dense_replace"], found["moe_intermediate_size"]) == (0, SIZE)


def test_glm4_moe_rotates_whole_heads_unless_the_model_does_not() -> None:
    """Its class rotates half of each head if the config does not say."""
    found = config("glm4_moe", dense("llama"))
    assert found["partial_rotary_factor"] == found["rope_parameters"]["partial_rotary_factor"] == 1.0
    assert found["use_qk_norm"] is False
    partial = config("glm4_moe", dense("llama", partial_rotary_factor=0.5))
    assert partial["rope_parameters"]["partial_rotary_factor"] == 0.5
    assert config("glm4_moe", dense("qwen3"))["use_qk_norm"] is True


def test_granitemoe_scales_attention_as_llama_does() -> None:
    """Its class multiplies scores by one if the config does not say."""
    found = config("granitemoe", dense("llama", head_dim=16))
    assert found["attention_multiplier"] == 0.25
    assert (found["embedding_multiplier"], found["residual_multiplier"], found["logits_scaling"]) == (1, 1, 1)


def test_granitemoe_keeps_granites_multipliers() -> None:
    wanted = {"attention_multiplier": 0.5, "embedding_multiplier": 12.0, "logits_scaling": 8.0}
    found = config("granitemoe", dense("granite", **wanted, residual_multiplier=0.25))
    assert {**wanted, "residual_multiplier": 0.25}.items() <= found.items()


def test_granitemoehybrid_has_rotary_attention_in_every_layer() -> None:
    found = config("granitemoehybrid", dense("granite"))
    assert found["position_embedding_type"] == "rope"
    assert found["layer_types"] == ["full_attention"] * LAYERS
    assert found["mamba_n_heads"] * found["mamba_d_head"] == found["mamba_expand"] * found["hidden_size"]


def test_biases_are_announced_where_the_family_asks() -> None:
    assert config("granitemoe", dense("llama", biases="qkvo", attention_bias=True))["attention_bias"] is True
    assert config("granitemoe", dense("llama"))["attention_bias"] is False
    assert config("qwen2_moe", dense("llama"))["qkv_bias"] is True


def test_layers_that_stay_dense_are_announced() -> None:
    def kept(name: str, base: Dense) -> dict[str, Any]:
        return config(name, base, keep_dense_layers=2)

    assert kept("glm4_moe", dense("llama"))["first_k_dense_replace"] == 2
    assert kept("qwen3_moe", dense("qwen3"))["mlp_only_layers"] == [0, 1]
    assert kept("ernie4_5_moe", dense("ernie4_5"))["moe_layer_start_index"] == 2
    assert config("ernie4_5_moe", dense("ernie4_5"))["moe_layer_end_index"] == LAYERS - 1


def test_remote_code_reads_its_own_spelling() -> None:
    found = config("deepseek", dense("llama", rope_theta=5e5))
    assert found["auto_map"]["AutoModelForCausalLM"].endswith("modeling_deepseek.DeepseekForCausalLM")
    assert (found["rope_theta"], found["rope_scaling"], found["n_shared_experts"]) == (5e5, None, None)
    assert "rope_parameters" not in found
    assert config("deepseek", dense("llama"), shared=1)["n_shared_experts"] == 1


def test_a_config_of_the_same_lineage_is_kept_whole() -> None:
    base = dense("cohere2", logit_scale=0.5, something_new=3, sliding_window=5, quantization_config={})
    found = config("cohere2_moe", base)
    assert (found["logit_scale"], found["something_new"], found["sliding_window"]) == (0.5, 3, 5)
    assert found["layer_types"] == ["sliding_attention"] * LAYERS
    assert "quantization_config" not in found


def test_a_language_model_inside_another_stays_inside() -> None:
    text = dict(dense("qwen3_5_text").config)
    inner = dense("qwen3_5")
    base = Dense({"model_type": "qwen3_5", "text_config": text, "vision_config": {"depth": 2}}, inner.tensors)
    found = config("qwen3_5_moe_text", base)
    assert (found["model_type"], found["vision_config"]) == ("qwen3_5_moe", {"depth": 2})
    assert found["architectures"] == ["Qwen3_5MoeForConditionalGeneration"]
    assert found["text_config"]["model_type"] == "qwen3_5_moe_text"
    assert found["text_config"]["num_experts"] == 4
