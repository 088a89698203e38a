"""Opening every model of a plan, and saying at once which of them cannot be opened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.compiler.inputs import Input, align_prefix
from mergegraph.errors import CheckpointError
from mergegraph.graph.node import Origin
from mergegraph.plan.merge import MergePlan
from mergegraph.plan.source import Problems
from mergegraph.plan.values import ModelRef
from mergegraph.storage.local import open_checkpoint


def open_inputs(plan: MergePlan, problems: Problems) -> dict[ModelRef, Input]:
    """Index every referenced model, in plan order; names follow the donor's spelling.

    A model that cannot be opened is noted in `problems` and left out.
    """
    opened: dict[ModelRef, CheckpointIndex] = {}
    for ref in plan.referenced_models() if plan.sources() else ():
        try:
            opened[ref] = open_model(ref, plan.file)
        except CheckpointError as error:
            message = f"model {ref}: {error.message}"
            problems.add(message, _origin(plan, ref), error.hint, str(ref))
    keys = _keys(opened)
    donor = opened.get(plan.base_model or plan.referenced_models()[0]) or next(iter(opened.values()), None)
    if donor is None:
        return {}
    return {
        ref: Input(ref, keys[ref], index, align_prefix(index.tensors, donor.tensors))
        for ref, index in opened.items()
    }


def open_model(ref: ModelRef, plan_file: str | None = None) -> CheckpointIndex:
    """Index one model: a path (from the working directory, else from the plan's), or a hub id.

    Raises:
        CheckpointError: it is neither, or not a complete checkpoint.
    """
    if ref.raw is not None and Path(ref.raw).exists():
        ref = ref.as_path()
    name = str(ref)
    beside = Path(plan_file).parent / ref.path if plan_file else Path(ref.path)
    for path in (Path(ref.path), beside):
        if path.exists():
            return open_checkpoint(str(path), name=name)
    from mergegraph.storage import hub  # costs an import that local plans do without

    if hub.looks_like_repo(ref.path):
        return hub.open_hub_checkpoint(ref.path, ref.revision, name=name)
    return open_checkpoint(ref.path, name=name)


def fetched(inputs: Mapping[ModelRef, Input]) -> dict[ModelRef, Input]:
    """The same inputs with all their files on this machine; hub models are downloaded now."""
    return {ref: _fetched(model) for ref, model in inputs.items()}


def _fetched(model: Input) -> Input:
    if model.index.root:
        return model
    from mergegraph.storage import hub

    return replace(model, index=hub.fetch(model.index))


def _keys(opened: Mapping[ModelRef, CheckpointIndex]) -> dict[ModelRef, str]:
    """A key per checkpoint: fine-tunes of one base have equal headers, so the plan's order counts too."""
    places: dict[tuple[str, ...], str] = {}
    seen: dict[str, int] = {}
    keys = {}
    for ref, index in opened.items():
        place = (os.path.realpath(index.root) if index.root else str(ref), *index.files)
        found = places.get(place)
        if found is None:
            number = seen[index.identity] = seen.get(index.identity, 0) + 1
            found = places[place] = f"{index.identity}:{number}"
        keys[ref] = found
    return keys


def _origin(plan: MergePlan, ref: ModelRef) -> Origin:
    for source in plan.sources():
        if source.model == ref:
            return source.origin
    return plan.base_origin or plan.method_origin
