"""MiniMax Text 01: linear attention in most layers."""

from __future__ import annotations

from mergegraph.architectures.expert_names import MIXTRAL
from mergegraph.architectures.moe import MoeFamily

MOE = MoeFamily(
    ("minimax",),
    "MiniMaxForCausalLM",
    MIXTRAL,
    buildable=False,
    expert_keys=("num_local_experts",),
    active_key="num_experts_per_tok",
    size_keys=("intermediate_size",),
)
