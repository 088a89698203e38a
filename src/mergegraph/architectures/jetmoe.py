"""JetMoE: its attention is a mixture too."""

from __future__ import annotations

from mergegraph.architectures.expert_names import ExpertNames, same
from mergegraph.architectures.moe import MoeFamily

MOE = MoeFamily(
    ("jetmoe",),
    "JetMoeForCausalLM",
    ExpertNames(
        stacked_gate_up="mlp.input_linear.weight",
        stacked_down="mlp.output_linear.weight",
        router=same("mlp.router.layer.weight"),
    ),
    buildable=False,
    expert_keys=("num_local_experts",),
    active_key="num_experts_per_tok",
    size_keys=("intermediate_size",),
)
