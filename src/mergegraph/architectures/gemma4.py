"""Gemma 4, whose layers may run experts beside their MLP; the norm after both absorbs the sum's scale."""

from __future__ import annotations

from mergegraph.architectures.expert_names import ExpertNames, same
from mergegraph.architectures.moe import EVERYWHERE, Constant, MoeFamily, Shared

MOE = MoeFamily(
    ("gemma4_text", "gemma4"),
    "Gemma4ForCausalLM",
    ExpertNames(
        stacked_gate_up="experts.gate_up_proj",
        stacked_down="experts.down_proj",
        router=same("router.proj.weight", "router.per_expert_scale"),
    ),
    shared=Shared("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight", absent="base"),
    constants=(
        Constant("router.scale", "H", 1.0),
        Constant("router.per_expert_scale", "E", 1.0),
        Constant("post_feedforward_layernorm_1.weight", "H", 1.0),
        Constant("post_feedforward_layernorm_2.weight", "H", 1.0),
    ),
    copies={"pre_feedforward_layernorm_2.weight": "pre_feedforward_layernorm.weight"},
    must=("gemma4_block",),
    can=(*EVERYWHERE, "partial_rotary"),
    biases=("q", "k", "v", "o"),
    keys=None,
    rope=False,
    expert_keys=("num_experts",),
    active_key="top_k_experts",
    size_keys=("moe_intermediate_size",),
    fixed={"enable_moe_block": True},
    nested={"gemma4": ("gemma4", "Gemma4ForConditionalGeneration")},
    notes=(
        "every layer keeps its MLP beside the experts, and the norm after both absorbs their sum's scale",
    ),
)
