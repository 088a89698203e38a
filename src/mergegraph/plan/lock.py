"""Lock files: a plan together with what it resolved to, so that a later run is provably the same.

The schema is loaded on first use: it costs an import that plans without a lock do without.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from mergegraph.errors import PlanError, Problem
from mergegraph.plan.values import ExpertLayout


@dataclass(frozen=True, slots=True)
class Lock:
    """What a run takes from a lock file: the plan's text and name, its seed, and what it has to meet.

    `samples` is a digest of each model's contents, by the model's name.
    """

    file: str
    plan: str
    seed: int | None
    expert_layout: ExpertLayout | None
    fingerprint: str
    samples: dict[str, str]


def lock_text(
    *,
    version: str,
    file: str,
    plan: str,
    seed: int | None,
    expert_layout: ExpertLayout | None,
    fingerprint: str,
    inputs: list[dict[str, Any]],
    parameters: list[dict[str, Any]],
) -> str:
    """Return the text of a lock file."""
    from mergegraph.plan.lock_schema import LockFile

    lock = LockFile(
        mergegraph_lock=1,
        version=version,
        file=file,
        plan=plan,
        seed=seed,
        expert_layout=expert_layout,
        fingerprint=fingerprint,
        inputs=inputs,
        parameters=parameters,
    )
    return json.dumps(lock.model_dump(), indent=2, ensure_ascii=False) + "\n"


def read_lock(text: str, file: str) -> Lock:
    """Read a lock file.

    Raises:
        PlanError: it is not one.
    """
    from pydantic import ValidationError

    from mergegraph.plan.lock_schema import LockFile

    try:
        lock = LockFile.model_validate_json(text)
    except ValidationError as error:
        hint = "make it anew with: mergegraph plan PLAN.yml"
        raise PlanError(
            [
                Problem(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}", file, hint=hint)
                for e in error.errors()
            ]
        ) from error
    samples = {str(record.get("name")): str(record.get("sample")) for record in lock.inputs}
    return Lock(lock.file, lock.plan, lock.seed, lock.expert_layout, lock.fingerprint, samples)
