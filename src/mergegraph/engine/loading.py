"""Reading a plan or lock file; everything wrong is said in one go."""

from __future__ import annotations

import os
from pathlib import Path

from mergegraph.errors import PlanError, Problem
from mergegraph.plan import LOCK_SUFFIX
from mergegraph.plan.kinds import AnyPlan, read_any
from mergegraph.plan.lock import Lock, read_lock
from mergegraph.plan.source import Problems


def read_file(path: str | os.PathLike[str], problems: Problems) -> tuple[AnyPlan, Lock | None]:
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
        return read_any(text, file, problems), None
    lock = read_lock(text, file)
    # Paths in the plan count from where it is, and its lock lies beside it.
    beside = os.path.join(os.path.dirname(file), os.path.basename(lock.file))
    return read_any(lock.plan, beside, problems), lock
