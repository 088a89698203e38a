"""EXAONE MoE: DeepSeek's routing behind norms that no dense EXAONE has."""

from __future__ import annotations

from mergegraph.architectures.expert_names import projections
from mergegraph.architectures.moe import DenseLayers, MoeFamily
from mergegraph.architectures.shared_names import shared_experts

MOE = MoeFamily(
    ("exaone_moe",),
    "ExaoneMoeForCausalLM",
    projections(
        "mlp.experts",
        router={
            "mlp.gate.weight": "mlp.gate.weight",
            "mlp.e_score_correction_bias": "mlp.gate.e_score_correction_bias",
        },
    ),
    buildable=False,
    shared=shared_experts("zeros", count_key="num_shared_experts"),
    expert_keys=("num_experts",),
    active_key="num_experts_per_tok",
    size_keys=("moe_intermediate_size",),
    dense_layers=DenseLayers("first_k_dense_replace"),
)
