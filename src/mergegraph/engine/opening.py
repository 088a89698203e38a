"""Opening every model of a plan, and saying at once which of them cannot be opened."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.compiler.checks import line_of
from mergegraph.compiler.experts import spelling_for
from mergegraph.compiler.inputs import Input, Logical, align_prefix
from mergegraph.compiler.tokenizers import asks_for_tokenizers
from mergegraph.errors import CheckpointError
from mergegraph.plan.kinds import AnyPlan
from mergegraph.plan.merge import MergePlan
from mergegraph.plan.source import Problems
from mergegraph.plan.values import ModelRef
from mergegraph.storage.headers import Headers
from mergegraph.storage.local import open_checkpoint

_TOKENIZER_FILES = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
"""What a tokenizer consists of, the form that loaders prefer first."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Every checkpoint that a plan names and that could be opened, and the key of each."""

    indexes: Mapping[ModelRef, CheckpointIndex]
    keys: Mapping[ModelRef, str]


def open_all(plan: AnyPlan, problems: Problems) -> Opened:
    """Index every referenced model, in plan order.

    A model that cannot be opened is noted in `problems` and left out.
    """
    opened: dict[ModelRef, CheckpointIndex] = {}
    known = Headers()
    for ref in plan.referenced_models():
        where = line_of(plan, ref) if isinstance(plan, MergePlan) else plan.origin_of(ref)
        if not isinstance(plan, MergePlan) and _as_opened(ref).lora is not None:
            message = f"LoRA adapters ({ref}) are not supported by this version"
            problems.add(message, where, "merge the adapter into its model first")
            continue
        try:
            opened[ref] = open_model(ref, plan.file, known)
        except CheckpointError as error:
            problems.add(f"model {ref}: {error.message}", where, error.hint, str(ref))
    return Opened(opened, _keys(opened))


def inputs_of(refs: Iterable[ModelRef], donor: ModelRef | None, opened: Opened) -> dict[ModelRef, Input]:
    """The opened models among `refs`; names follow the spelling of `donor`, or of the first."""
    found = {ref: opened.indexes[ref] for ref in refs if ref in opened.indexes}
    first = next((found[ref] for ref in (donor, *found) if ref in found), None)
    if first is None:
        return {}
    spelling = spelling_for([(index.tensors, index.config) for index in (first, *found.values())])
    known: dict[object, tuple[object, Logical]] = {}
    inputs = {
        ref: Input(_as_opened(ref), opened.keys[ref], index, spelling=spelling, known=known)
        for ref, index in found.items()
    }
    # Prefixes are told by logical names: layouts differ in more than those.
    wanted = next(model.tensors for model in inputs.values() if model.index is first)
    for ref, own in inputs.items():
        prefix = align_prefix(own.tensors, wanted)
        inputs[ref] = replace(own, prefix=prefix) if any(prefix) else own
    return inputs


def input_alone(ref: ModelRef, opened: Opened) -> Input:
    """An opened model with its names in its own spelling."""
    return inputs_of([ref], ref, opened)[ref]


def open_inputs(plan: MergePlan, problems: Problems, opened: Opened | None = None) -> dict[ModelRef, Input]:
    """The models of a merge, opened now unless they are in `opened`; what cannot be is left out."""
    known = open_all(plan, problems) if opened is None else opened
    inputs = inputs_of(plan.referenced_models(), plan.base_model, known)
    return _with_tokenizers(inputs, plan, problems) if asks_for_tokenizers(plan) else inputs


def _with_tokenizers(
    inputs: dict[ModelRef, Input], plan: MergePlan, problems: Problems
) -> dict[ModelRef, Input]:
    """The inputs with digests of the files that decide whether a tokenizer key has an effect."""
    found = {}
    for ref, model in inputs.items():
        found[ref] = model
        try:
            files = partial(_sidecar, model.index)
            found[ref] = replace(
                model, tokenizer=tokenizer_digest(files), chat_template=template_digest(files)
            )
        except CheckpointError as error:
            problems.add(f"model {ref}: {error.message}", line_of(plan, ref), error.hint, str(ref))
    return found


def tokenizer_digest(read: Callable[[str], bytes | None]) -> str | None:
    """Digest of a tokenizer's files; None if there is none.

    `read` returns None for a file that is not there.
    """
    for names in _TOKENIZER_FILES:
        files = [data for name in names if (data := read(name)) is not None]
        if len(files) == len(names):
            return _digest(names[0].encode(), *files)
    return None


def template_digest(read: Callable[[str], bytes | None]) -> str | None:
    """Digest of a chat template, or of there being none; None if that cannot be read."""
    template = read("chat_template.jinja")
    if template is not None:
        return _digest(template.strip())
    for name in ("chat_template.json", "tokenizer_config.json"):
        try:
            found = json.loads(read(name) or b"{}")
        except ValueError:
            return None
        if isinstance(found, dict) and found.get("chat_template") is not None:
            written = found["chat_template"]
            text = written.strip() if isinstance(written, str) else json.dumps(written, sort_keys=True)
            return _digest(text.encode())
    return _digest()


def _digest(*parts: bytes) -> str:
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _sidecar(index: CheckpointIndex, name: str) -> bytes | None:
    if name not in index.sidecars:
        return None
    if not index.root:
        from mergegraph.storage import hub

        return hub.read_sidecar(index, name)
    path = Path(index.root) / name
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", path=str(path)) from error


def open_model(ref: ModelRef, plan_file: str | None = None, known: Headers | None = None) -> CheckpointIndex:
    """Index one model: a path (from the working directory, else from the plan's), or a hub id.

    Raises:
        CheckpointError: it is neither, or not a complete checkpoint.
    """
    ref = _as_opened(ref)
    name = str(ref)
    beside = Path(plan_file).parent / ref.path if plan_file else Path(ref.path)
    for path in (Path(ref.path), beside):
        if path.exists():
            return open_checkpoint(str(path), name=name, known=known)
    from mergegraph.storage import hub  # costs an import that local plans do without

    if hub.looks_like_repo(ref.path):
        return hub.open_hub_checkpoint(ref.path, ref.revision, name=name)
    return open_checkpoint(ref.path, name=name)


def _as_opened(ref: ModelRef) -> ModelRef:
    """The reference as it is meant: a string that is a local path as a whole is nothing else."""
    return ref.as_path() if ref.raw is not None and Path(ref.raw).exists() else ref


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
