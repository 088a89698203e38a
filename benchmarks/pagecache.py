"""Filling the page cache with chosen files, and emptying it of them, which needs no privileges."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)


def can_evict() -> bool:
    """Whether this system takes the advice at all."""
    return hasattr(os, "posix_fadvise") and hasattr(_LIBC, "mincore")


def evict(files: Iterable[Path]) -> float:
    """Drop `files` from the page cache; return the share of their pages that is still there."""
    resident = total = 0
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that wait to be written cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            found, pages = _resident_pages(descriptor)
        finally:
            os.close(descriptor)
        resident += found
        total += pages
    return resident / total if total else 0.0


def warm(files: Iterable[Path]) -> None:
    """Read `files`: systems drop pages that were not used for some seconds, as while another program ran."""
    buffer = bytearray(1 << 20)
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def _resident_pages(descriptor: int) -> tuple[int, int]:
    size = os.fstat(descriptor).st_size
    if size == 0:
        return 0, 0
    pages = -(-size // mmap.PAGESIZE)
    states = (ctypes.c_ubyte * pages)()
    # A private mapping is one that ctypes may take the address of; nothing is written.
    with mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as view:
        address = ctypes.c_char.from_buffer(view)
        failed = _LIBC.mincore(ctypes.byref(address), ctypes.c_size_t(size), states)
        del address  # the mapping cannot be closed while something points into it
        if failed:
            raise OSError(ctypes.get_errno(), "mincore failed")
    return sum(state & 1 for state in bytes(states)), pages
