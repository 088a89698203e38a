"""AFMoE: sigmoid routing, gated attention."""

from __future__ import annotations

from mergegraph.architectures.expert_names import projections, same
from mergegraph.architectures.moe import DenseLayers, MoeFamily
from mergegraph.architectures.shared_names import shared_experts

MOE = MoeFamily(
    ("afmoe",),
    "AfmoeForCausalLM",
    projections("mlp.experts", router=same("mlp.router.gate.weight", "mlp.expert_bias")),
    buildable=False,
    shared=shared_experts("zeros", count_key="num_shared_experts"),
    expert_keys=("num_experts",),
    active_key="num_experts_per_tok",
    size_keys=("moe_intermediate_size",),
    dense_layers=DenseLayers("num_dense_layers"),
)
