"""What this machine has and what this process uses, as the kernel counts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mergegraph.runtime.probe import cpu_count, peak_resident_bytes, resident_bytes

MIB = 2**20


def test_processors_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert cpu_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert cpu_count() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert cpu_count() == 1


def test_touched_memory_is_seen_and_a_peak_is_remembered() -> None:
    before = resident_bytes()
    held = np.ones(64 * MIB, dtype=np.uint8)
    during = resident_bytes()
    assert during - before > 48 * MIB
    assert peak_resident_bytes() >= during - MIB
    del held
    assert resident_bytes() < during - 48 * MIB
    assert peak_resident_bytes() >= during - MIB


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="read from /proc")
def test_the_size_is_that_of_proc() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert abs(resident_bytes() - pages * os.sysconf("SC_PAGE_SIZE")) < 4 * MIB


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a trait of Linux")
def test_the_size_of_the_process_that_started_this_one_is_not_part_of_its_peak() -> None:
    """``ru_maxrss`` survives exec: started by a large process, a small one would seem to be large."""
    child = "from mergegraph.runtime.probe import peak_resident_bytes; print(peak_resident_bytes())"
    parent = (
        "import subprocess, sys\n"
        f"held = b'x' * {300 * MIB}\n"
        f"print(subprocess.run([sys.executable, '-c', {child!r}], capture_output=True, text=True).stdout)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", parent], capture_output=True, text=True, env=environment, check=True
    )
    assert int(done.stdout) < 150 * MIB
