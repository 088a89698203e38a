"""Checking a merged checkpoint against the checksums in its manifest."""

from __future__ import annotations

import json
from pathlib import Path

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.errors import CheckpointError
from mergegraph.runtime.executor import ReadBack, stored_checksum
from mergegraph.storage.local import open_checkpoint
from mergegraph.storage.reader import Reader
from mergegraph.storage.sidecars import MANIFEST_FILE


def damaged_tensors(out: Path) -> list[str]:
    """Return the names of tensors that are missing, unexpected or not what was written, sorted.

    Raises:
        CheckpointError: `out` holds no readable checkpoint with a manifest.
    """
    index = open_checkpoint(str(out), name=str(out))
    recorded = _checksums(out)
    pieces: dict[str, list[tuple[int, str]]] = {}
    for piece, value in recorded.items():
        tensor, offset = _place(piece, index)
        pieces.setdefault(tensor, []).append((offset, value))
    damaged = {name: None for name in index.tensors if name not in pieces}
    damaged |= {name: None for name in pieces if name not in index.tensors}
    with Reader({"out": index}) as reader:

        def read(tensor: str, offset: int, buffer: memoryview) -> None:
            reader.read_into("out", tensor, offset, buffer)

        for tensor, parts in pieces.items():
            if tensor in index.tensors and not _intact(
                tensor, sorted(parts), index.tensors[tensor].spec.nbytes, read
            ):
                damaged[tensor] = None
    return sorted(damaged)


def _place(piece: str, index: CheckpointIndex) -> tuple[str, int]:
    """Take the name of a piece apart; a tensor's own name may hold anything, line breaks too."""
    tensor, _, offset = piece.rpartition("\n")
    if piece not in index.tensors and tensor in index.tensors and offset.isdecimal():
        return tensor, int(offset)
    return piece, 0


def _intact(tensor: str, parts: list[tuple[int, str]], size: int, read: ReadBack) -> bool:
    ends = [offset for offset, _ in parts[1:]] + [size]
    return all(
        f"{stored_checksum(tensor, offset, end - offset, read):016x}" == value
        for (offset, value), end in zip(parts, ends, strict=True)
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
