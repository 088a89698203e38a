"""What reading and writing share: a bounded pool of descriptors, byte views, disk errors."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from mergegraph.errors import DiskFullError, ExecutionError, OutputError
from mergegraph.tensorspec import format_bytes

if TYPE_CHECKING:
    from typing_extensions import Buffer

MAX_OPEN = 64
"""Descriptors one pool holds open: far below the usual limit of 1024 for a whole process."""

Key = TypeVar("Key", bound=Hashable)


class FilePool(Generic[Key]):
    """Open descriptors by key, at most `limit` at rest; the least recently used are closed first.

    A descriptor in use by any thread is never closed, so with more than `limit` threads in
    different files the pool grows for that moment.
    """

    def __init__(self, opener: Callable[[Key], int], limit: int = MAX_OPEN) -> None:
        self._opener = opener
        self._limit = limit
        self._open: OrderedDict[Key, list[int]] = OrderedDict()  # [descriptor, users]
        self._lock = Lock()
        self._closed = False

    def use(self, key: Key) -> _Use[Key]:
        """Hold the descriptor for `key` open for the duration of a ``with`` block, which gets it."""
        return _Use(self, key)

    def _acquire(self, key: Key) -> list[int]:
        with self._lock:
            if self._closed:
                raise ValueError("used after close()")
            handle = self._open.get(key)
            if handle is None:
                self._shrink(self._limit - 1)
                handle = self._open[key] = [self._opener(key), 0]
            else:
                self._open.move_to_end(key)
            handle[1] += 1
            return handle

    def _release(self, handle: list[int]) -> None:
        with self._lock:
            handle[1] -= 1
            self._shrink(0 if self._closed else self._limit)

    def _shrink(self, room: int) -> None:
        """Close idle descriptors, oldest first, until `room` are left. The lock is held."""
        excess = len(self._open) - room
        if excess <= 0:
            return
        for key in [key for key, handle in self._open.items() if handle[1] == 0][:excess]:
            os.close(self._open.pop(key)[0])

    def __len__(self) -> int:
        return len(self._open)

    def close(self) -> None:
        """Close every descriptor; one that is in use is closed when its user is done."""
        with self._lock:
            self._closed = True
            self._shrink(0)


class _Use(Generic[Key]):
    """A descriptor in use: a class of its own, as a generator would cost as much as a small read."""

    __slots__ = ("_handle", "_key", "_pool")

    def __init__(self, pool: FilePool[Key], key: Key) -> None:
        self._pool, self._key = pool, key

    def __enter__(self) -> int:
        self._handle = self._pool._acquire(self._key)
        return self._handle[0]

    def __exit__(self, *_: object) -> None:
        self._pool._release(self._handle)


def byte_view(buffer: Buffer) -> memoryview:
    """Return the bytes of a C-contiguous buffer, without copying."""
    view = memoryview(buffer)
    # cast() refuses shapes with zeros in them, and such a buffer has no bytes to see anyway.
    return view.cast("B") if view.nbytes else memoryview(b"")


def cache_root() -> Path:
    """The user's cache: ``$MERGEGRAPH_CACHE``, ``$XDG_CACHE_HOME/mergegraph`` or ``~/.cache/mergegraph``."""
    chosen = os.environ.get("MERGEGRAPH_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "mergegraph")


def existing_parent(path: Path) -> Path:
    """Return `path` itself if it exists, else the nearest directory above it that does."""
    path = Path(os.path.realpath(path))
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Return the bytes that this user may still write to the file system that holds `path`."""
    stats = os.statvfs(existing_parent(path))
    return stats.f_bavail * stats.f_frsize


def write_error(error: OSError, path: Path, needed: int | None = None) -> ExecutionError:
    """Return the typed error for an `OSError` met while writing `needed` bytes below `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(path, needed)
    if error.errno == errno.EFBIG:
        return DiskFullError(
            f"{path}: the file system or a resource limit does not allow a file this large",
            hint="use a smaller --shard-size, or raise the limit (ulimit -f)",
        )
    return OutputError(
        f"{path}: cannot be written: {error.strerror or error}",
        hint="check the permissions and the health of the output file system, then run again",
    )


def disk_full(path: Path, needed: int | None) -> DiskFullError:
    """Return the error for a file system that has no room for `needed` more bytes."""
    wanted = "" if needed is None else f"{format_bytes(needed)} needed, "
    return DiskFullError(
        f"{path}: no room left: {wanted}{format_bytes(free_bytes(path))} free",
        hint="free some space or a quota, or choose another output directory, then run again",
    )


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable: a rename is not, until its directory is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(directory: Path, name: str, data: bytes) -> None:
    """Write a small file durably, replacing one of that name.

    Raises:
        DiskFullError: there is no room for it.
        OutputError: it cannot be written for another reason.
    """
    path = directory / name
    try:
        with open(path, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(error, path, len(data)) from error
