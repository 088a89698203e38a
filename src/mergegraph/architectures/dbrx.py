"""DBRX: the experts' matrices one below the other."""

from __future__ import annotations

from mergegraph.architectures.expert_names import ExpertNames, same
from mergegraph.architectures.moe import MoeFamily

MOE = MoeFamily(
    ("dbrx",),
    "DbrxForCausalLM",
    ExpertNames(
        stacked_gate="ffn.experts.mlp.w1",
        stacked_up="ffn.experts.mlp.v1",
        stacked_down="ffn.experts.mlp.w2",
        form="flat",
        router=same("ffn.router.layer.weight"),
    ),
    buildable=False,
    expert_keys=("ffn_config.moe_num_experts",),
    active_key="ffn_config.moe_top_k",
    size_keys=("ffn_config.ffn_hidden_size",),
)
