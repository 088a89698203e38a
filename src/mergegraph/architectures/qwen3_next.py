"""Qwen 3 Next: gated linear attention with fused projections."""

from __future__ import annotations

from mergegraph.architectures.expert_names import QWEN
from mergegraph.architectures.moe import DenseLayers, MoeFamily
from mergegraph.architectures.shared_names import shared_expert

MOE = MoeFamily(
    ("qwen3_next",),
    "Qwen3NextForCausalLM",
    QWEN,
    buildable=False,
    shared=shared_expert("zeros"),
    expert_keys=("num_experts",),
    active_key="num_experts_per_tok",
    size_keys=("moe_intermediate_size",),
    dense_layers=DenseLayers("mlp_only_layers", "dense"),
)
