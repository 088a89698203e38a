"""Whether a merge is still the one that was locked."""

from __future__ import annotations

from collections.abc import Mapping

from mergegraph.compiler.inputs import Input
from mergegraph.errors import PlanError, Problem
from mergegraph.graph.graph import Graph
from mergegraph.plan.lock import Lock
from mergegraph.plan.values import ModelRef
from mergegraph.storage.local import sample_digest


def check_lock(lock: Lock, graph: Graph, inputs: Mapping[ModelRef, Input]) -> None:
    """Compare what was compiled from a lock file with what was locked.

    Raises:
        PlanError: it is another merge, or the weights of some model are others.
    """
    if lock.fingerprint != graph.fingerprint:
        hint = "the checkpoints have changed since; make a new lock with: mergegraph plan PLAN.yml"
        message = f"this is not the merge that was locked as {lock.fingerprint}"
        raise PlanError([Problem(message, lock.file, hint=hint)])
    changed = [m.name for m in inputs.values() if m.index.root and sample_of(m) != lock.samples.get(m.name)]
    if changed:
        hint = "restore it, or make a new lock with: mergegraph plan PLAN.yml"
        message = f"the weights of {', '.join(changed)} are not those that were locked"
        raise PlanError([Problem(message, lock.file, hint=hint)])


def sample_of(model: Input) -> str:
    """Digest of a local model's contents; a hub model is pinned by its commit."""
    return sample_digest(model.index) if model.index.root else ""
