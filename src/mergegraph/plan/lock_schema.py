"""The schema of lock files, by itself: only plans that are locked pay for loading what checks it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from mergegraph.plan.values import ExpertLayout


class LockFile(BaseModel):
    """The file's schema. Everything but plan, file, seed and fingerprint is for readers."""

    model_config = ConfigDict(extra="forbid", strict=True)

    mergegraph_lock: Literal[1]
    version: str
    file: str
    plan: str
    seed: int | None
    expert_layout: ExpertLayout | None = None
    fingerprint: str
    inputs: list[dict[str, Any]]
    parameters: list[dict[str, Any]]
