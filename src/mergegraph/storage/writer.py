"""Write output shards in place: every byte has its final offset before the first is written."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mergegraph.checkpoint.layout import OutputLayout, ShardLayout
from mergegraph.errors import OutputError
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

_NO_PREALLOCATION = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


class OutputWriter:
    """The shards of a layout, in a staging directory, preallocated and with headers in place.

    Args:
        staging: an existing directory; the shards go directly into it.
        layout: what to write where.
        resume: keep the contents of shards that are already there, as far as they fit.

    Raises:
        DiskFullError: there is no room for all shards. What this call created is removed again.
        OutputError: the shards cannot be created for another reason.
    """

    def __init__(
        self, staging: Path, layout: OutputLayout, *, resume: bool, max_open: int = MAX_OPEN
    ) -> None:
        self._staging = staging
        self._layout = layout
        self._pool: FilePool[int] = FilePool(self._open, max_open)
        # Systems let one thread at a time write to a file, and the others spin: here they sleep.
        self._turns = [Lock() for _ in layout.shards]
        self._create(resume)

    def write(self, tensor: str, offset: int, buffer: Buffer) -> None:
        """Write `buffer` (C-contiguous) at byte `offset` of `tensor`; thread-safe.

        Raises:
            DiskFullError: the file system ran full regardless of the preallocation.
            OutputError: the write failed for another reason.
        """
        shard, position, view = self._range(tensor, offset, buffer)
        if not view:
            return
        with self._pool.use(shard) as descriptor, self._turns[shard]:
            try:
                while view:
                    done = os.pwrite(descriptor, view, position)
                    view = view[done:]
                    position += done
            except OSError as error:
                raise write_error(error, self._path(shard), len(view)) from error

    def read_back(self, tensor: str, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` with what is on disk at byte `offset` of `tensor`.

        Raises:
            OutputError: it cannot be read, or the file is too short.
        """
        shard, position, view = self._range(tensor, offset, buffer)
        if not view:
            return
        with self._pool.use(shard) as descriptor:
            while view:
                try:
                    done = os.preadv(descriptor, (view,), position)
                except OSError as error:
                    raise self._unreadable(shard, error.strerror or str(error)) from error
                if done == 0:
                    raise self._unreadable(shard, "the file is too short")
                view = view[done:]
                position += done

    def flush_hint(self, tensor: str) -> None:
        """Start writing a finished tensor to disk now, and let go of its pages.

        Output is never read again, so the page cache is better spent on the inputs.
        """
        shard, position = self._layout.locate(tensor)
        size = self._layout.specs[tensor].nbytes
        if size and hasattr(os, "posix_fadvise"):
            with self._pool.use(shard) as descriptor:
                os.posix_fadvise(descriptor, position, size, os.POSIX_FADV_DONTNEED)

    def sync(self) -> None:
        """Return once every shard, and its name, is durable.

        Raises:
            DiskFullError: delayed allocation found no room after all.
            OutputError: the device failed.
        """
        for shard in range(len(self._layout.shards)):
            with self._pool.use(shard) as descriptor:
                try:
                    os.fsync(descriptor)
                except OSError as error:
                    raise write_error(error, self._path(shard)) from error
        sync_directory(self._staging)

    def close(self) -> None:
        """Close every file, durable or not."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _path(self, shard: int) -> Path:
        return self._staging / self._layout.shards[shard].file

    def _open(self, shard: int) -> int:
        path = self._path(shard)
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise write_error(error, path) from error

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
        view = memoryview(shard.header)
        position = 0
        while view:
            done = os.pwrite(descriptor, view, position)
            view = view[done:]
            position += done
    except OSError as error:
        raise write_error(error, path, shard.size) from error
    finally:
        os.close(descriptor)


def _allocate(descriptor: int, size: int) -> None:
    if not hasattr(os, "posix_fallocate"):  # macOS: the file is sparse, and a full disk shows later
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        # Some network file systems cannot reserve; writes report a full disk as they meet it.
        if error.errno not in _NO_PREALLOCATION:
            raise
