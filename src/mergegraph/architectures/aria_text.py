"""Aria's language model: transposed stacks under older names."""

from __future__ import annotations

from mergegraph.architectures.expert_names import ExpertNames, same
from mergegraph.architectures.moe import MoeFamily
from mergegraph.architectures.shared_names import shared_experts

MOE = MoeFamily(
    ("aria_text",),
    "AriaTextForCausalLM",
    ExpertNames(
        stacked_gate_up="mlp.experts.fc1.weight",
        stacked_down="mlp.experts.fc2.weight",
        form="columns",
        router=same("mlp.router.weight"),
        aliases={
            "mlp.experts.gate_up_proj": "mlp.experts.fc1.weight",
            "mlp.experts.down_proj": "mlp.experts.fc2.weight",
        },
    ),
    buildable=False,
    shared=shared_experts("zeros", count_key="moe_num_shared_experts"),
    expert_keys=("moe_num_experts",),
    active_key="moe_topk",
    size_keys=("intermediate_size",),
)
