"""The files beside the weights: tokenizer and the like, configs, model card, manifest."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.errors import CheckpointError
from mergegraph.storage.files import write_error, write_file

MANIFEST_FILE = "mergegraph.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def copy_sidecars(index: CheckpointIndex, staging: Path) -> list[str]:
    """Copy the sidecars of `index` into `staging` byte for byte, and return their names.

    Raises:
        CheckpointError: one is no longer there, or cannot be read.
        ExecutionError: one cannot be written.
    """
    for name in index.sidecars:
        source, target = Path(index.root, name), staging / name
        with _opened(source) as data:
            try:
                with open(target, "wb") as copy:
                    shutil.copyfileobj(data, copy, 2**20)
                    copy.flush()
                    os.fsync(copy.fileno())
            except OSError as error:
                raise write_error(error, target) from error
    return list(index.sidecars)


def _opened(source: Path) -> BinaryIO:
    try:
        return open(source, "rb")
    except OSError as error:
        raise CheckpointError(
            f"cannot be copied: {error.strerror}",
            path=str(source),
            hint="leave the inputs alone while a merge runs, then plan and run again",
        ) from error


def write_json(staging: Path, name: str, obj: object) -> None:
    """Write `obj` as indented JSON, durably.

    Raises:
        ExecutionError: it cannot be written.
    """
    write_file(staging, name, (json.dumps(obj, indent=2, ensure_ascii=False) + "\n").encode())


def input_record(index: CheckpointIndex) -> dict[str, Any]:
    """Return what a manifest says of an input: nothing that differs between machines."""
    return {
        "name": index.name,
        "revision": index.revision,
        "identity": index.identity,
        "files": {
            name: {"size": file.size, "header_digest": file.header_digest}
            for name, file in sorted(index.files.items())
        },
    }


def write_manifest(
    staging: Path,
    *,
    plan: str,
    fingerprint: str,
    inputs: Sequence[CheckpointIndex],
    parameters: Mapping[str, Any],
    checksums: Mapping[str, str],
    versions: Mapping[str, str],
) -> None:
    """Write `MANIFEST_FILE`: all it takes to repeat the merge, and to check its result.

    Args:
        staging: the staging directory.
        plan: the plan as its author wrote it.
        fingerprint: digest of everything that decides the output tensors.
        inputs: the checkpoints, in plan order.
        parameters: the resolved parameters, as JSON values.
        checksums: checksum of every output tensor.
        versions: of mergegraph and of what it computed with.
    """
    manifest = {
        "versions": dict(versions),
        "fingerprint": fingerprint,
        "plan": plan,
        "inputs": [input_record(index) for index in inputs],
        "parameters": dict(parameters),
        "checksums": dict(checksums),
    }
    write_json(staging, MANIFEST_FILE, manifest)


def model_card(*, title: str, method: str, models: Sequence[CheckpointIndex], plan: str, version: str) -> str:
    """Return the text of a ``README.md`` that says what was merged, and how.

    Args:
        title: name of the merged model.
        method: name of the merge method.
        models: the inputs, in plan order; those from the hub are linked as base models.
        plan: the plan as its author wrote it.
        version: of mergegraph.
    """
    # A local path says nothing to a reader of the hub, and could be mistaken for someone's model.
    hub = [hub_id for hub_id in map(_hub_id, models) if hub_id]
    front = ["---", "library_name: transformers", "tags:", "- mergegraph", "- merge"]
    if hub:
        front += ["base_model:", *(f"- {hub_id}" for hub_id in dict.fromkeys(hub))]
    rows = [
        f"| {_cell(m.name)} | {_cell(m.revision or 'local')} | {len(m.tensors):,} | `{m.identity}` |"
        for m in models
    ]
    # Longer than any run of backticks in the plan, so that nothing in it can end the block.
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", plan)), default=0))
    return "\n".join(
        [
            *front,
            "---",
            "",
            f"# {title}",
            "",
            f"Merged with mergegraph {version}, method `{method}`.",
            "",
            "| model | revision | tensors | headers |",
            "|---|---|---|---|",
            *rows,
            "",
            f"{fence}yaml",
            plan.rstrip("\n"),
            fence,
            "",
        ]
    )


def _hub_id(index: CheckpointIndex) -> str | None:
    name = re.split(r"[@+]", index.name, maxsplit=1)[0]
    return name if index.revision is not None and _HUB_ID.fullmatch(name) else None


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
