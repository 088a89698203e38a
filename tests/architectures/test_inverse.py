"""Which dense family a mixture goes back to, and what its config means."""

from __future__ import annotations

from typing import Any

import pytest

from mergegraph.architectures import all_moe_families, moe_family
from mergegraph.architectures.dense import Dense
from mergegraph.architectures.dense_families import dense_family
from mergegraph.architectures.inverse import WHY_NOT, Factors, completed, factors, tidied, uneven, way_back
from mergegraph.architectures.moe import Back, MoeFamily, Obstacle
from mergegraph.tensorspec import DType, TensorSpec

QWEN_SHARED = "model.layers.0.mlp.shared_expert.down_proj.weight"
DEEPSEEK_SHARED = "model.layers.0.mlp.shared_experts.down_proj.weight"


def known(name: str) -> MoeFamily:
    family = moe_family(name)
    assert family is not None
    return family


def goal(name: str, wanted: str | None = None, **config: Any) -> str:
    found = way_back(known(name), {"model_type": name, **config}, wanted)
    assert isinstance(found, Back), found
    return found.model_type


def refusal(name: str, wanted: str | None = None, **config: Any) -> Obstacle:
    found = way_back(known(name), {"model_type": name, **config}, wanted)
    assert isinstance(found, Obstacle), found
    return found


def factors_of(name: str, *tensors: str, **config: Any) -> Factors:
    return factors(known(name), Dense(config, {n: TensorSpec((2, 2), DType.F32) for n in tensors}))


def test_every_family_goes_back_somewhere_or_has_a_reason_not_to() -> None:
    without = [f.name for f in all_moe_families() if not f.back]
    assert sorted(without) == sorted(WHY_NOT)
    goals = [back.model_type for f in all_moe_families() for back in f.back]
    assert all(dense_family(name) is not None for name in goals)


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("mixtral", {}, "llama"),
        ("mixtral", {"sliding_window": 4096}, "mistral"),
        ("qwen2_moe", {}, "qwen2"),
        ("qwen2_moe", {"qkv_bias": False}, "llama"),
        ("qwen3_moe", {}, "qwen3"),
        ("dots1", {}, "qwen3"),
        ("glm4_moe", {"use_qk_norm": True, "partial_rotary_factor": 1.0}, "qwen3"),
        ("glm4_moe", {"attention_bias": True, "rope_parameters": {"partial_rotary_factor": 1.0}}, "qwen2"),
        ("glm4_moe", {"partial_rotary_factor": 1.0}, "llama"),
        ("granitemoe", {}, "granite"),
        ("granitemoehybrid", {"position_embedding_type": "rope", "layer_types": ["attention"]}, "granite"),
        ("flex_olmo", {}, "olmo2"),
        ("ernie4_5_moe", {}, "ernie4_5"),
        ("cohere2_moe", {}, "cohere2"),
        ("hunyuan_v1_moe", {}, "hunyuan_v1_dense"),
        ("lfm2_moe", {}, "lfm2"),
        ("qwen3_5_moe_text", {}, "qwen3_5_text"),
        ("deepseek", {}, "llama"),
        ("deepseek_v2", {}, "deepseek_v2"),
        ("deepseek_v3", {}, "deepseek_v3"),
    ],
)
def test_the_body_of_a_mixture_decides_where_it_goes(
    name: str, config: dict[str, Any], expected: str
) -> None:
    assert goal(name, **config) == expected


def test_a_plan_may_choose_among_what_fits() -> None:
    assert goal("mixtral", "mistral") == "mistral"
    assert goal("mixtral", "MistralForCausalLM") == "mistral"


@pytest.mark.parametrize(
    ("wanted", "config", "said", "hint"),
    [
        ("gemma", {}, "gemma model cannot hold the body of a mixtral", "architecture: llama or mistral"),
        ("mistrl", {}, "mistrl", "did you mean 'mistral'?"),
        ("llama", {"sliding_window": 8}, "it needs sliding_window: None or 0", "mistral"),
    ],
)
def test_a_plan_cannot_choose_what_does_not_fit(
    wanted: str, config: dict[str, Any], said: str, hint: str
) -> None:
    found = refusal("mixtral", wanted, **config)
    assert found.key == "architecture"
    assert said in found.message
    assert hint in (found.hint or "")


def test_biased_projections_never_go_where_there_are_none() -> None:
    assert "qkv_bias: False" in refusal("qwen2_moe", "llama").message


def test_what_no_dense_family_has_is_named() -> None:
    assert "sinks" in refusal("gpt_oss").message
    partial = refusal("glm4_moe").message
    assert "partial_rotary_factor is 0.5, not 1.0" in partial
    mixed = {"position_embedding_type": "rope", "layer_types": ["mamba", "attention", "mamba"]}
    assert "some are mamba" in refusal("granitemoehybrid", **mixed).message
    inside = refusal("qwen3_5_moe_text", text_config={})
    assert (inside.key, "inside a" in inside.message) == ("model", True)


def test_the_scaling_factor_and_shared_experts_count_as_in_the_mixture() -> None:
    assert factors_of("mixtral") == (1.0, None, False)
    assert factors_of("deepseek_v3") == (2.5, None, False)
    assert factors_of("glm4_moe", DEEPSEEK_SHARED, routed_scaling_factor=1.5) == (1.5, 1.0, False)
    assert factors_of("qwen2_moe", QWEN_SHARED) == (1.0, 0.5, True)
    assert factors_of("cohere2_moe", DEEPSEEK_SHARED) == (0.5, 0.5, False)
    together = factors_of("cohere2_moe", DEEPSEEK_SHARED, shared_expert_combination_strategy="sum")
    assert together == (1.0, 1.0, False)


def test_a_scaling_factor_that_makes_up_for_small_weights_is_left_out() -> None:
    some = {"num_experts_per_tok": 2, "n_routed_experts": 8, "routed_scaling_factor": 16.0}
    every = {**some, "num_experts_per_tok": 8}
    assert (uneven(known("deepseek_v2"), some) or "").startswith("deepseek_v2 does not")
    assert uneven(known("deepseek_v2"), every) is None
    assert factors_of("deepseek_v2", **some).routed == 1.0
    assert factors_of("deepseek_v2", **every).routed == 16.0
    assert uneven(known("qwen3_moe"), {}) is not None
    assert uneven(known("qwen3_moe"), {"norm_topk_prob": True}) is None
    assert uneven(known("mixtral"), {}) is None


def test_what_a_config_leaves_out_is_what_the_class_of_the_mixture_assumes() -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4}
    assert completed(known("dots1"), sizes)["head_dim"] == 16
    assert completed(known("qwen3_moe"), {**sizes, "head_dim": 32})["head_dim"] == 32
    assert completed(known("ernie4_5_moe"), {**sizes, "head_dim": None})["head_dim"] == 16
    assert "head_dim" not in completed(known("cohere2_moe"), sizes)
    assert completed(known("mixtral"), {})["num_key_value_heads"] == 8
    assert completed(known("mixtral"), {"num_key_value_heads": 2})["num_key_value_heads"] == 2


def test_layers_of_command_a_slide_as_its_class_lets_them() -> None:
    config = {"num_hidden_layers": 6, "first_k_dense_replace": 1}
    kinds = completed(known("cohere2_moe"), config)["layer_types"]
    assert [kind.split("_")[0] for kind in kinds] == ["full", *["sliding"] * 3, "full", "sliding"]
    stated = completed(known("cohere2_moe"), {**config, "layer_types": ["full_attention"] * 6})
    assert stated["layer_types"] == ["full_attention"] * 6


def test_a_dense_config_says_nothing_of_layers_that_it_has_not() -> None:
    (back,) = known("granitemoe").back
    config = {"hidden_size": 8, "layer_types": ["attention"], "mamba_expand": 2}
    assert tidied(back, config) == {"hidden_size": 8}
    (jamba,) = known("jamba").back
    assert tidied(jamba, config) == config
