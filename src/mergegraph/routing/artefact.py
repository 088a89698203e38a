"""Router rows on disk: a small safetensors file in the user's cache, named by what it was computed from.

Tensors are ``layers.{L}`` ``[experts, hidden]`` and, where shared experts have prompts, ``shared.{L}``
``[shared experts, hidden]``, all float32. The header holds the report, and a checksum: a cache is never
believed.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from mergegraph.checkpoint.index import METADATA_KEY, header_length, parse_header
from mergegraph.checkpoint.layout import build_layout
from mergegraph.errors import CheckpointError
from mergegraph.routing.report import GateReport
from mergegraph.routing.weights import Array
from mergegraph.storage.files import byte_view, cache_root, write_error
from mergegraph.tensorspec import DType, TensorSpec

FOLDER = "gates"
_CHECKSUM, _REPORT = "checksum", "report"


def artefact_path(key: str, cache: Path | None = None) -> Path:
    """Return where rows with this key lie, below `cache` or the user's cache."""
    return (cache_root() if cache is None else cache) / FOLDER / f"{key}.safetensors"


def load(path: Path) -> GateReport | None:
    """Return the report of intact rows at `path`; None if there are none, or they are damaged."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror}",
            path=str(path),
            hint="remove it, or name another cache directory with $MERGEGRAPH_CACHE",
        ) from error
    try:
        length = header_length(raw[:8], len(raw), str(path))
        header = raw[8 : 8 + length]
        parse_header(header, path.name, len(raw), str(path))
        table = json.loads(header)
        metadata = table.pop(METADATA_KEY)
        if metadata[_CHECKSUM] != _checksum(metadata[_REPORT], table, [raw[8 + length :]]):
            return None
        return GateReport.from_dict(json.loads(metadata[_REPORT]))
    except (CheckpointError, KeyError, TypeError, ValueError):
        return None


def read_rows(path: Path, name: str) -> Array:
    """Return one tensor of intact rows at `path`: ``layers.0``, ``shared.0`` and so on."""
    raw = path.read_bytes()
    length = header_length(raw[:8], len(raw), str(path))
    entry = parse_header(raw[8 : 8 + length], path.name, len(raw), str(path))[name]
    return np.frombuffer(raw[entry.begin : entry.end], np.float32).reshape(entry.spec.shape)


def store(path: Path, tensors: Mapping[str, Array], report: GateReport) -> None:
    """Write rows so that they are there as a whole or not at all.

    Intact rows that another process wrote meanwhile are left alone: somebody may be reading them.

    Raises:
        OutputError: the cache cannot be written.
        DiskFullError: it has no room.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.writelines(_contents(tensors, report))
        if load(path) is None:
            os.replace(temporary, path)
            temporary = None
    except OSError as error:
        raise write_error(error, path) from error
    finally:
        if temporary is not None:
            os.unlink(temporary)


def _contents(tensors: Mapping[str, Array], report: GateReport) -> list[Any]:
    """The bytes of the file, in order, without copying the rows."""
    specs = {name: TensorSpec(rows.shape, DType.F32) for name, rows in tensors.items()}
    shard = build_layout(specs, sum(spec.nbytes for spec in specs.values())).shards[0]
    table = json.loads(shard.header[8:])
    metadata = table.pop(METADATA_KEY)
    data = [byte_view(np.ascontiguousarray(tensors[name], "<f4").data) for name in shard.tensors]
    text = json.dumps(report.as_dict(), sort_keys=True, separators=(",", ":"))
    metadata |= {_CHECKSUM: _checksum(text, table, data), _REPORT: text}
    header = json.dumps({METADATA_KEY: metadata, **table}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return [len(header).to_bytes(8, "little"), header, *data]


def _checksum(report: str, table: Mapping[str, Any], data: Sequence[Any]) -> str:
    digest = blake2b(f"{report}\n{json.dumps(table, sort_keys=True)}\n".encode(), digest_size=16)
    for part in data:
        digest.update(part)
    return digest.hexdigest()
