"""Phi 3.5 MoE: layer norms, and a router whose weights do not sum to one."""

from __future__ import annotations

from mergegraph.architectures.expert_names import numbered
from mergegraph.architectures.moe import MoeFamily

MOE = MoeFamily(
    ("phimoe",),
    "PhimoeForCausalLM",
    numbered(
        "block_sparse_moe.experts",
        "mlp.experts",
        router={"block_sparse_moe.gate.weight": "mlp.router.weight"},
    ),
    buildable=False,
    expert_keys=("num_local_experts",),
    active_key="num_experts_per_tok",
    size_keys=("intermediate_size",),
)
