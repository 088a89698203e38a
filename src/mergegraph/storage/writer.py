"""Write output shards in place: every byte has its final offset before the first is written.

Large writes go past the page cache, which is better spent on the inputs: those are read again, outputs
never are. It also takes less of the processors than copying into the cache page by page.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mergegraph.checkpoint.layout import OutputLayout, ShardLayout
from mergegraph.errors import OutputError
from mergegraph.storage.blocks import PAGE, BlockQueue
from mergegraph.storage.files import (
    MAX_OPEN,
    FilePool,
    byte_view,
    disk_full,
    free_bytes,
    sync_directory,
    write_error,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

_NOT_OFFERED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)
"""How file systems say that they do not know a way of allocating or writing."""
_DIRECT: int = getattr(os, "O_DIRECT", 0)
SMALL = 1 << 16
"""Writes of fewer bytes go through the page cache, where neighbours meet before they reach the disk."""


class OutputWriter:
    """The shards of a layout, in a staging directory, preallocated and with headers in place.

    Args:
        staging: an existing directory; the shards go directly into it.
        layout: what to write where.
        resume: keep the contents of shards that are already there, as far as they fit.
        max_open: descriptors to hold open.
        small: writes of fewer bytes go through the page cache.

    Raises:
        DiskFullError: there is no room for all shards. What this call created is removed again.
        OutputError: the shards cannot be created for another reason.
    """

    def __init__(
        self,
        staging: Path,
        layout: OutputLayout,
        *,
        resume: bool,
        max_open: int = MAX_OPEN,
        small: int = SMALL,
    ) -> None:
        self._staging = staging
        self._layout = layout
        self._pool: FilePool[tuple[int, int]] = FilePool(self._open, max_open)
        # Systems let one thread at a time write to a file's cache, and the others spin: here they sleep.
        self._turns = [Lock() for _ in layout.shards]
        self._create(resume)
        self._small = max(1, small)
        self._direct = [self._takes_direct(i) for i in range(len(layout.shards))]
        self._queue = BlockQueue(self._store)

    def write(self, tensor: str, offset: int, buffer: Buffer) -> None:
        """Have `buffer` (C-contiguous) written at byte `offset` of `tensor`; thread-safe.

        When this returns, the bytes are on their way, and the buffer may change. They are in the file
        when `settled` says so, and durable after `sync`.

        Raises:
            DiskFullError: the file system ran full regardless of the preallocation.
            OutputError: this write, or an earlier one in the background, failed for another reason.
        """
        shard, position, view = self._range(tensor, offset, buffer)
        if self._direct[shard] and len(view) >= self._small:
            self._queue.put(shard, position, view)
        else:
            self._write_cached(shard, view, position)

    def position(self, tensor: str, offset: int) -> int:
        """Where byte `offset` of `tensor` lies in its file."""
        return self._layout.locate(tensor)[1] + offset

    def mark(self) -> int:
        """A point in time, to ask `settled` about."""
        return self._queue.mark()

    def settled(self, mark: int) -> bool:
        """Whether the files hold all that was written before `mark`: it outlives this process."""
        return self._queue.settled(mark)

    def wait(self) -> None:
        """Return once the files hold all that was written, or a write failed."""
        self._queue.wait()

    def flush(self) -> None:
        """Return once the files hold all that was written.

        Raises:
            DiskFullError: the file system ran full regardless of the preallocation.
            OutputError: a write failed for another reason.
        """
        self._queue.flush()

    def read_back(self, tensor: str, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` with what was written at byte `offset` of `tensor`, by this run or an earlier one.

        Raises:
            OutputError: it cannot be read, the file is too short, or an earlier write failed.
        """
        self._queue.flush()
        shard, position, view = self._range(tensor, offset, buffer)
        if not view:
            return
        with self._pool.use((shard, 0)) as descriptor:
            while view:
                try:
                    done = os.preadv(descriptor, (view,), position)
                except OSError as error:
                    raise self._unreadable(shard, error.strerror or str(error)) from error
                if done == 0:
                    raise self._unreadable(shard, "the file is too short")
                view = view[done:]
                position += done

    def sync(self) -> None:
        """Return once every shard, and its name, is durable.

        Raises:
            DiskFullError: delayed allocation found no room after all.
            OutputError: the device failed.
        """
        self._queue.flush()
        for shard in range(len(self._layout.shards)):
            with self._pool.use((shard, 0)) as descriptor:
                try:
                    os.fsync(descriptor)
                except OSError as error:
                    raise write_error(error, self._path(shard)) from error
        sync_directory(self._staging)

    def close(self) -> None:
        """Write what is on its way and close every file, durable or not.

        A write that fails now is not told of: whoever wants to know calls `flush` or `sync`.
        """
        self._queue.close()
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _path(self, shard: int) -> Path:
        return self._staging / self._layout.shards[shard].file

    def _open(self, key: tuple[int, int]) -> int:
        shard, flags = key
        path = self._path(shard)
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags)
        except OSError as error:
            raise write_error(error, path) from error

    def _takes_direct(self, shard: int) -> bool:
        """Whether writes past the page cache are possible, for all that opening the file can tell."""
        if not _DIRECT or self._layout.shards[shard].size < self._small:
            return False
        try:
            os.close(os.open(self._path(shard), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | _DIRECT))
        except OSError as error:
            if error.errno in _NOT_OFFERED:
                return False
            raise write_error(error, self._path(shard)) from error
        return True

    def _store(self, shard: int, view: memoryview, position: int) -> None:
        """Write a block: whole pages directly, and through the cache what shares a page with others.

        Thus no page is ever written both ways, whatever is written beside this block and when.
        """
        begin = min(len(view), -position % PAGE)
        end = begin + (len(view) - begin) // PAGE * PAGE
        self._write_cached(shard, view[:begin], position)
        done = self._write_direct(shard, view[begin:end], position + begin)
        self._write_cached(shard, view[begin + done :], position + begin + done)

    def _write_direct(self, shard: int, view: memoryview, position: int) -> int:
        """Write whole pages past the page cache; return how many bytes of them it took."""
        done = 0
        with self._pool.use((shard, _DIRECT)) as descriptor:
            # After part of a page there is nothing more that could be written this way.
            while done < len(view) and done % PAGE == 0 and self._direct[shard]:
                try:
                    done += os.pwrite(descriptor, view[done:], position + done)
                except OSError as error:
                    if error.errno not in _NOT_OFFERED:
                        raise write_error(error, self._path(shard), len(view) - done) from error
                    # Some systems refuse only now, or want more than pages aligned: the cache takes it all.
                    self._direct[shard] = False
        return done // PAGE * PAGE

    def _write_cached(self, shard: int, view: memoryview, position: int) -> None:
        if not view:
            return
        with self._pool.use((shard, 0)) as descriptor, self._turns[shard]:
            try:
                _write_all(descriptor, view, position)
            except OSError as error:
                raise write_error(error, self._path(shard), len(view)) from error

    def _range(self, tensor: str, offset: int, buffer: Buffer) -> tuple[int, int, memoryview]:
        shard, begin = self._layout.locate(tensor)
        view = byte_view(buffer)
        size = self._layout.specs[tensor].nbytes
        if offset < 0 or offset + len(view) > size:
            raise ValueError(f"{tensor}: bytes {offset}+{len(view)} are not within {size}")
        return shard, begin + offset, view

    def _unreadable(self, shard: int, reason: str) -> OutputError:
        return OutputError(
            f"{self._path(shard)}: cannot be read back: {reason}",
            hint="remove the staging directory, or use --force, to start again",
        )

    def _create(self, resume: bool) -> None:
        """Create all shards before any is written, so that a full disk is found out first."""
        paths = [self._path(i) for i in range(len(self._layout.shards))]
        created: list[Path] = []
        try:
            if not resume:
                for path in paths:
                    path.unlink(missing_ok=True)
            missing = sum(map(_missing, paths, self._layout.shards))
            if missing > free_bytes(self._staging):
                raise disk_full(self._staging, missing)
            for path, shard in zip(paths, self._layout.shards, strict=True):
                if not path.exists():
                    created.append(path)
                _prepare(path, shard)
        except BaseException as error:
            self._pool.close()
            for path in created:
                path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise write_error(error, self._staging, self._layout.file_bytes) from error
            raise


def _missing(path: Path, shard: ShardLayout) -> int:
    """Return the bytes that a shard does not occupy yet."""
    occupied = path.stat().st_blocks * 512 if path.exists() else 0
    return max(0, shard.size - occupied)


def _prepare(path: Path, shard: ShardLayout) -> None:
    """Give one shard its full size and its header; contents that are already there stay."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        os.ftruncate(descriptor, shard.size)
        _allocate(descriptor, shard.size)
        _write_all(descriptor, memoryview(shard.header), 0)
    except OSError as error:
        raise write_error(error, path, shard.size) from error
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, view: memoryview, position: int) -> None:
    while view:
        done = os.pwrite(descriptor, view, position)
        view = view[done:]
        position += done


def _allocate(descriptor: int, size: int) -> None:
    if not hasattr(os, "posix_fallocate"):  # macOS: the file is sparse, and a full disk shows later
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        # Some network file systems cannot reserve; writes report a full disk as they meet it.
        if error.errno not in _NOT_OFFERED:
            raise
