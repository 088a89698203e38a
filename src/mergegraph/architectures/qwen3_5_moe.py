"""Qwen 3.5 MoE: gated linear attention in most layers, and a shared expert behind a sigmoid."""

from __future__ import annotations

from mergegraph.architectures.expert_names import QWEN
from mergegraph.architectures.moe import EVERYWHERE, Back, MoeFamily
from mergegraph.architectures.shared_names import shared_expert

MOE = MoeFamily(
    ("qwen3_5_moe_text", "qwen3_5_moe"),
    "Qwen3_5MoeForCausalLM",
    QWEN,
    shared=shared_expert("zeros"),
    must=("linear_attention",),
    can=(*EVERYWHERE, "partial_rotary"),
    biases=("q", "k", "v", "o"),
    keys=None,
    expert_keys=("num_experts",),
    size_keys=("moe_intermediate_size",),
    fixed={"output_router_logits": False},
    nested={"qwen3_5": ("qwen3_5_moe", "Qwen3_5MoeForConditionalGeneration")},
    defaults={"partial_rotary_factor": 0.25},
    back=(Back("qwen3_5_text", "Qwen3_5ForCausalLM"),),
)
