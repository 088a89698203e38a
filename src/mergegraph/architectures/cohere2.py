"""Command R7B and its relatives: full attention in every fourth layer."""

from __future__ import annotations

from mergegraph.architectures.base import Family, every_nth_full

FAMILY = Family(("cohere2",), {"layer_types": every_nth_full(4, "sliding_window_pattern")})
