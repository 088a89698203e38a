"""Gemma 2 and 3: sliding and full attention alternate by layer position."""

from __future__ import annotations

from mergegraph.architectures.base import Family, every_nth_full


def _layer_types(count: int, config: dict[str, object]) -> list[str]:
    every = 2 if config.get("model_type") == "gemma2" else 6
    return every_nth_full(every, "sliding_window_pattern")(count, config)


FAMILY = Family(("gemma2", "gemma3_text", "gemma3"), _layer_types)
