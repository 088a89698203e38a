"""The verbs that users call, and nothing else."""

from __future__ import annotations

from mergegraph.engine.verbs import (
    Compiled,
    compile_plan,
    explain,
    inspect,
    load_plan,
    run,
    verify,
    write_lock,
)
from mergegraph.runtime.events import RunReport

__all__ = [
    "Compiled",
    "RunReport",
    "compile_plan",
    "explain",
    "inspect",
    "load_plan",
    "run",
    "verify",
    "write_lock",
]
