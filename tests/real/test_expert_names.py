"""What families call their experts is what transformers writes, in either layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import transformers as hf
from safetensors import safe_open
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mergegraph.architectures import all_moe_families
from mergegraph.architectures.expert_names import expert_names
from mergegraph.architectures.moe import MoeFamily
from mergegraph.architectures.moe_layer import MoeLayer, moe_layer
from mergegraph.architectures.slots import ROLES, Sizes
from mergegraph.tensorspec import DType, TensorSpec

EXPERTS, SIZE, HIDDEN = 4, 16, 32
COMMON = {
    "vocab_size": 64,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": SIZE,
    "moe_intermediate_size": SIZE,
    "shared_expert_intermediate_size": SIZE,
    "shared_intermediate_size": SIZE,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "n_group": 1,
    "topk_group": 1,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts"), 1),
}
DBRX = {
    "d_model": HIDDEN,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 64,
    "vocab_size": 64,
    "ffn_config": {"ffn_hidden_size": SIZE, "moe_num_experts": EXPERTS, "moe_top_k": 2},
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
}
OWN: dict[str, dict[str, Any]] = {
    "nemotron_h": {
        "layers_block_type": ["attention", "moe"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "moe_shared_expert_intermediate_size": SIZE,
    },
    "gemma4_text": {
        "enable_moe_block": True,
        "global_head_dim": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
    },
    "jamba": {"expert_layer_period": 1, "expert_layer_offset": 0, "use_mamba_kernels": False},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": {"layer_types": ["full_attention"] * 2, "mamba_n_heads": 8, "mamba_d_head": 8},
    "llama4_text": {"intermediate_size_mlp": SIZE},
}
FAMILIES = [f for f in all_moe_families() if not f.remote]


def config_of(family: MoeFamily) -> Any:
    if family.name == "dbrx":
        return CONFIG_MAPPING["dbrx"](**DBRX)
    routing = {**dict.fromkeys(family.expert_keys, EXPERTS), family.active_key: 2}
    return CONFIG_MAPPING[family.name](**{**COMMON, **routing, **OWN.get(family.name, {})})


def last_layer(family: MoeFamily, place: Path) -> tuple[MoeLayer, dict[str, TensorSpec]]:
    specs: dict[str, TensorSpec] = {}
    with safe_open(place / "model.safetensors", "pt") as stored:
        for name in stored.keys():  # noqa: SIM118
            match = re.match(r".*?(?:layers|blocks)\.1\.(.*)", name)
            if match is not None:
                specs[match[1]] = TensorSpec(tuple(stored.get_slice(name).get_shape()), DType.F32)
    layer = moe_layer(family, specs)
    assert layer is not None, sorted(specs)
    return layer, specs


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_experts_are_found_in_what_transformers_writes(family: MoeFamily, tmp_path: Path) -> None:
    model = hf.AutoModelForCausalLM.from_config(config_of(family))
    assert model.config.architectures in (None, [family.architecture])
    assert type(model).__name__ == family.architecture
    for original in (True, False):
        place = tmp_path / str(original)
        model.save_pretrained(place, save_original_format=original)
        layer, specs = last_layer(family, place)
        both = family.names.per_expert and family.names.stacked_down is not None
        if both:
            assert layer.layout == ("per-expert" if original else "stacked")
        assert layer.sizes == Sizes(EXPERTS, SIZE, HIDDEN)
        assert len(layer.router) == len(family.names.router)
        matrices = [layer.matrix(e, role) for e in range(EXPERTS) for role in ROLES]
        gated = family.name != "nemotron_h"
        assert sum(m is not None for m in matrices) == EXPERTS * (3 if gated else 2)
        for matrix in matrices:
            assert matrix is None or matrix.tensor in specs
        covered = sum(m.rows * m.columns for m in matrices if m is not None)
        biases = [n for n in (family.names.gate_up_bias, family.names.down_bias) if n is not None]
        tensors = dict.fromkeys(m.tensor for m in matrices if m is not None)
        assert covered == sum(specs[name].numel for name in tensors)
        assert all(name in specs for name in biases)
        assert (layer.shared is not None) == (family.shared is not None)
        gone = list(layer.only_in_mixtures())
        left = [
            n for n in specs if n not in gone and re.match(r"(mlp|ffn|feed_forward|block_sp).*experts", n)
        ]
        assert left == []


def test_names_are_found_by_model_type() -> None:
    names = expert_names("mixtral")
    assert names is not None
    assert names.down == "block_sparse_moe.experts.{e}.w2.weight"
    assert expert_names("llama") is None
    assert expert_names(None) is None
