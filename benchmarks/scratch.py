"""A directory for one run's results that does not outlive it, however the run ends."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "running-"
_LOCK = ".lock"


@contextmanager
def scratch(work: Path) -> Iterator[Path]:
    """Make a directory below `work`, and remove it afterwards; remove what killed runs left there.

    A killed run cannot clean up after itself, but its lock on its directory dies with it.
    """
    work.mkdir(parents=True, exist_ok=True)
    for left in sorted(work.glob(f"{_PREFIX}*")):
        _remove_abandoned(left)
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=work))
    try:
        with (directory / _LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield directory
    finally:
        shutil.rmtree(directory)


def _remove_abandoned(directory: Path) -> None:
    try:
        with (directory / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return  # being made this moment, or empty
    except BlockingIOError:
        return  # of a run that is under way
    shutil.rmtree(directory)
