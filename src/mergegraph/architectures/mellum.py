"""Mellum: Qwen 3 MoE's names."""

from __future__ import annotations

from mergegraph.architectures.expert_names import QWEN
from mergegraph.architectures.moe import MoeFamily

MOE = MoeFamily(
    ("mellum",),
    "MellumForCausalLM",
    QWEN,
    buildable=False,
    expert_keys=("num_experts", "num_local_experts"),
    active_key="num_experts_per_tok",
    size_keys=("moe_intermediate_size",),
)
