"""Checkpoints that lie elsewhere: index them by reads of small ranges, bring their files here.

One set of rules judges local and remote checkpoints: the listed names become empty files in a scratch
directory, the few small files that decide become real ones, and `local` chooses as it does anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from threading import Event, Lock

from mergegraph.checkpoint.index import CheckpointIndex, FileEntry, header_length, parse_header, shorten
from mergegraph.checkpoint.layout import INDEX_FILE
from mergegraph.errors import CheckpointError, HubError
from mergegraph.storage import local
from mergegraph.storage.headers import Headers, Shard, gathered, header_digest, read_shard

CONFIG_FILE = "config.json"

_WORKERS = 8
_HEADER_GUESS = 32_768  # holds most headers, so that one request per shard does
_JSON_LIMIT = 100_000_000


@dataclass(frozen=True, slots=True)
class Listed:
    """What is known of a file without reading it: its size, and a tag that changes with its contents."""

    size: int
    tag: str


@dataclass(frozen=True, slots=True)
class RemoteFiles:
    """The files of one snapshot.

    Attributes:
        label: what to call it in messages.
        files: all of them, by name relative to the snapshot's root.
        read: returns bytes ``begin`` to ``end`` of a file; raises `HubError`.
        cached: returns where a file lies on this machine, or None.
    """

    label: str
    files: Mapping[str, Listed]
    read: Callable[[str, int, int], bytes]
    cached: Callable[[str], Path | None]


def index_remote(remote: RemoteFiles, name: str) -> tuple[CheckpointIndex, dict[str, int]]:
    """Index `remote` from its headers alone.

    Returns:
        The index, with an empty root and the files' tags as stamps; and the sizes of all the files that a
        merge needs, by name, small ones first.

    Raises:
        CheckpointError: there is no complete, well-formed safetensors checkpoint in it.
    """
    with TemporaryDirectory(prefix="mergegraph-") as directory:
        scratch, known = Path(directory), Headers()
        _sketch(remote, scratch)
        with _relabelled(remote, scratch):
            _, chosen, weight_map = local._choose(scratch)
            config = local._read_config(scratch / CONFIG_FILE)
            sidecars = local._sidecars(scratch)
        with ThreadPoolExecutor(_WORKERS) as pool:
            shards = list(pool.map(lambda file: _shard(remote, file, known), chosen))
        with _relabelled(remote, scratch):
            tensors = gathered(scratch, shards, weight_map, known)
    small = [CONFIG_FILE] if CONFIG_FILE in remote.files else []
    small += [weight_map.path.name] if weight_map else []
    index = CheckpointIndex(
        name=name,
        root="",
        tensors=tensors,
        files={shard.entry.name: shard.entry for shard in shards},
        config=config,
        sidecars=sidecars,
    )
    return index, {file: remote.files[file].size for file in (*small, *sidecars, *chosen)}


def root_of(path: Path, file: str) -> Path:
    """Return the directory below which the file called `file` lies at `path`."""
    return path.parents[len(PurePosixPath(file).parts) - 1]


def verified(root: Path, planned: FileEntry) -> FileEntry:
    """Return the entry of a file that is now on this machine.

    Raises:
        HubError: it is not the file that was planned with.
    """
    entry = read_shard(root, planned.name, Headers()).entry
    if (entry.size, entry.header_digest) != (planned.size, planned.header_digest):
        raise HubError(
            "is not the file that was planned with",
            path=str(root / planned.name),
            hint="remove it and the file it links to from the cache, then run again",
        )
    return entry


class _StoppedError(Exception):
    """Another file failed, or the user wants no more."""


class Progress:
    """Bytes of one file that have arrived, each reported once however often it is sent."""

    def __init__(self, size: int, report: Callable[[int], None]) -> None:
        self._size = size
        self._report = report
        self._arrived = 0
        self._reported = 0

    def advance(self, n: float) -> None:
        """Take note of `n` more bytes; less than none if they are to be sent again.

        It raises when the transfer that calls it is no longer wanted.
        """
        self._arrived += int(n)
        new = max(0, min(self._arrived, self._size) - self._reported)
        self._reported += new
        self._report(new)

    def finish(self) -> None:
        """Take note that the file is there, however it came."""
        self.advance(self._size - self._arrived)


def bring_all(
    files: Mapping[str, int],
    bring: Callable[[str, Progress], Path],
    on_bytes: Callable[[int], None] | None = None,
) -> dict[str, Path]:
    """Call `bring` for all files, several at a time, until one fails; return where each lies now.

    Args:
        files: sizes by name.
        bring: fetches one file, and tells the progress what arrives.
        on_bytes: called with the number of bytes that are newly there, by one thread at a time.
    """
    lock, stop = Lock(), Event()

    def report(n: int) -> None:
        if stop.is_set():
            raise _StoppedError  # out of the transfer itself: it may have gigabytes to go
        if on_bytes is not None and n:
            with lock:
                on_bytes(n)

    def one(file: str) -> Path:
        progress = Progress(files[file], report)
        path = bring(file, progress)
        progress.finish()
        return path

    with ThreadPoolExecutor(_WORKERS) as pool:
        futures = {file: pool.submit(one, file) for file in files}
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        finally:
            stop.set()
            for future in futures.values():
                future.cancel()
    for future in futures.values():
        error = None if future.cancelled() else future.exception()
        if error is not None and not isinstance(error, _StoppedError):
            raise error
    return {file: future.result() for file, future in futures.items()}


def _sketch(remote: RemoteFiles, scratch: Path) -> None:
    """Lay out what a loader would find, with only the files that decide filled in."""
    for file in remote.files:
        parts = file.split("/")
        if any(part in ("", ".", "..") for part in parts) or "\\" in file:
            raise CheckpointError(
                f"lists the file {shorten(file)}", path=remote.label, hint="do not trust this repository"
            )
        if len(parts) > 1 and not file.endswith(".safetensors"):
            continue  # an index may point below the top, nothing else does
        is_index = file.endswith(".safetensors.index.json") and INDEX_FILE not in remote.files
        decides = is_index or file in (CONFIG_FILE, INDEX_FILE)
        data = _read_small(remote, file) if decides else b""
        try:
            (scratch / file).parent.mkdir(parents=True, exist_ok=True)
            (scratch / file).write_bytes(data)
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"lists {shorten(file)}, which cannot be stored here: {error}",
                path=remote.label,
                hint="check the temporary directory (TMPDIR); else the name itself is the trouble",
            ) from error


def _read_small(remote: RemoteFiles, file: str) -> bytes:
    size = remote.files[file].size
    if size > _JSON_LIMIT:
        raise CheckpointError(
            f"is larger than {_JSON_LIMIT:,} bytes",
            path=f"{remote.label}/{file}",
            hint="it cannot be what its name says",
        )
    cached = remote.cached(file)
    return cached.read_bytes() if cached else remote.read(file, 0, size)


def _shard(remote: RemoteFiles, file: str, known: Headers) -> Shard:
    """Read and parse one header: one small request, or two when the header is long."""
    listed = remote.files[file]
    cached = remote.cached(file)
    if cached:
        shard = read_shard(root_of(cached, file), file, known)
        return replace(shard, entry=replace(shard.entry, stamp=listed.tag))
    path = f"{remote.label}/{file}"
    start = remote.read(file, 0, min(_HEADER_GUESS, listed.size))
    end = 8 + header_length(start[:8], listed.size, path)
    if end > len(start):
        start += remote.read(file, len(start), end)
    raw = start[8:end]
    tensors = parse_header(raw, file, listed.size, path)
    return Shard(FileEntry(file, listed.size, header_digest(raw), listed.tag), tensors)


@contextmanager
def _relabelled(remote: RemoteFiles, scratch: Path) -> Iterator[None]:
    """Let errors speak of the repository instead of the scratch directory."""
    try:
        yield
    except CheckpointError as error:
        path = error.path.replace(str(scratch), remote.label, 1)
        raise CheckpointError(error.reason, path=path, hint=error.hint) from None
