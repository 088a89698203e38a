"""Where output may go, and how it appears there: all at once, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mergegraph.checkpoint.layout import INDEX_FILE
from mergegraph.errors import OutputError
from mergegraph.storage.files import existing_parent, free_bytes, sync_directory, write_error
from mergegraph.storage.journal import JOURNAL_FILE

__all__ = ["check_output", "free_bytes", "publish", "staging_path"]

_STAGING_SUFFIX = ".mergegraph"
_COMPLETE = (INDEX_FILE, "config.json")
"""Their existence tells loaders that a model is there, so they go first and come last."""


def staging_path(out: Path) -> Path:
    """Return where output for `out` is written until it is complete: a hidden sibling.

    A mount point cannot be renamed onto, so there it is a hidden directory inside.
    """
    target = Path(os.path.realpath(out))
    if os.path.ismount(target):
        return target / _STAGING_SUFFIX
    return target.parent / f".{target.name}{_STAGING_SUFFIX}"


def check_output(out: Path, inputs: Sequence[Path], force: bool) -> None:
    """Refuse an output directory that must not be written to; changes nothing.

    Raises:
        OutputError: `out` overlaps an input, is not a directory, holds something and `force` is
            not given, or could not be created.
    """
    target = Path(os.path.realpath(out))
    for source in inputs:
        _check_apart(out, target, source)
        _check_apart(out, staging_path(out), source)
    parent = existing_parent(target)
    if not parent.is_dir():
        what = "is" if parent == target else f"cannot be created: {parent} is"
        raise OutputError(f"{out} {what} not a directory", hint="choose another output directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{parent} is not writable", hint="choose another output directory")
    if not force and parent == target and _contents(target):
        raise OutputError(
            f"{out} is not empty", hint="choose another output directory, or use --force to replace the model"
        )


def publish(staging: Path, out: Path, force: bool) -> None:
    """Move finished output to its place; the caller holds the journal's lock and has synced.

    An absent or empty `out` is replaced by one rename. Into another directory, with `force`, files
    are moved one by one: a model that was there stops being loadable first, and the new one starts
    to be last.

    Raises:
        OutputError: `out` came to hold something in the meantime, or cannot be written.
    """
    target = Path(os.path.realpath(out))
    try:
        if target.is_dir() and _contents(target) and not force:
            raise OutputError(
                f"{out} is no longer empty; the finished output is in {staging}",
                hint="use --force to replace the model there",
            )
        sync_directory(staging)
        if not _rename(staging, target):
            _retract(target)
            _move(staging, target)
            (staging / JOURNAL_FILE).unlink(missing_ok=True)
            staging.rmdir()
        # Only now: until the rename, the journal is what keeps a second run out.
        (target / JOURNAL_FILE).unlink(missing_ok=True)
        sync_directory(target)
        sync_directory(target.parent)
    except OSError as error:
        raise write_error(error, target) from error


def _check_apart(out: Path, place: Path, source: Path) -> None:
    # Compared by device and inode: links, bind mounts and letter case cannot hide an overlap.
    if not source.exists():
        return
    above_place = list(_lineage(place))
    above_source = list(_lineage(source))
    if above_source[0] in above_place:
        same = place.exists() and above_source[0] == above_place[0]
        relation = "is" if same else "is inside"
    elif place.exists() and any(above_place[0] in _lineage(file) for file in (source, *_links(source))):
        relation = "contains"
    else:
        return
    prepared = "" if place == Path(os.path.realpath(out)) else f" is prepared in {place}, which"
    raise OutputError(
        f"{out}{prepared} {relation} the input {source}", hint="choose another output directory"
    )


def _links(source: Path) -> list[Path]:
    """Return the links in a directory: a model may be a directory of links into another."""
    return [path for path in source.iterdir() if path.is_symlink()] if source.is_dir() else []


def _lineage(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (device, inode) of `path` and of every directory above it, as far as they exist."""
    real = Path(os.path.realpath(path))
    for step in (real, *real.parents):
        try:
            info = step.stat()
        except OSError:
            continue
        yield info.st_dev, info.st_ino


def _contents(target: Path) -> list[str]:
    return [name for name in os.listdir(target) if name not in (_STAGING_SUFFIX, "lost+found")]


def _rename(staging: Path, target: Path) -> bool:
    """Rename the whole directory if that is possible: `target` is absent or empty."""
    if staging.parent == target:
        return False
    try:
        os.rename(staging, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _retract(target: Path) -> None:
    """Remove the model that is in `target`: what loaders look for first, then its weights.

    Files of other kinds stay. A stale shard or index beside new weights would be loaded with them.
    """
    names = os.listdir(target)
    for name in _COMPLETE:
        (target / name).unlink(missing_ok=True)
    sync_directory(target)
    for name in names:
        if _is_model_file(name) and not (target / name).is_dir():
            (target / name).unlink(missing_ok=True)


def _is_model_file(name: str) -> bool:
    pickled = name.startswith("pytorch_model") and name.endswith((".bin", ".bin.index.json"))
    return pickled or name.endswith((".safetensors", ".safetensors.index.json"))


def _move(staging: Path, target: Path) -> None:
    names = sorted(name for name in os.listdir(staging) if name != JOURNAL_FILE)
    for name in (n for n in names if n not in _COMPLETE):
        os.replace(staging / name, target / name)
    sync_directory(target)
    for name in (n for n in _COMPLETE if n in names):
        os.replace(staging / name, target / name)
