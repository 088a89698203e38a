"""Reading a plan or lock file, and resolving what it names; everything wrong is said in one go."""

from __future__ import annotations

import os
from pathlib import Path

from mergegraph.compiler.inputs import Input
from mergegraph.compiler.merge import find_problems
from mergegraph.engine.opening import open_inputs
from mergegraph.errors import PlanError, Problem
from mergegraph.methods import get_method
from mergegraph.methods.base import MergeMethod
from mergegraph.plan import LOCK_SUFFIX
from mergegraph.plan.lock import Lock, read_lock
from mergegraph.plan.merge import MergePlan, read_plan
from mergegraph.plan.source import Problems
from mergegraph.plan.values import ModelRef


def read_file(path: str | os.PathLike[str], problems: Problems) -> tuple[MergePlan, Lock | None]:
    """Read a plan file, or the plan inside a lock file; what is wrong with the plan goes to `problems`.

    Raises:
        PlanError: it cannot be read at all.
    """
    file = os.fspath(path)
    try:
        text = Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise PlanError([Problem(f"the plan cannot be read: {error.strerror}", file)]) from error
    except UnicodeDecodeError as error:
        raise PlanError([Problem("the plan is not UTF-8 text", file)]) from error
    if not file.endswith(LOCK_SUFFIX):
        return read_plan(text, file, problems), None
    lock = read_lock(text, file)
    # Paths in the plan count from where it is, and its lock lies beside it.
    beside = os.path.join(os.path.dirname(file), os.path.basename(lock.file))
    return read_plan(lock.plan, beside, problems), lock


def resolve(plan: MergePlan, problems: Problems) -> tuple[MergeMethod, dict[ModelRef, Input]]:
    """Find the method and open the models of `plan`.

    Raises:
        PlanError: with `problems` and everything else that is wrong, as far as it can be told.
    """
    method: MergeMethod | None = None
    try:
        method = get_method(plan.method, str(plan.method_origin)) if plan.method else None
    except PlanError as error:
        problems.extend(error.problems)
    inputs = open_inputs(plan, problems)
    if problems.found:
        problems.extend(find_problems(plan, method, inputs))
    problems.raise_if_any()
    assert method is not None
    return method, inputs
