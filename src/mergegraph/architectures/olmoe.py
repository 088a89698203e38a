"""OLMoE: norms over whole queries and keys before them, which no dense relative has."""

from __future__ import annotations

from mergegraph.architectures.expert_names import QWEN
from mergegraph.architectures.moe import MoeFamily

MOE = MoeFamily(
    ("olmoe",),
    "OlmoeForCausalLM",
    QWEN,
    buildable=False,
    expert_keys=("num_experts",),
    active_key="num_experts_per_tok",
    size_keys=("intermediate_size",),
)
