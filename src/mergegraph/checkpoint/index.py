"""What is in a checkpoint: names, specs and byte ranges of its tensors, and its config.

Pure: `storage` reads the bytes, this module says what they mean and refuses what is malformed.
A header comes from strangers, so nothing in it is believed before it is checked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from mergegraph.errors import CheckpointError
from mergegraph.tensorspec import DType, TensorSpec

HEADER_LIMIT = 100_000_000
"""Longest header in bytes: the format's own limit."""

METADATA_KEY = "__metadata__"
"""The one header key that is not a tensor."""

_LENGTH_BYTES = 8
_MAX_DIMS = 64
_MAX_BYTES = 2**63 - 1
_DAMAGED = "the file is damaged or was not written as safetensors; fetch or export it again"
_TRUNCATED = "the download or copy was probably cut off; fetch the file again"
_LFS_POINTER = b"version "
_DTYPES = dict(DType.__members__)


class TensorEntry(NamedTuple):
    """Where one tensor lies: `begin` and `end` are absolute byte offsets in `file`."""

    spec: TensorSpec
    file: str
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One shard: its name below the checkpoint's root, size, and header digest.

    `stamp` (``mtime:`` and nanoseconds, or a hub etag) tells whether its contents changed.
    """

    name: str
    size: int
    header_digest: str
    stamp: str


@dataclass(frozen=True)
class CheckpointIndex:
    """A checkpoint, from headers alone.

    Attributes:
        name: the reference as the user wrote it.
        root: absolute directory holding the files.
        tensors: entries by tensor name, in natural order (layer 2 before layer 10).
        files: the shards, by name.
        config: parsed ``config.json``; empty when there is none.
        sidecars: names of the other files in the directory (tokenizer, licence, …), sorted.
        revision: the hub commit, if it came from the hub.
        like: another checkpoint with equal headers, if one is known: the digest of those is taken once.
    """

    name: str
    root: str
    tensors: Mapping[str, TensorEntry]
    files: Mapping[str, FileEntry]
    config: Mapping[str, Any]
    sidecars: tuple[str, ...] = ()
    revision: str | None = None
    like: CheckpointIndex | None = field(default=None, repr=False, compare=False)

    @cached_property
    def identity(self) -> str:
        """Digest of all shard headers: names, dtypes, shapes and offsets of every tensor.

        It says nothing of tensor *contents*: two fine-tunes of one model share it.
        """
        if self.like is not None:
            return self.like.identity
        digest = blake2b(digest_size=16)
        for name, file in sorted(self.files.items()):
            digest.update(f"{name!r} {file.size} {file.header_digest}\n".encode())
        specs = {id(e.spec): e.spec for e in self.tensors.values()}
        spelt = {key: f"{spec.dtype.name} {spec.shape}" for key, spec in specs.items()}
        lines = []
        for name in sorted(self.tensors):
            spec, shard, begin, end = self.tensors[name]
            lines.append(f"{name!r} {spelt[id(spec)]} {shard!r} {begin} {end}\n")
        digest.update("".join(lines).encode())
        return digest.hexdigest()


def header_length(start: bytes, file_size: int, path: str) -> int:
    """Return the length of the JSON header, given the first bytes of a file of `file_size` bytes.

    Raises:
        CheckpointError: no header of that length can follow.
    """
    if len(start) < _LENGTH_BYTES:
        raise CheckpointError(
            f"is {len(start)} bytes long, too short for a safetensors file", path=path, hint=_TRUNCATED
        )
    if start.startswith(_LFS_POINTER):
        raise CheckpointError(
            "is a Git LFS pointer, not the file itself",
            path=path,
            hint="run `git lfs pull` in that directory",
        )
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if length > HEADER_LIMIT:
        raise CheckpointError(
            f"claims a header of {length:,} bytes; the format allows {HEADER_LIMIT:,}",
            path=path,
            hint=_DAMAGED,
        )
    if length > file_size - _LENGTH_BYTES:
        raise CheckpointError(
            f"claims a header of {length:,} bytes, but the file has only {file_size:,}",
            path=path,
            hint=_TRUNCATED,
        )
    return length


def parse_header(raw: bytes, file: str, file_size: int, path: str) -> dict[str, TensorEntry]:
    """Return the tensors that a safetensors header describes, in header order.

    Args:
        raw: the JSON bytes that follow the 8-byte length.
        file: name of the file below the checkpoint's root, kept in the entries.
        file_size: size of the whole file in bytes.
        path: where the file is, for messages.

    Raises:
        CheckpointError: the header is malformed, or its tensors do not tile the file exactly.
    """
    table = _decode(raw, path)
    _check_metadata(table.pop(METADATA_KEY, None), path)
    start = _LENGTH_BYTES + len(raw)
    # Models repeat few distinct (dtype, shape) pairs: each is checked, and built, only once.
    specs: dict[tuple[str, tuple[int, ...]], tuple[TensorSpec, int]] = {}
    spans: list[tuple[int, int, str]] = []
    entries: dict[str, TensorEntry] = {}
    for name, info in table.items():
        try:
            dtype, shape, (begin, end) = info["dtype"], info["shape"], info["data_offsets"]
            dims = tuple(shape) if type(shape) is list else None
        except (KeyError, TypeError, ValueError):
            raise _malformed(name, "needs dtype, shape and two data_offsets", path) from None
        if dims is None or type(dtype) is not str:
            raise _malformed(name, "has a dtype or shape of the wrong type", path)
        for number in (begin, end, *dims):
            if type(number) is not int or number < 0:
                raise _malformed(name, "has a size or offset that is not a natural number", path)
        found = specs.get((dtype, dims))
        if found is None:
            found = specs[dtype, dims] = _spec(name, dtype, dims, path)
        spec, size = found
        if end - begin != size:
            raise _malformed(name, f"is {spec}, {size:,} bytes, but has offsets [{begin}, {end}]", path)
        spans.append((begin, end, name))
        entries[name] = TensorEntry(spec, file, start + begin, start + end)
    _check_tiling(spans, file_size - start, path)
    return entries


class _RepeatedKeyError(ValueError):
    """A JSON object names a key twice, so readers disagree on what it says."""


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict, for `json.loads` (``object_pairs_hook``); a repeated key is a `ValueError`."""
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: dict[str, None] = {}
        for key, _ in pairs:
            if key in seen:
                raise _RepeatedKeyError(f"key {shorten(key)} appears twice")
            seen[key] = None
    return table


def shorten(name: str) -> str:
    """Quote a name from an untrusted file for a message: escaped, and never longer than a line."""
    return ascii(name if len(name) <= 120 else f"{name[:100]}…")


def _not_a_number(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


def _decode(raw: bytes, path: str) -> dict[str, Any]:
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=unique_keys, parse_constant=_not_a_number)
        if type(table) is not dict:
            raise ValueError("not a JSON object")
        "".join(table).encode()  # an escaped lone surrogate decodes, but can never be written
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise CheckpointError(f"has an unreadable header: {reason}", path=path, hint=_DAMAGED) from None
    return table


def _check_metadata(metadata: object, path: str) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(
            f"has a {METADATA_KEY} that is not a map of strings to strings", path=path, hint=_DAMAGED
        )


def _malformed(name: str, problem: str, path: str) -> CheckpointError:
    return CheckpointError(f"tensor {shorten(name)} {problem}", path=path, hint=_DAMAGED)


def _spec(name: str, dtype: str, dims: tuple[int, ...], path: str) -> tuple[TensorSpec, int]:
    known = _DTYPES.get(dtype)
    if known is None:
        raise CheckpointError(
            f"tensor {shorten(name)} has the unknown dtype {shorten(dtype)}",
            path=path,
            hint=f"known are {', '.join(_DTYPES)}; convert the tensor, or update mergegraph",
        )
    # Zero dims are left out: no shape may be so large that part of it overflows an index.
    if len(dims) > _MAX_DIMS or math.prod(d for d in dims if d) * known.bits > 8 * _MAX_BYTES:
        raise _malformed(name, "has an impossibly large shape", path)
    spec = _shared_spec(dims, known)
    if spec.numel * known.bits % 8:
        raise _malformed(name, f"is {spec}, which does not fill whole bytes", path)
    return spec, spec.nbytes


@lru_cache(maxsize=4096)
def _shared_spec(dims: tuple[int, ...], dtype: DType) -> TensorSpec:
    """Equal specs of all headers as one object: what is asked of specs can be asked once, by identity."""
    return TensorSpec(dims, dtype)


def _check_tiling(spans: list[tuple[int, int, str]], available: int, path: str) -> None:
    """Refuse holes, overlaps and leftovers: every data byte belongs to exactly one tensor."""
    spans.sort()
    expected = 0
    for begin, end, name in spans:
        if begin != expected:
            kind = "overlaps the tensor before it" if begin < expected else "leaves a hole before it"
            raise _malformed(name, f"{kind} (begins at {begin}, expected {expected})", path)
        expected = end
    if expected > available:
        raise CheckpointError(
            f"is truncated: {expected - available:,} of {expected:,} data bytes are missing",
            path=path,
            hint=_TRUNCATED,
        )
    if expected < available:
        raise CheckpointError(
            f"has {available - expected:,} bytes that belong to no tensor", path=path, hint=_DAMAGED
        )
