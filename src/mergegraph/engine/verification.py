"""Checking a merged checkpoint against the checksums in its manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.checkpoint.view import parsed_view
from mergegraph.errors import CheckpointError
from mergegraph.runtime.executor import placed_checksum, stored_checksum
from mergegraph.storage.local import open_checkpoint
from mergegraph.storage.reader import Reader
from mergegraph.storage.sidecars import MANIFEST_FILE
from mergegraph.storage.strided import Transfer
from mergegraph.tensorspec import TensorSpec


def damaged_tensors(out: Path) -> list[str]:
    """Return the names of tensors that are missing, unexpected or not what was written, sorted.

    Raises:
        CheckpointError: `out` holds no readable checkpoint with a manifest.
    """
    index = open_checkpoint(str(out), name=str(out))
    recorded = _checksums(out)
    pieces: dict[str, dict[str, str]] = {}
    for piece, value in recorded.items():
        tensor, place = _place(piece, index)
        pieces.setdefault(tensor, {})[place] = value
    damaged = {name: None for name in index.tensors if name not in pieces}
    damaged |= {name: None for name in pieces if name not in index.tensors}
    with Reader({"out": index}) as reader:

        def read(tensor: str, offset: int, buffer: memoryview) -> None:
            reader.read_into("out", tensor, offset, buffer)

        for tensor, parts in pieces.items():
            if tensor in index.tensors:
                spec = index.tensors[tensor].spec
                if not _intact(parts, spec, partial(read, tensor)):
                    damaged[tensor] = None
    return sorted(damaged)


def _place(piece: str, index: CheckpointIndex) -> tuple[str, str]:
    """Take the name of a piece apart; a tensor's own name may hold anything, line breaks too."""
    tensor, _, place = piece.rpartition("\n")
    if piece not in index.tensors and tensor in index.tensors:
        return tensor, place
    return piece, "0"


def _intact(parts: Mapping[str, str], spec: TensorSpec, read: Transfer) -> bool:
    """Whether every piece is as recorded: each reaches to the next, or all say where they lie."""
    if all(place.isdecimal() for place in parts):
        starts = sorted(int(place) for place in parts)
        ends = [*starts[1:], spec.nbytes]
        if starts[:1] != [0] or any(a > b for a, b in zip(starts, ends, strict=True)):
            return False
        found = [stored_checksum(a, b - a, read) for a, b in zip(starts, ends, strict=True)]
        return [f"{value:016x}" for value in found] == [parts[str(start)] for start in starts]
    views = {place: parsed_view(place) for place in parts}
    if any(v is None or not v.within(spec.numel) for v in views.values()):
        return False
    size = spec.dtype.bits // 8
    if sum(view.numel for view in views.values() if view) != spec.numel:
        return False
    return all(
        f"{placed_checksum(view, size, read):016x}" == parts[place] for place, view in views.items() if view
    )


def _checksums(out: Path) -> dict[str, str]:
    path = out / MANIFEST_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["checksums"]
        if not isinstance(found, dict):
            raise TypeError("checksums must be a mapping")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            "no readable manifest with checksums",
            path=str(path),
            hint="only merged checkpoints can be verified",
        ) from error
    return {str(k): str(v) for k, v in found.items()}
