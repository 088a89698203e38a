"""Checkpoints on a model hub: headers by range requests, whole files only when a merge really runs.

The only module that imports `huggingface_hub`; what it raises leaves here as a `HubError`.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import huggingface_hub.utils
from huggingface_hub import HfApi, constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from mergegraph.checkpoint.index import CheckpointIndex, shorten
from mergegraph.checkpoint.layout import INDEX_FILE
from mergegraph.errors import CheckpointError, DiskFullError, HubError, MergeGraphError
from mergegraph.storage.files import free_bytes
from mergegraph.storage.local import open_checkpoint
from mergegraph.storage.remote import (
    CONFIG_FILE,
    Listed,
    Progress,
    RemoteFiles,
    bring_all,
    index_remote,
    root_of,
    verified,
)
from mergegraph.tensorspec import format_bytes

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FILE_SUFFIXES = (".safetensors", ".json", ".bin", ".gguf", ".pt", ".pth", ".ckpt", ".yml", ".yaml")
_BRANCH = re.compile(r"\w[\w-]*(?:[./][\w-]+)*", re.ASCII)
_CHUNK = 32_768
_RETRIED = (429, 500, 502, 503, 504)

# Its names are re-exports that no type checker follows.
_utils: Any = huggingface_hub.utils

# The HTTP library below the hub's has changed twice; its base error is always a base of the hub's own.
_FAILURES: tuple[type[Exception], ...] = (
    *(base for base in HfHubHTTPError.__bases__ if issubclass(base, Exception)),
    *(EntryNotFoundError, OSError, ValueError, KeyError, TypeError, RuntimeError),
)


@dataclass(frozen=True)
class HubIndex(CheckpointIndex):
    """A checkpoint of which some files are still only on the hub; its `root` is empty.

    Attributes:
        repo: the repository's id.
        asked: the branch, tag or commit that was asked for; None is the default branch.
        downloads: sizes of all the files that a merge needs, by name.
    """

    repo: str = ""
    asked: str | None = None
    downloads: Mapping[str, int] = field(default_factory=dict)


def looks_like_repo(text: str) -> bool:
    """Whether `text` could be a repository id, ``owner/name``, rather than a path or a file.

    Old ids of one word are not taken for one: the word is far more often a mistyped directory, and
    every such repository has an owner by now.
    """
    valid = _REPO.fullmatch(text) is not None and not text.lower().endswith(_FILE_SUFFIXES)
    return valid and "--" not in text and ".." not in text


def open_hub_checkpoint(repo: str, revision: str | None, *, name: str) -> CheckpointIndex:
    """Index the checkpoint in `repo` from its headers; no weights are transferred and nothing is stored.

    If all its files are in the cache already, the index is that of the cached snapshot. With
    ``HF_HUB_OFFLINE=1`` the cache is all there is.

    Args:
        repo: the repository's id.
        revision: a branch, tag or commit; None is the default branch.
        name: the reference as the user wrote it.

    Raises:
        HubError: the repository cannot be reached, or not with these rights.
        CheckpointError: there is no complete, well-formed safetensors checkpoint in it.
    """
    if constants.HF_HUB_OFFLINE:
        return _open_offline(repo, revision, name)
    with _translated(repo, revision):
        info = _ask(repo, revision, files_metadata=True)
        if info.sha is None:
            raise ValueError("the answer names no commit")
        listed = {sibling.rfilename: _listed(sibling) for sibling in info.siblings or ()}
    remote = RemoteFiles(
        label=f"{repo}@{info.sha[:12]}",
        files=listed,
        read=partial(_read, repo, revision, info.sha),
        cached=partial(_cached, repo, info.sha),
    )
    plain, downloads = index_remote(remote, name)
    known = {f.name: getattr(plain, f.name) for f in fields(plain)} | {"revision": info.sha}
    index = HubIndex(**known, repo=repo, asked=revision, downloads=downloads)
    return index if any(remote.cached(file) is None for file in downloads) else fetch(index)


def fetch(index: CheckpointIndex, on_bytes: Callable[[int], None] | None = None) -> CheckpointIndex:
    """Bring the files of a planned checkpoint into the hub's cache, and nothing else.

    Files that are there already are used as they are; those that were complete when a download was
    interrupted are not transferred again.

    Args:
        index: what `open_hub_checkpoint` returned; one that is local is returned unchanged.
        on_bytes: called with the number of bytes that are newly there, by several threads but never by
            two at once. Without it the hub draws its own progress bars, on a terminal.

    Returns:
        The index of the same checkpoint, rooted at the snapshot's directory in the cache.

    Raises:
        HubError: a file cannot be fetched, or is not the one that was planned with.
        DiskFullError: the cache has no room for it.
    """
    if index.root:
        return index
    if not isinstance(index, HubIndex) or index.revision is None:
        raise TypeError(f"{index.name} was not opened on the hub")
    repo, commit = index.repo, index.revision
    missing = [file for file in index.downloads if _cached(repo, commit, file) is None]
    with _translated(repo, index.asked):
        if missing:
            _check_room(sum(index.downloads[file] for file in missing))
            # Downloads are retried with patience. Ask once, first, whether there is anyone to ask.
            _ask(repo, commit)
        paths = bring_all(index.downloads, partial(_bring, repo, commit, on_bytes), on_bytes)
    root = next(root_of(path, file) for file, path in paths.items())
    entries = {file: verified(root, planned) for file, planned in index.files.items()}
    _remember(root, index.asked)
    return replace(index, root=str(root), files=entries)


def read_sidecar(index: CheckpointIndex, file: str) -> bytes:
    """Return a small file of a checkpoint that `open_hub_checkpoint` returned; it is not stored."""
    assert isinstance(index, HubIndex)  # a local checkpoint's files are read as files
    path, end = _cached(index.repo, index.revision, file), index.downloads[file]
    return path.read_bytes() if path else _read(index.repo, index.asked, index.revision or "", file, 0, end)


# ---- requests ------------------------------------------------------------------------------------


def _ask(repo: str, revision: str | None, **options: Any) -> Any:
    options |= {"revision": revision, "timeout": constants.HF_HUB_ETAG_TIMEOUT}
    return HfApi(library_name="mergegraph").model_info(repo, **options)


def _listed(sibling: Any) -> Listed:
    lfs = sibling.lfs
    size, tag = (lfs.size, lfs.sha256) if lfs else (sibling.size, sibling.blob_id)
    if type(size) is not int or size < 0 or type(tag) is not str:
        raise ValueError(f"the answer gives no size or digest of {shorten(sibling.rfilename)}")
    return Listed(size, tag)


def _read(repo: str, asked: str | None, commit: str, file: str, begin: int, end: int) -> bytes:
    """Read a range of a file, and never more than that, whatever the server sends."""
    if begin == end:
        return b""
    url = hf_hub_url(repo, file, revision=commit)
    headers = {
        **_utils.build_hf_headers(library_name="mergegraph"),
        "Range": f"bytes={begin}-{end - 1}",
        "Accept-Encoding": "identity",  # some servers ignore the range of what they compress
    }
    data = bytearray()
    with _translated(repo, asked), _streamed(url, headers) as (response, chunks):
        _utils.hf_raise_for_status(response)
        if begin and response.status_code != 206:
            raise OSError("range requests are not supported there")
        for chunk in chunks(_CHUNK):
            data += chunk
            if len(data) >= end - begin:
                break
        if len(data) < end - begin:
            raise OSError(f"{file}: only {len(data):,} of {end - begin:,} bytes arrived")
    return bytes(data[: end - begin])


@contextmanager
def _streamed(url: str, headers: Mapping[str, str]) -> Iterator[tuple[Any, Callable[[int], Iterable[bytes]]]]:
    """Open a response without its body; gives it, and the function that iterates over the body."""
    options: dict[str, Any] = {
        "headers": headers,
        "timeout": constants.HF_HUB_DOWNLOAD_TIMEOUT,
        "max_retries": 2,
        "retry_on_exceptions": (),
        "retry_on_status_codes": _RETRIED,
    }
    if hasattr(_utils, "http_stream_backoff"):
        with _utils.http_stream_backoff("GET", url, **options) as response:
            yield response, response.iter_bytes
    else:  # before its version 1.0
        with _utils.http_backoff("GET", url, stream=True, **options) as response:
            yield response, response.iter_content


def _bring(
    repo: str, commit: str, on_bytes: Callable[[int], None] | None, file: str, progress: Progress
) -> Path:
    options: dict[str, Any] = {}
    if "tqdm_class" in signature(hf_hub_download).parameters:  # old versions have no such thing
        options["tqdm_class"] = _bar(progress, quiet=on_bytes is not None)
    return Path(hf_hub_download(repo, file, revision=commit, library_name="mergegraph", **options))


def _bar(progress: Progress, *, quiet: bool) -> type:
    """Return a class of progress bars that tell `progress` what arrives, and draw nothing if `quiet`."""

    class Bar(_utils.tqdm):  # type: ignore[misc]  # it has no types
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **(options | {"disable": True} if quiet else options))

        def update(self, n: float | None = 1) -> None:
            progress.advance(n or 0)
            super().update(n)

        # A class that has these two is given no second bar, which would count every byte again.
        def update_transfer(self, n: float | None = 1) -> None: ...

        def set_transfer_postfix_str(self, text: str, refresh: bool = False) -> None: ...

    return Bar


# ---- the cache -----------------------------------------------------------------------------------


def _cached(repo: str, revision: str | None, file: str) -> Path | None:
    found = try_to_load_from_cache(repo, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _open_offline(repo: str, revision: str | None, name: str) -> CheckpointIndex:
    """Index what the cache holds; only the hub would know of small files that are missing from it."""
    found = (_cached(repo, revision, file) for file in (CONFIG_FILE, INDEX_FILE, "model.safetensors"))
    snapshot = next((path.parent for path in found if path), None)
    label = f"{repo}@{revision}" if revision else repo
    hint = f"unset HF_HUB_OFFLINE, or run `hf download {repo}` where there is a network"
    if snapshot is None:
        raise HubError("is not in the cache, and HF_HUB_OFFLINE is set", path=label, hint=hint)
    try:
        index = open_checkpoint(str(snapshot), name=name)
    except CheckpointError as error:
        problem = f"its cached copy cannot be used, and HF_HUB_OFFLINE is set: {error.path}: {error.reason}"
        raise HubError(problem, path=label, hint=hint) from error
    return replace(index, revision=snapshot.name)


def _check_room(needed: int) -> None:
    free = free_bytes(Path(constants.HF_HUB_CACHE))
    if needed > free:
        raise _cache_full(f"{format_bytes(needed)} needed, {format_bytes(free)} free")


def _cache_full(detail: str) -> DiskFullError:
    return DiskFullError(
        f"{constants.HF_HUB_CACHE}: no room left in the hub's cache: {detail}",
        hint="free some space, or set HF_HOME to a directory on a larger disk",
    )


def _remember(root: Path, revision: str | None) -> None:
    """Note in the cache which commit a branch or tag was, so that it can be resolved offline."""
    revision = revision or constants.DEFAULT_REVISION
    if revision == root.name or not _BRANCH.fullmatch(revision):
        return
    ref = root.parent.parent / "refs" / revision
    with suppress(OSError):  # a cache that cannot be written to serves all the same
        if not ref.is_file() or ref.read_text() != root.name:
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(root.name)


# ---- errors --------------------------------------------------------------------------------------


@contextmanager
def _translated(repo: str, revision: str | None) -> Iterator[None]:
    """Turn whatever the hub's library raises into an error that says what to do."""
    try:
        yield
    except _FAILURES as error:
        raise _translate(repo, revision, error) from error


def _translate(repo: str, revision: str | None, error: Exception) -> MergeGraphError:
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the request that failed; the other says only that one did
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _cache_full(str(error.strerror))
    message, hint = _explain(repo, revision, error)
    return HubError(message, path=f"{repo}@{revision}" if revision else repo, hint=hint)


def _explain(repo: str, revision: str | None, error: Exception) -> tuple[str, str]:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
    status = getattr(getattr(error, "response", None), "status_code", 0)
    hub = constants.ENDPOINT
    if isinstance(error, HFValidationError):
        return reason, "write a local path that exists, or a hub id as owner/name"
    if isinstance(error, OfflineModeIsEnabled):
        return "is not in the cache, and HF_HUB_OFFLINE is set", "unset it, or download the model first"
    if isinstance(error, GatedRepoError):
        return "is gated, and you have no access", f"ask for it at {hub}/{repo}, then run `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        hint = "check the spelling (no local path is called that either); if the model is private,"
        return f"there is no such model on {hub}", f"{hint} run `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return "there is no such revision", "give a branch, a tag or a full commit hash"
    if isinstance(error, EntryNotFoundError):
        return f"a file is listed but not there: {reason}", "the repository may be changing; run again"
    if status in (401, 403):
        return f"access was refused ({status})", "your token does not allow it; run `hf auth login`"
    if status == 429:
        return f"{hub} limits your requests", "wait a few minutes; `hf auth login` raises the limit"
    if status:
        return f"{hub} answered {status}: {reason}", "try again later"
    if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
        return f"the cache cannot be written: {reason}", "set HF_HOME to a directory that you may write to"
    if isinstance(error, KeyError | TypeError | ValueError):
        return f"{hub} does not answer like a model hub: {reason}", "check HF_ENDPOINT and your proxy"
    advice = "check the network, your proxy and HF_ENDPOINT, then run again; HF_HUB_OFFLINE=1 uses the cache"
    return f"cannot be fetched from {hub}: {reason}", advice
