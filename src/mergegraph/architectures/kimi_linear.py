"""Kimi Linear: linear attention in most layers, DeepSeek's routing under Mixtral's names."""

from __future__ import annotations

from mergegraph.architectures.expert_names import numbered
from mergegraph.architectures.moe import DenseLayers, MoeFamily, Shared

MOE = MoeFamily(
    ("kimi_linear",),
    "KimiLinearForCausalLM",
    numbered(
        "block_sparse_moe.experts",
        "mlp.experts",
        router={
            "block_sparse_moe.gate.weight": "mlp.gate.weight",
            "block_sparse_moe.gate.e_score_correction_bias": "mlp.gate.e_score_correction_bias",
        },
        aliases={
            f"mlp.shared_experts.{p}_proj.weight": f"block_sparse_moe.shared_experts.{p}_proj.weight"
            for p in ("gate", "up", "down")
        },
    ),
    buildable=False,
    shared=Shared(
        "block_sparse_moe.shared_experts.gate_proj.weight",
        "block_sparse_moe.shared_experts.up_proj.weight",
        "block_sparse_moe.shared_experts.down_proj.weight",
        count_key="num_shared_experts",
    ),
    expert_keys=("num_experts",),
    active_key="num_experts_per_token",
    size_keys=("moe_intermediate_size",),
    dense_layers=DenseLayers("first_k_dense_replace"),
)
