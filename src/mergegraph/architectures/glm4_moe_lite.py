"""GLM 4 MoE Lite: latent attention."""

from __future__ import annotations

from mergegraph.architectures.expert_names import DEEPSEEK
from mergegraph.architectures.moe import DenseLayers, MoeFamily
from mergegraph.architectures.shared_names import shared_experts

MOE = MoeFamily(
    ("glm4_moe_lite",),
    "Glm4MoeLiteForCausalLM",
    DEEPSEEK,
    buildable=False,
    shared=shared_experts("zeros"),
    expert_keys=("n_routed_experts",),
    active_key="num_experts_per_tok",
    size_keys=("moe_intermediate_size",),
    dense_layers=DenseLayers("first_k_dense_replace"),
)
