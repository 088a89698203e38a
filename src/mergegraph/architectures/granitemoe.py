"""Granite MoE: stacked experts, multipliers in the config, biases on all attention projections."""

from __future__ import annotations

from mergegraph.architectures.expert_names import GRANITE
from mergegraph.architectures.granite_config import granite_values
from mergegraph.architectures.moe import EVERYWHERE, Back, MoeFamily

MOE = MoeFamily(
    ("granitemoe",),
    "GraniteMoeForCausalLM",
    GRANITE,
    can=(*EVERYWHERE, "multipliers"),
    biases=("q", "k", "v", "o"),
    bias_key="attention_bias",
    expert_keys=("num_local_experts",),
    fixed={"output_router_logits": False},
    extra=granite_values,
    defaults={"attention_multiplier": 1.0},
    back=(Back("granite", "GraniteForCausalLM"),),
)
