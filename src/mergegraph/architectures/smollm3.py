"""SmolLM3: every fourth layer has no rotary embedding."""

from __future__ import annotations

from mergegraph.architectures.base import Family, every_nth

FAMILY = Family(("smollm3",), {"no_rope_layers": every_nth(4, "no_rope_layer_interval", 0, 1)})
