"""Gemma 2 and 3: sliding and full attention alternate by layer position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergegraph.architectures.base import Family, every_nth_full


def _layer_types(count: int, config: Mapping[str, Any]) -> list[Any]:
    if config.get("model_type") == "gemma2":
        return every_nth_full(2, "")(count, config)
    return every_nth_full(6, "sliding_window_pattern")(count, config)


FAMILY = Family(("gemma2", "gemma3_text", "gemma3"), {"layer_types": _layer_types})
