"""gpt-oss: experts with biases, gate and up columns taking turns."""

from __future__ import annotations

from mergegraph.architectures.expert_names import ExpertNames, same
from mergegraph.architectures.moe import MoeFamily

MOE = MoeFamily(
    ("gpt_oss",),
    "GptOssForCausalLM",
    ExpertNames(
        stacked_gate_up="mlp.experts.gate_up_proj",
        stacked_down="mlp.experts.down_proj",
        gate_up_bias="mlp.experts.gate_up_proj_bias",
        down_bias="mlp.experts.down_proj_bias",
        form="interleaved",
        router=same("mlp.router.weight", "mlp.router.bias"),
    ),
    buildable=False,
    expert_keys=("num_local_experts",),
    active_key="num_experts_per_tok",
    size_keys=("intermediate_size",),
)
