"""MiniMax M2: sigmoid routing with a correction bias."""

from __future__ import annotations

from mergegraph.architectures.expert_names import numbered
from mergegraph.architectures.moe import MoeFamily

MOE = MoeFamily(
    ("minimax_m2",),
    "MiniMaxM2ForCausalLM",
    numbered(
        "block_sparse_moe.experts",
        "mlp.experts",
        router={
            "block_sparse_moe.gate.weight": "mlp.gate.weight",
            "block_sparse_moe.e_score_correction_bias": "mlp.e_score_correction_bias",
        },
    ),
    buildable=False,
    expert_keys=("num_local_experts",),
    active_key="num_experts_per_tok",
    size_keys=("intermediate_size",),
)
