"""What an unfinished run has finished: an append-only record beside the shards it speaks of."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.errors import ResumeError
from mergegraph.storage.files import sync_directory, write_error

JOURNAL_FILE = "journal.jsonl"


def input_stamps(index: CheckpointIndex) -> dict[str, str]:
    """Return what tells whether a checkpoint's files changed, for a journal's header."""
    return {
        name: f"{file.size} {file.header_digest} {file.stamp}" for name, file in sorted(index.files.items())
    }


class Journal:
    """Finished tensors and their checksums, one JSON line each, below a header line.

    It is locked for as long as it is open, so two runs never write to one staging directory. Lines
    are not synced one by one: after a power cut a line may speak of bytes that never reached the
    disk, so a resuming run checks checksums before it believes them.

    Attributes:
        done: checksum by tensor name, as found when the journal was opened.
        resumed: whether it continues an earlier run.
    """

    def __init__(self, path: Path, descriptor: int, done: Mapping[str, str], resumed: bool) -> None:
        self._path = path
        self._descriptor: int | None = descriptor
        self._lock = Lock()
        self.done = dict(done)
        self.resumed = resumed

    @classmethod
    def open(cls, staging: Path, header: Mapping[str, Any], *, force: bool = False) -> Journal:
        """Open or start the journal of `staging`, which is created if need be.

        Args:
            staging: the staging directory.
            header: what decides every output byte, as JSON values; an unfinished run with the
                same header is continued.
            force: throw an unfinished run of something else away instead of refusing.

        Raises:
            ResumeError: another run is writing there, or an unfinished run has another header.
            ExecutionError: the journal cannot be written.
        """
        path = staging / JOURNAL_FILE
        try:
            staging.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise write_error(error, path) from error
        try:
            _lock(descriptor, path)
            done = _load(descriptor, path, header, force)
            if done is None:
                _start(descriptor, path, header)
            return cls(path, descriptor, done or {}, done is not None)
        except OSError as error:
            os.close(descriptor)
            raise write_error(error, path) from error
        except BaseException:
            os.close(descriptor)
            raise

    def record(self, checksums: Mapping[str, str]) -> None:
        """Note the checksums of tensors that are completely written; thread-safe.

        Raises:
            ExecutionError: the journal cannot be written.
        """
        with self._lock:
            if self._descriptor is None:
                raise ValueError("used after close()")
            try:
                _append(self._descriptor, *({"tensor": k, "checksum": v} for k, v in checksums.items()))
            except OSError as error:
                raise write_error(error, self._path) from error

    def close(self) -> None:
        """Let go of the journal and of its lock."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unfinished(staging: Path) -> dict[str, Any]:
    """The header of the unfinished run in `staging`; empty if none can be read there."""
    try:
        with open(staging / JOURNAL_FILE, "rb") as file:
            found = _line(file.readline())
    except OSError:
        return {}
    return found if isinstance(found, dict) else {}


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The run that held it may have published or removed it between our open and our lock.
        current = os.stat(path)
        same = os.path.samestat(current, os.fstat(descriptor))
    except (BlockingIOError, FileNotFoundError):
        same = False
    if not same:
        raise ResumeError(
            f"{path.parent}: another run is writing there",
            hint="wait until it has finished, or choose another output directory",
        )


def _load(descriptor: int, path: Path, header: Mapping[str, Any], force: bool) -> dict[str, str] | None:
    """Return what the journal says is done, or None if there is nothing to continue.

    Everything from the first unreadable line on is cut off: it was torn by a crash, and whatever it
    told of is done again.
    """
    with open(descriptor, "rb", closefd=False) as file:
        file.seek(0)
        found = _line(file.readline())
        if not isinstance(found, dict):
            return None
        good = file.tell()
        wanted = json.loads(json.dumps(header))
        if found != wanted:
            # Without a finished tensor there is nothing to lose.
            if force or not _is_entry(_line(file.readline())):
                return None
            raise _mismatch(path, found, wanted)
        done: dict[str, str] = {}
        for raw in file:
            entry = _line(raw)
            if not _is_entry(entry):
                break
            done[entry["tensor"]] = str(entry.get("checksum"))
            good += len(raw)
    os.ftruncate(descriptor, good)
    return done


def _line(raw: bytes) -> Any:
    """Parse one complete line; a torn one gives None."""
    try:
        return json.loads(raw) if raw.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None


def _is_entry(line: Any) -> bool:
    return isinstance(line, dict) and isinstance(line.get("tensor"), str)


def _mismatch(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> ResumeError:
    different = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
    return ResumeError(
        f"{path.parent}: holds an unfinished run of something else ({', '.join(different)} differs)",
        hint="use --force to discard it, remove that directory, or choose another output directory",
    )


def _start(descriptor: int, path: Path, header: Mapping[str, Any]) -> None:
    """Begin anew: whatever an earlier run left in the staging directory is not ours to publish."""
    for entry in path.parent.iterdir():
        if entry.name != path.name and not entry.is_dir():
            entry.unlink()
    os.ftruncate(descriptor, 0)
    _append(descriptor, header)
    os.fsync(descriptor)
    sync_directory(path.parent)


def _append(descriptor: int, *lines: Mapping[str, Any]) -> None:
    view = memoryview(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    while view:
        view = view[os.write(descriptor, view) :]
