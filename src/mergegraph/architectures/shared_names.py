"""The usual names of shared experts and of the correction bias, for the families that have them."""

from __future__ import annotations

from typing import Literal

from mergegraph.architectures.moe import Constant, Shared
from mergegraph.tensorspec import DType

CORRECTION_BIAS = Constant("mlp.gate.e_score_correction_bias", "E", dtype=DType.F32)
"""Added to the scores of experts when they are chosen, not to their weights; trained in float32."""


def shared_expert(absent: Literal["refused", "zeros"]) -> Shared:
    """Qwen's: one MLP behind a sigmoid."""
    return Shared(
        "mlp.shared_expert.gate_proj.weight",
        "mlp.shared_expert.up_proj.weight",
        "mlp.shared_expert.down_proj.weight",
        "mlp.shared_expert_gate.weight",
        size_key="shared_expert_intermediate_size",
        absent=absent,
    )


def shared_experts(absent: Literal["zeros", "none"], count_key: str = "n_shared_experts") -> Shared:
    """DeepSeek's: some experts side by side in one MLP, always on."""
    return Shared(
        "mlp.shared_experts.gate_proj.weight",
        "mlp.shared_experts.up_proj.weight",
        "mlp.shared_experts.down_proj.weight",
        count_key=count_key,
        absent=absent,
    )
