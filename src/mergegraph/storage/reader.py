"""Read ranges of tensors straight into the caller's buffers, from any number of threads."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from mergegraph.checkpoint.index import CheckpointIndex, FileEntry, TensorEntry
from mergegraph.errors import CheckpointError
from mergegraph.storage.files import MAX_OPEN, FilePool, byte_view
from mergegraph.storage.headers import file_stamp

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CHANGED_HINT = "leave the inputs alone while a merge runs, then plan and run again"


class Reader:
    """Tensor bytes of several checkpoints, by source key and tensor name.

    A file is opened when it is first needed and must then still be the one that was planned with.

    Args:
        indexes: the checkpoints, by the source keys that `read_into` is called with.
    """

    def __init__(self, indexes: Mapping[str, CheckpointIndex], *, max_open: int = MAX_OPEN) -> None:
        self._indexes = dict(indexes)
        self._pool: FilePool[tuple[str, str]] = FilePool(self._open, max_open)

    def read_into(self, source: str, tensor: str, offset: int, buffer: Buffer) -> None:
        """Fill `buffer` (writable, C-contiguous) with the tensor's bytes from `offset` on.

        Raises:
            CheckpointError: the file is shorter than planned, has changed or cannot be read.
        """
        entry = self._indexes[source].tensors[tensor]
        view = byte_view(buffer)
        position = entry.begin + offset
        if offset < 0 or position + len(view) > entry.end:
            raise ValueError(f"{tensor}: bytes {offset}+{len(view)} are not within {entry.end - entry.begin}")
        if not view:
            return
        with self._pool.use((source, entry.file)) as descriptor:
            while view:
                # One call fills all of it, unless a signal or a 2 GiB limit of the system intervenes.
                try:
                    done = os.preadv(descriptor, (view,), position)
                except OSError as error:
                    raise self._failure(source, entry, f"cannot be read: {error.strerror}") from error
                if done == 0:
                    raise self._failure(source, entry, f"ended at byte {position:,}, within {tensor}")
                view = view[done:]
                position += done

    def advise(self, source: str, tensor: str, offset: int = 0, length: int | None = None) -> None:
        """Ask the system to start reading a range of a tensor (by default all of it) ahead."""
        entry = self._indexes[source].tensors[tensor]
        size = entry.end - entry.begin - offset if length is None else length
        # Only ever a hint: not every system has it, and 0 would mean "to the end of the file".
        if size > 0 and hasattr(os, "posix_fadvise"):
            with self._pool.use((source, entry.file)) as descriptor:
                os.posix_fadvise(descriptor, entry.begin + offset, size, os.POSIX_FADV_WILLNEED)

    def check_unchanged(self) -> None:
        """Look at every planned file again; call it when all is read, before trusting the result.

        Raises:
            CheckpointError: a file was changed, replaced or removed in the meantime.
        """
        for index in self._indexes.values():
            for entry in index.files.values():
                path = Path(index.root, entry.name)
                try:
                    info = path.stat()
                except OSError as error:
                    raise _gone(path, error) from error
                _check_same(path, entry, info)

    def close(self) -> None:
        """Close every file."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, key: tuple[str, str]) -> int:
        source, file = key
        index = self._indexes[source]
        path = Path(index.root, file)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _gone(path, error) from error
        try:
            _check_same(path, index.files[file], os.fstat(descriptor))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _failure(self, source: str, entry: TensorEntry, problem: str) -> CheckpointError:
        path = Path(self._indexes[source].root, entry.file)
        return CheckpointError(problem, path=str(path), hint=_CHANGED_HINT)


def _gone(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"can no longer be opened: {error.strerror}", path=str(path), hint=_CHANGED_HINT)


def _check_same(path: Path, planned: FileEntry, info: os.stat_result) -> None:
    # The stamp of a file from the hub is an etag, which a local file does not have.
    stamp = file_stamp(info) if planned.stamp.startswith("mtime:") else planned.stamp
    if (info.st_size, stamp) != (planned.size, planned.stamp):
        raise CheckpointError("has changed since planning", path=str(path), hint=_CHANGED_HINT)
