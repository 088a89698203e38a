"""The headers of a checkpoint's shards: read, joined, and held against the index that lists them."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from mergegraph.checkpoint.index import (
    CheckpointIndex,
    FileEntry,
    TensorEntry,
    header_length,
    parse_header,
    shorten,
)
from mergegraph.checkpoint.names import natural_key
from mergegraph.errors import CheckpointError

Entries = Mapping[str, TensorEntry]
_Key = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class Shard:
    """One file, and the tensors in it, in header order."""

    entry: FileEntry
    tensors: Entries


@dataclass(frozen=True, slots=True)
class WeightMap:
    """An index file: which shard holds which tensor."""

    path: Path
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Headers:
    """What was made of the headers read so far: fine-tunes of one model have equal ones, and share that.

    Attributes:
        shards: by file name, size and header digest.
        checkpoints: all tensors, in natural order, by those of all files.
        weight_maps: which shard holds which tensor, by the digest of the index file.
        listed: pairs of `checkpoints` and `weight_maps` that were found to agree, by their identities.
        indexes: the first that was opened of each of `checkpoints`, by their identities.
    """

    shards: dict[_Key, Entries] = field(default_factory=dict)
    checkpoints: dict[tuple[_Key, ...], Entries] = field(default_factory=dict)
    weight_maps: dict[str, Mapping[str, str]] = field(default_factory=dict)
    listed: dict[tuple[int, int], tuple[Entries, Mapping[str, str]]] = field(default_factory=dict)
    indexes: dict[int, CheckpointIndex] = field(default_factory=dict)


def read_shard(root: Path, file: str, known: Headers) -> Shard:
    """Read and parse one header: two small reads, whatever the size of the file."""
    path = root / file
    # Non-blocking, or a named pipe that calls itself a shard would stop us for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise CheckpointError(
                "is not a regular file", path=str(path), hint="replace it by the file itself"
            )
        length = header_length(os.pread(descriptor, 8, 0), info.st_size, str(path))
        raw = os.pread(descriptor, length, 8)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a descriptor has no name
    finally:
        os.close(descriptor)
    if len(raw) != length:
        raise CheckpointError(
            "became shorter while its header was read", path=str(path), hint="wait for its writer to finish"
        )
    entry = FileEntry(file, info.st_size, header_digest(raw), file_stamp(info))
    tensors = known.shards.get(_key(entry))
    if tensors is None:
        tensors = known.shards[_key(entry)] = parse_header(raw, file, info.st_size, str(path))
    return Shard(entry, tensors)


def header_digest(raw: bytes) -> str:
    """Return what `FileEntry.header_digest` holds for a header."""
    return blake2b(raw, digest_size=16).hexdigest()


def file_stamp(info: os.stat_result) -> str:
    """Return what `FileEntry.stamp` holds for a local file."""
    return f"mtime:{info.st_mtime_ns}"


def _key(file: FileEntry) -> _Key:
    return file.name, file.size, file.header_digest


def gathered(root: Path, shards: Sequence[Shard], weight_map: WeightMap | None, known: Headers) -> Entries:
    """Join the shards in natural order, and hold them against the index that claims to describe them."""
    key = tuple(_key(shard.entry) for shard in shards)
    tensors = known.checkpoints.get(key)
    if tensors is None:
        joined = _joined(root, shards)
        tensors = known.checkpoints[key] = {name: joined[name] for name in sorted(joined, key=natural_key)}
    if weight_map is not None:
        pair = (id(tensors), id(weight_map.files))
        if pair not in known.listed:
            _check_listed(tensors, weight_map)
            known.listed[pair] = (tensors, weight_map.files)
    return tensors


def _joined(root: Path, shards: Sequence[Shard]) -> dict[str, TensorEntry]:
    tensors: dict[str, TensorEntry] = {}
    for shard in shards:
        for name, entry in shard.tensors.items():
            first = tensors.setdefault(name, entry)
            if first is not entry:
                raise CheckpointError(
                    f"tensor {shorten(name)} is in both {first.file} and {entry.file}",
                    path=str(root),
                    hint="give the one file to use, or remove the one that does not belong",
                )
    return tensors


def _check_listed(tensors: Entries, weight_map: WeightMap) -> None:
    claimed = weight_map.files
    wrong = [n for n, file in claimed.items() if n not in tensors or tensors[n].file != file]
    if wrong:
        raise CheckpointError(
            f"promises tensors that are not in their shards: {some_of(wrong)}",
            path=str(weight_map.path),
            hint="index and shards are of different checkpoints; fetch or export both again",
        )
    unlisted = [n for n in tensors if n not in claimed]
    if unlisted:
        raise CheckpointError(
            f"does not list tensors that its shards hold: {some_of(unlisted)}",
            path=str(weight_map.path),
            hint="index and shards are of different checkpoints; fetch or export both again",
        )


def some_of(names: Sequence[str]) -> str:
    """Quote a few of `names`, for a message."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(shorten, names[:3])) + more
