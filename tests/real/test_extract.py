"""Dense models extracted from mixtures, loaded by transformers, compute what the mixtures do where they can.

A mixture of equal experts is each of them. One with a router of zeros that chooses all experts is their
mean, shared experts added. A dense model that became a mixture comes back with every bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mergegraph import engine
from mergegraph.architectures import all_moe_families, moe_family
from mergegraph.architectures.inverse import completed
from mergegraph.architectures.moe import MoeFamily

EXPERTS = 4
TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADS = {**TINY, "head_dim": 16}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0}}
WHOLE = {"rope_parameters": {"rope_type": "default", "rope_theta": 700.0, "partial_rotary_factor": 1.0}}
GROUPS = {"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.7}
MLA = {
    **TINY,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.7,
    "logits_scaling": 2.0,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2, "mamba_d_state": 8}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}

MIXTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": ("mixtral", "llama", {**HEADS, **ROPE}),
    "mixtral-window": ("mixtral", "mistral", {**TINY, "sliding_window": 8}),
    "mixtral-tied": ("mixtral", "llama", {**TINY, "tie_word_embeddings": True}),
    "qwen2_moe": (
        "qwen2_moe",
        "qwen2",
        {**TINY, **SLIDING, "use_sliding_window": True, "norm_topk_prob": True, "mlp_only_layers": [0]},
    ),
    "qwen2_moe-unbiased": ("qwen2_moe", "llama", {**TINY, "qkv_bias": False, "norm_topk_prob": True}),
    "qwen3_moe": ("qwen3_moe", "qwen3", {**HEADS, **ROPE, "norm_topk_prob": True, "attention_bias": True}),
    "qwen3_moe-window": (
        "qwen3_moe",
        "qwen3",
        {**HEADS, "use_sliding_window": True, "sliding_window": 8, "norm_topk_prob": True},
    ),
    "glm4_moe-norms": (
        "glm4_moe",
        "qwen3",
        {**TINY, **WHOLE, **GROUPS, "use_qk_norm": True, "first_k_dense_replace": 1},
    ),
    "glm4_moe-biased": ("glm4_moe", "qwen2", {**HEADS, **WHOLE, **GROUPS, "attention_bias": True}),
    "glm4_moe": ("glm4_moe", "llama", {**TINY, **WHOLE, **GROUPS}),
    "dots1": ("dots1", "qwen3", {**TINY, **SLIDING, **GROUPS, "n_shared_experts": 1}),
    "granitemoe": ("granitemoe", "granite", {**TINY, **GRANITE, "attention_bias": True}),
    "granitemoeshared": (
        "granitemoeshared",
        "granite",
        {**TINY, **GRANITE, "shared_intermediate_size": 40},
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        "granite",
        {
            **TINY,
            **GRANITE,
            **MAMBA,
            "shared_intermediate_size": 40,
            "position_embedding_type": "rope",
            "layer_types": ["full_attention"] * 2,
        },
    ),
    "flex_olmo": ("flex_olmo", "olmo2", {**TINY, "norm_topk_prob": True}),
    "ernie4_5_moe": ("ernie4_5_moe", "ernie4_5", {**TINY, "moe_layer_start_index": 1}),
    "cohere2_moe": ("cohere2_moe", "cohere2", {**HEADS, **SLIDING, "num_shared_experts": 1}),
    "cohere2_moe-sum": (
        "cohere2_moe",
        "cohere2",
        {**HEADS, "num_shared_experts": 2, "shared_expert_combination_strategy": "sum"},
    ),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", "hunyuan_v1_dense", HEADS),
    "lfm2_moe": (
        "lfm2_moe",
        "lfm2",
        {**TINY, "layer_types": ["conv", "full_attention"], "num_dense_layers": 1, **GROUPS},
    ),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", "qwen3_5_text", {**HEADS, **LINEAR}),
    "deepseek_v3": ("deepseek_v3", "deepseek_v3", {**MLA, **GROUPS, "first_k_dense_replace": 1}),
    "deepseek_v2": ("deepseek_v2", "deepseek_v2", {**MLA, "routed_scaling_factor": 1.5, "n_group": 1}),
    "jamba": (
        "jamba",
        "jamba",
        {
            **TINY,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 1,
            "expert_layer_offset": 0,
            "use_mamba_kernels": False,
        },
    ),
}
NEVER_UPCYCLED = (
    "mixtral-tied",
    "qwen2_moe",
    "qwen2_moe-unbiased",
    "qwen3_moe-window",
    "glm4_moe-norms",
    "glm4_moe",
    "dots1",
    "granitemoeshared",
    "granitemoehybrid",
    "cohere2_moe",
    "deepseek_v2",
    "jamba",
)
"""The others come back from being upcycled, below."""
TOKENS = torch.from_numpy(np.random.default_rng(5).integers(3, 96, (2, 24)))


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def known(name: str) -> MoeFamily:
    family = moe_family(name)
    assert family is not None
    return family


def mixture(variant: str, *, active: int, equal: bool, silent: bool) -> Any:
    """A tiny mixture with random weights; `silent`: its shared expert adds nothing."""
    name, _, values = MIXTURES[variant]
    family = known(name)
    sizes = {key: 24 for key in family.size_keys if key != "intermediate_size"}
    if family.shared is not None and family.shared.size_key is not None:
        sizes.setdefault(family.shared.size_key, 40)
    config = CONFIG_MAPPING[name](
        **{**sizes, **values, family.expert_keys[0]: EXPERTS, family.active_key: active}
    )
    torch.manual_seed(sum(map(ord, variant)))
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    for part, x in model.named_parameters():
        x.add_(torch.randn_like(x) * (0.3 if x.ndim < 2 else 0.1))
        if equal and x.ndim == 3 and x.shape[0] == EXPERTS:
            x[:] = x[:1].clone()
        if silent and "shared" in part and ("down" in part or "output" in part):
            x.zero_()
    return model


def extracted(place: Path, text: str) -> Any:
    """The model that an extraction from ``moe`` gives; nothing is missing from it, and nothing left over."""
    plan = place / "plan.yml"
    plan.write_text(f"surgery: extract\nmodel: {place / 'moe'}\n{text}\n")
    out = place / "dense"
    engine.run(plan, out, threads=1, device="cpu", force=True)
    model, info = hf.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True, dtype=torch.float32)
    left = {key: list(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    assert not any(left.values()), left
    return model.eval()


def assert_computes(dense: Any, logits: torch.Tensor) -> None:
    assert (dense(TOKENS).logits - logits).abs().max() < 1e-4 * logits.abs().max()


def equal_experts(variant: str) -> Any:
    active = EXPERTS if known(MIXTURES[variant][0]).exact == "all active" else 2
    return mixture(variant, active=active, equal=True, silent=True)


@pytest.mark.parametrize("variant", NEVER_UPCYCLED)
def test_one_of_equal_experts_computes_what_the_mixture_does(tmp_path: Path, variant: str) -> None:
    model = equal_experts(variant)
    model.save_pretrained(tmp_path / "moe")
    assert_computes(extracted(tmp_path, "expert: 2"), model(TOKENS).logits)


@pytest.mark.parametrize("variant", MIXTURES)
def test_the_mean_of_equal_experts_too_from_a_stack_whose_config_says_only_what_is_unusual(
    tmp_path: Path, variant: str
) -> None:
    model = equal_experts(variant)
    model.save_pretrained(tmp_path / "moe", save_original_format=False)
    file = tmp_path / "moe" / "config.json"
    usual = CONFIG_MAPPING[MIXTURES[variant][0]]().to_dict()
    said = json.loads(file.read_text())
    needed = ("model_type", *(key for key, value in said.items() if value != usual.get(key, "unknown")))
    file.write_text(json.dumps({key: said[key] for key in needed}))
    dense = extracted(tmp_path, "experts: [3, 0]\nmode: mean\nweights: [3, 1]")
    assert dense.config.model_type == MIXTURES[variant][1]
    assert_computes(dense, model(TOKENS).logits)


@pytest.mark.parametrize("variant", MIXTURES)
def test_all_experts_side_by_side_compute_what_a_mixture_without_preferences_does(
    tmp_path: Path, variant: str
) -> None:
    model = mixture(variant, active=EXPERTS, equal=False, silent=False)
    for part, x in model.named_parameters():
        if ("gate.w" in part or "router" in part or "shared_expert_gate" in part) and x.ndim == 2:
            x.zero_()
    model.save_pretrained(tmp_path / "moe")
    dense = extracted(tmp_path, "experts: [1, 0, 2, 3]\nmode: concatenate")
    assert_computes(dense, model(TOKENS).logits)


UPCYCLED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("mixtral", HEADS),
    "mistral": ("mixtral", {**TINY, "sliding_window": 8}),
    "qwen2": ("glm4_moe", TINY),
    "qwen3": ("qwen3_moe", HEADS),
    "granite": ("granitemoe", {**TINY, **GRANITE}),
    "olmo2": ("flex_olmo", TINY),
    "cohere2": ("cohere2_moe", {**HEADS, **SLIDING}),
    "ernie4_5": ("ernie4_5_moe", HEADS),
    "hunyuan_v1_dense": ("hunyuan_v1_moe", HEADS),
    "lfm2": ("lfm2_moe", {**TINY, "layer_types": ["conv", "full_attention"], "block_multiple_of": 16}),
    "qwen3_5_text": ("qwen3_5_moe_text", {**HEADS, **LINEAR}),
    "deepseek_v3": ("deepseek_v3", {**MLA, "first_k_dense_replace": 2}),
}


@pytest.mark.parametrize("family", UPCYCLED)
def test_what_was_upcycled_comes_back_with_every_bit(tmp_path: Path, family: str) -> None:
    goal, values = UPCYCLED[family]
    torch.manual_seed(len(family))
    model = hf.AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**values)).eval()
    model.to(torch.bfloat16).save_pretrained(tmp_path / "before")
    plan = tmp_path / "up.yml"
    asked = f"experts: 4\nexperts_per_token: 2\narchitecture: {goal}"
    plan.write_text(f"surgery: upcycle\nmodel: {tmp_path / 'before'}\n{asked}\n")
    engine.run(plan, tmp_path / "moe", threads=1, device="cpu")
    dense = extracted(tmp_path, "expert: 3")
    before, after = (load_file(tmp_path / d / "model.safetensors") for d in ("before", "dense"))
    assert list(before) == list(after)
    assert all(torch.equal(after[name].view(torch.int16), x.view(torch.int16)) for name, x in before.items())
    reloaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "before", dtype=torch.float32).eval()
    assert torch.equal(dense(TOKENS).logits, reloaded(TOKENS).logits)


def test_it_is_known_what_classes_assume_that_configs_do_not_say() -> None:
    """A key that is left out must mean the same to the dense class: it is written out where it does not."""
    varies = (
        "model_type",
        "intermediate_size",
        "rope_parameters",
        "layer_types",
        "sliding_window",
        "head_dim",
    )
    for family in all_moe_families():
        for back in family.back:
            if family.remote:  # its class is not part of transformers
                continue
            mixture_class, dense_class = (CONFIG_MAPPING[n]() for n in (family.name, back.model_type))
            dense = dense_class.to_dict()
            written = {**family.defaults, **completed(family, {})}
            assumed = {
                k: v
                for k, v in mixture_class.to_dict().items()
                if k in dense and k not in (*varies, *back.fixed)
            }
            lost = {k: v for k, v in assumed.items() if written.get(k, dense[k]) != v}
            assert lost == {}, f"{family.name} to {back.model_type}"
