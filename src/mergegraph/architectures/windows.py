"""How mixtures say in their configs where attention slides."""

from __future__ import annotations

from typing import Any

from mergegraph.architectures.dense import Body
from mergegraph.architectures.moe import Options


def uniform_window(base: Body, options: Options) -> dict[str, Any]:
    """A window of all layers, or none."""
    return {"sliding_window": base.window if any(base.windows) else None}


def switched_window(base: Body, options: Options) -> dict[str, Any]:
    """A window of all layers behind a switch."""
    slides = any(base.windows)
    return {
        "use_sliding_window": slides,
        "sliding_window": base.window if slides else None,
        "max_window_layers": 0 if slides else base.layers,
    }


def listed_windows(base: Body, options: Options) -> dict[str, Any]:
    """A window with a list of the layers it is in; older loaders only count those before the first."""
    slides = any(base.windows)
    return {
        "use_sliding_window": slides,
        "sliding_window": base.window if slides else None,
        "max_window_layers": base.windows.index(True) if slides else base.layers,
        "layer_types": ["sliding_attention" if s else "full_attention" for s in base.windows],
    }
