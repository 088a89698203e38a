"""The suites, in the order of the report."""

from __future__ import annotations

from benchmarks.suites import kernels, memory, methods, moe, planning, startup, threads, variety
from benchmarks.suites.base import Suite

ALL: dict[str, Suite] = {
    module.SUITE.name: module.SUITE
    for module in (methods, variety, moe, memory, threads, planning, startup, kernels)
}
"""By name."""
