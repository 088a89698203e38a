"""Granite MoE with a shared expert."""

from __future__ import annotations

from mergegraph.architectures.expert_names import GRANITE
from mergegraph.architectures.granite_config import SHARED_MLP, granite_values
from mergegraph.architectures.moe import EVERYWHERE, Back, MoeFamily

MOE = MoeFamily(
    ("granitemoeshared",),
    "GraniteMoeSharedForCausalLM",
    GRANITE,
    shared=SHARED_MLP,
    can=(*EVERYWHERE, "multipliers"),
    biases=("q", "k", "v", "o"),
    bias_key="attention_bias",
    expert_keys=("num_local_experts",),
    fixed={"output_router_logits": False},
    extra=granite_values,
    defaults={"attention_multiplier": 1.0},
    back=(Back("granite", "GraniteForCausalLM"),),
)
