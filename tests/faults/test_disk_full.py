"""A full disk: found before the first tensor if possible, told as such, and no work is lost."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mergegraph import run, verify
from mergegraph.errors import DiskFullError
from mergegraph.storage.publish import staging_path
from mergegraph.storage.writer import OutputWriter
from tests.engine.process import finish, start
from tests.engine.scenario import Scenario, contents

OUTPUT = 2_900_000
"""About the bytes that the merged model takes."""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of eight megabytes, where mounting one is allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    place = tmp_path / "disk"
    place.mkdir()
    if not hasattr(libc, "mount") or libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, b"size=8m"):
        pytest.skip(f"no file system can be mounted here: {os.strerror(ctypes.get_errno())}")
    yield place
    assert libc.umount2(bytes(place), 2) == 0


def fill(disk: Path, left: int) -> Path:
    """Leave `left` bytes on the disk."""
    stats = os.statvfs(disk)
    filler = disk / "filler"
    filler.write_bytes(b"x" * (stats.f_bavail * stats.f_frsize - left))
    return filler


def test_too_small_a_disk_is_found_before_any_tensor_is_written_and_freeing_space_helps(
    shared: Scenario, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = shared.plan("ties"), small_disk / "out"
    filler = fill(small_disk, OUTPUT // 2)
    written: list[str] = []
    real = OutputWriter.write

    def write(self: OutputWriter, tensor: str, offset: int, buffer: Any) -> None:
        written.append(tensor)
        real(self, tensor, offset, buffer)

    monkeypatch.setattr(OutputWriter, "write", write)
    with pytest.raises(DiskFullError, match=r"no room left.*needed.*free") as caught:
        run(plan, out, threads=2)
    assert caught.value.exit_code == 6
    assert written == []
    assert not out.exists()
    left = sum(p.stat().st_size for p in staging_path(out).rglob("*") if p.is_file())
    assert left < 10_000, "no file of the size that did not fit"
    filler.unlink()
    run(plan, out, threads=2)
    assert verify(out) == []
    assert [p.name for p in small_disk.iterdir()] == ["out"]


def test_a_plan_that_did_not_fit_does_not_stand_in_the_way_of_one_that_does(
    shared: Scenario, small_disk: Path
) -> None:
    """Nothing of it was computed, so there is nothing that --force would have to discard."""
    fill(small_disk, OUTPUT // 2)
    out = small_disk / "out"
    with pytest.raises(DiskFullError):
        run(shared.plan("ties"), out)
    (small_disk / "filler").unlink()
    run(shared.plan("slerp"), out)
    assert verify(out) == []


def test_a_disk_that_fills_up_at_the_very_end_keeps_the_finished_tensors(
    shared: Scenario, small_disk: Path, tmp_path: Path
) -> None:
    """The weights just fit; the files beside them do not."""
    plan, out = shared.plan("ties"), small_disk / "out"
    run(plan, tmp_path / "out", threads=2)
    weights = (tmp_path / "out" / "model.safetensors").stat().st_size
    filler = fill(small_disk, -(-weights // 4096) * 4096 + 4096)
    with pytest.raises(DiskFullError):
        run(plan, out, threads=2)
    assert not out.exists()
    filler.unlink()
    report = run(plan, out, threads=2)
    assert report.resumed == report.tensors
    assert contents(out) == contents(tmp_path / "out")


def test_a_mount_point_itself_can_be_the_output(shared: Scenario, small_disk: Path, tmp_path: Path) -> None:
    plan = shared.plan("ties")
    run(plan, tmp_path / "same" / small_disk.name)
    run(plan, small_disk)
    assert contents(small_disk) == contents(tmp_path / "same" / small_disk.name)
    run(plan, small_disk, force=True)
    assert contents(small_disk) == contents(tmp_path / "same" / small_disk.name)


def test_a_limit_on_the_size_of_files_is_met_and_told(shared: Scenario, tmp_path: Path) -> None:
    """Needs no privileges: ``ulimit -f`` in another process, with the signal ignored as Python does."""
    code, _, errors = _limited(shared.plan("ties"), tmp_path / "out", OUTPUT // 2)
    assert code == 6, errors
    assert "DiskFullError" in errors
    assert "ulimit -f" in errors
    assert not (tmp_path / "out").exists()
    assert run(shared.plan("ties"), tmp_path / "out").resumed == 0
    assert verify(tmp_path / "out") == []


def _limited(plan: Path, out: Path, size: int) -> tuple[int, str, str]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        return finish(start(plan, out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("after", [0, 5, 9])
def test_a_disk_that_fills_up_in_spite_of_the_reservation_keeps_what_is_finished(
    shared: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, after: int
) -> None:
    plan, out = shared.plan("ties"), tmp_path / "a" / "out"
    real, writes = os.pwrite, iter(range(after + 1))

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        if position > 4096 and next(writes, None) is None:
            real(descriptor, data[: len(data) // 2], position)
            raise OSError(number, os.strerror(number))
        return real(descriptor, data, position)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(DiskFullError, match=r"free some space|no room left"):
            run(plan, out, threads=1)
    assert not out.exists()
    run(plan, out, threads=2)
    run(plan, tmp_path / "b" / "out", threads=2)
    assert contents(out) == contents(tmp_path / "b" / "out")
