"""Running one program to its end, and what the operating system says it used.

Wall and CPU time and peak resident memory are of the whole process, interpreter and imports included,
and of every process it starts. A program never outlives the harness.

The harness imports nothing large: a child's peak memory starts from its parent's.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.settings import ROOT

_SAMPLE_SECONDS = 0.05
_MAXRSS_UNIT = 1 if sys.platform == "darwin" else 1024
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Usage:
    """What one program used: seconds and bytes."""

    wall: float
    cpu: float
    peak: int


class ProgramFailed(Exception):
    """A measured program failed; the message holds its output."""


def run(command: Sequence[str], log: Path) -> Usage:
    """Run a command to its end; its output goes to `log`.

    Raises:
        ProgramFailed: it returned anything but 0.
    """
    with log.open("wb") as file:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        sampler = _Sampler(process.pid)
        try:
            _, status, used = os.wait4(process.pid, 0)
            wall = time.perf_counter() - started
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            sampled = sampler.stop()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        text = log.read_text(encoding="utf-8", errors="replace")[-4000:]
        raise ProgramFailed(f"{' '.join(command)}\nfailed with {process.returncode}:\n{text}")
    return Usage(wall, used.ru_utime + used.ru_stime, max(sampled, used.ru_maxrss * _MAXRSS_UNIT))


def probe(module: str, *arguments: object, log: Path, python: Path | None = None) -> dict[str, Any]:
    """Run a module or script that prints JSON as its last line; return that and what it used.

    The result has the program's own values, and ``process`` with wall, CPU and peak of all of it.
    """
    # A script is isolated (-I): what lies beside it must not hide packages of another environment.
    target = ["-I", module] if module.endswith(".py") else ["-m", module]
    used = run([str(python or sys.executable), *target, *map(str, arguments)], log)
    last = log.read_text(encoding="utf-8").splitlines()[-1]
    found: dict[str, Any] = json.loads(last)
    return {**found, "process": {"wall": used.wall, "cpu": used.cpu, "peak": used.peak}}


def _die_with_parent() -> None:
    """In the child: be killed when the harness is, even where that cannot clean up."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class _Sampler:
    """Watches the resident memory of a process and its descendants.

    The kernel keeps the peak of each process by itself; only for several at once is it sampled.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Stop watching; return the highest sum seen."""
        self._ended.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._ended.wait(_SAMPLE_SECONDS):
            family = list(_descendants(self._pid))
            if len(family) > 1:
                self._peak = max(self._peak, sum(map(_resident, family)))


def _descendants(pid: int) -> Iterator[int]:
    """`pid` and every process below it; none where the system does not tell."""
    yield pid
    try:
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return  # it has just ended
    for text in lists:
        for child in text.split():
            yield from _descendants(int(child))


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0  # it has just ended
