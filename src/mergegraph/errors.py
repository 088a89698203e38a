"""Every error mergegraph raises on purpose.

::

    MergeGraphError
    ├── PlanError              2   the plan, or how it fits its checkpoints; lists *all* problems
    ├── CheckpointError        3   a checkpoint cannot be read as what it claims to be
    │   └── HubError           3   a hub reference cannot be resolved
    ├── GraphError             4   an expression that no kernel could compute
    ├── MemoryBudgetError      5   the plan cannot run within the memory it was given
    └── ExecutionError         6   the run itself failed; what was finished is kept
        ├── OutputError        6   the output directory cannot be used
        ├── DiskFullError      6   no room left on the output file system
        ├── ResumeError        6   an unfinished run of something else is in the way
        ├── DeviceError        6   the requested device is not there
        ├── MissingPackageError 6  an optional package that the work needs is not installed
        └── TensorValueError   6   tensor contents contradict the plan (unequal integer tensors)

The number is the process exit code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a plan: what, where, and what to do about it.

    `where` is ``file:line``; `tensor` and `model` name what is concerned, when that is known.
    """

    message: str
    where: str | None = None
    tensor: str | None = None
    model: str | None = None
    hint: str | None = None

    def __str__(self) -> str:
        """Render as ``where: message [tensor …] [model …] — hint``."""
        parts = [f"{self.where}: " if self.where else "", self.message]
        if self.tensor and self.tensor not in self.message:
            parts.append(f" [tensor {self.tensor}]")
        if self.model and self.model not in self.message:
            parts.append(f" [model {self.model}]")
        if self.hint:
            parts.append(f" — {self.hint}")
        return "".join(parts)

    def as_dict(self) -> dict[str, str | None]:
        """Return the fields, for ``--json``."""
        return {
            "message": self.message,
            "where": self.where,
            "tensor": self.tensor,
            "model": self.model,
            "hint": self.hint,
        }


class MergeGraphError(Exception):
    """Base class: anything mergegraph reports to its user."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{message} — {hint}" if hint else message)
        self.message = message
        self.hint = hint


class PlanError(MergeGraphError):
    """A plan that cannot be compiled; `problems` holds every reason, in plan order."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in self.problems))


class CheckpointError(MergeGraphError):
    """A checkpoint file that is missing, truncated, hostile or of an unsupported kind."""

    exit_code = 3

    def __init__(self, message: str, *, path: str, hint: str | None = None) -> None:
        super().__init__(f"{path}: {message}", hint=hint)
        self.path = path
        self.reason = message


class HubError(CheckpointError):
    """A hub reference that cannot be resolved or fetched."""


class GraphError(MergeGraphError):
    """An expression whose operands do not fit its op."""

    exit_code = 4


class MemoryBudgetError(MergeGraphError):
    """A plan that needs more memory than it may use.

    `needed` and `budget` are bytes; `option` is what sets the budget.
    """

    exit_code = 5

    def __init__(self, tensor: str, needed: int, budget: int, option: str = "--memory") -> None:
        kind = "GPU" if option == "--vram" else "working"
        super().__init__(
            f"{tensor} needs {needed:,} bytes of {kind} memory, but the budget is {budget:,}",
            hint=f"allow at least {-(-needed // 2**20)} MiB with {option}, or use fewer --threads",
        )
        self.tensor = tensor
        self.needed = needed
        self.budget = budget
        self.option = option


class ExecutionError(MergeGraphError):
    """A run that failed after it started."""

    exit_code = 6


class OutputError(ExecutionError):
    """An output directory that must not be written to."""


class DiskFullError(ExecutionError):
    """The output file system has no room. Finished tensors stay, for the next run."""


class ResumeError(ExecutionError):
    """The staging directory holds an unfinished run that this one may not continue."""


class DeviceError(ExecutionError):
    """A device that is not available."""


class MissingPackageError(ExecutionError):
    """An optional package that is not installed."""

    def __init__(self, work: str, package: str, *, extra: str) -> None:
        super().__init__(
            f"{work} need the package {package}, which is not installed",
            hint=f"pip install 'mergegraph[{extra}]'",
        )
        self.package = package
        self.extra = extra


class TensorValueError(ExecutionError):
    """Tensor contents that contradict the plan."""

    def __init__(self, tensor: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{tensor}: {message}", hint=hint)
        self.tensor = tensor


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return a "did you mean …?" hint with the nearest of `known`, or None."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else None
