"""Llama 4: every fourth layer has no rotary embedding, and every n-th is a mixture of experts."""

from __future__ import annotations

from mergegraph.architectures.base import Family, every_nth

FAMILY = Family(
    ("llama4_text", "llama4"),
    {
        "no_rope_layers": every_nth(4, "no_rope_layer_interval", 0, 1),
        "moe_layers": every_nth(1, "interleave_moe_layer_step", True, False),
    },
)
