"""Merge model checkpoints in bounded memory, at disk speed.

The public names are looked up on first use, so that ``import mergegraph`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from mergegraph.version import VERSION as __version__

if TYPE_CHECKING:
    from mergegraph.engine import Compiled, RunReport, compile_plan, explain, load_plan, run, verify
    from mergegraph.errors import (
        CheckpointError,
        DeviceError,
        DiskFullError,
        ExecutionError,
        GraphError,
        HubError,
        MemoryBudgetError,
        MergeGraphError,
        MissingPackageError,
        OutputError,
        PlanError,
        Problem,
        ResumeError,
        TensorValueError,
    )

__all__ = [
    "CheckpointError",
    "Compiled",
    "DeviceError",
    "DiskFullError",
    "ExecutionError",
    "GraphError",
    "HubError",
    "MemoryBudgetError",
    "MergeGraphError",
    "MissingPackageError",
    "OutputError",
    "PlanError",
    "Problem",
    "ResumeError",
    "RunReport",
    "TensorValueError",
    "__version__",
    "compile_plan",
    "explain",
    "load_plan",
    "run",
    "verify",
]

_ENGINE = frozenset({"Compiled", "RunReport", "compile_plan", "explain", "load_plan", "run", "verify"})


def __getattr__(name: str) -> object:
    """Import a public name from its home, once."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "mergegraph.engine" if name in _ENGINE else "mergegraph.errors"
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
