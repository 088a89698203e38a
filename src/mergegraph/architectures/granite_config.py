"""What the config of every Granite mixture says beside routing."""

from __future__ import annotations

from typing import Any

from mergegraph.architectures.dense import Body
from mergegraph.architectures.moe import Options, Shared

SHARED_MLP = Shared(
    "shared_mlp.input_linear.weight",
    None,
    "shared_mlp.output_linear.weight",
    size_key="shared_intermediate_size",
)


def granite_values(base: Body, options: Options) -> dict[str, Any]:
    """Multipliers: the base model's own, or those that make Granite's attention a plain one."""
    return {
        "embedding_multiplier": base.value("embedding_multiplier", 1.0),
        "attention_multiplier": base.value("attention_multiplier", base.head_dim**-0.5),
        "residual_multiplier": base.value("residual_multiplier", 1.0),
        "logits_scaling": base.value("logits_scaling", 1.0),
    }
