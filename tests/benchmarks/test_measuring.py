"""Programs are measured whole, do not outlive the harness, and leave nothing."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import floor, pagecache
from benchmarks.measure import ProgramFailed, probe, run
from benchmarks.scratch import scratch
from benchmarks.suites.threads import counts

TREE = """
import subprocess, sys
block = bytearray(60_000_000)
subprocess.run([sys.executable, "-c", "import time; x = bytearray(60_000_000); time.sleep(0.3)"], check=True)
"""


def files_of(*directories: Path) -> list[tuple[Path, int]]:
    return [pair for directory in directories for pair in floor.input_files(str(directory))]


def test_what_a_program_used_is_told(tmp_path: Path) -> None:
    used = run([sys.executable, "-c", "x = bytearray(50_000_000)"], tmp_path / "log")
    assert used.peak > 50_000_000
    assert used.wall > 0
    assert used.cpu > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a process's children")
def test_memory_is_that_of_all_processes_together(tmp_path: Path) -> None:
    assert run([sys.executable, "-c", TREE], tmp_path / "log").peak > 120_000_000


def test_a_program_that_fails_is_an_error_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(ProgramFailed, match="failed with 3:\nno room"):
        run(["sh", "-c", "echo no room; exit 3"], tmp_path / "log")


def test_a_program_dies_with_the_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def interrupted(pid: int, _: int) -> object:
        started.append(pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "wait4", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(["sleep", "1000"], tmp_path / "log")
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_a_probe_says_what_it_found_and_used(tmp_path: Path) -> None:
    script = tmp_path / "probe.py"
    script.write_text("print('a warning'); print('{\"outputs\": 7}')")
    found = probe(str(script), log=tmp_path / "log")
    assert found["outputs"] == 7
    assert found["process"]["peak"] > 0


def test_the_floor_reads_and_writes_every_byte_and_leaves_nothing(models: Path, tmp_path: Path) -> None:
    inputs = [models / "quick" / "base", models / "quick" / "tune1"]
    sizes = [path.stat().st_size for directory in inputs for path in directory.glob("*.safetensors")]
    assert len(sizes) > 2, "there are several shards"
    found = floor.measure(files_of(*inputs), 100_001, tmp_path / "out", threads=2)
    assert (found["read"], found["written"]) == (sum(sizes), 100_001)
    assert found["synced"] >= found["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_the_direct_floor_writes_whole_pages(models: Path, tmp_path: Path) -> None:
    try:
        found = floor.measure(files_of(models), 100_001, tmp_path / "out", threads=2, direct=True)
    except OSError:
        pytest.skip("this file system takes no direct writes")
    assert found["written"] == 98_304
    assert not (tmp_path / "out").exists()


def test_files_that_were_warmed_are_in_the_page_cache(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(300_000))
    pagecache.evict([file])
    pagecache.warm([file])
    with file.open("rb") as opened:
        assert pagecache._resident_pages(opened.fileno()) == (74, 74)


def test_the_floor_can_read_less_than_everything(models: Path) -> None:
    directory = models / "quick" / "base"
    (first, size), *_ = floor.input_files(str(directory))
    (same, whole), (_, rest) = floor.input_files(f"{directory}:{size + 10}")
    assert (same, whole, rest) == (first, size, 10)


def test_a_directory_for_results_does_not_outlive_its_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch(tmp_path) as directory:
        (directory / "result").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_killed_runs_left_is_removed_but_not_what_others_use(tmp_path: Path) -> None:
    for name in ("running-dead", "running-alive"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lock").touch()
    with (tmp_path / "running-alive" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with scratch(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["running-alive"]


@pytest.mark.skipif(not pagecache.can_evict(), reason="this system takes no advice on its page cache")
def test_evicting_a_file_tells_how_much_is_still_cached_and_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(b"x" * 100_000)
    (tmp_path / "empty").touch()
    assert 0 <= pagecache.evict([file, tmp_path / "empty"]) <= 1  # some file systems live in the cache
    assert file.read_bytes() == b"x" * 100_000


def test_threads_are_doubled_up_to_their_number() -> None:
    assert [counts(n) for n in (1, 2, 6)] == [[1], [1, 2], [1, 2, 4, 6]]


def test_the_floor_prints_json(models: Path, tmp_path: Path) -> None:
    arguments = ("--read", models / "quick" / "base", "--write", 10, "--to", tmp_path, "--threads", 1)
    found = probe("benchmarks.floor", *arguments, log=tmp_path / "log")
    assert json.loads((tmp_path / "log").read_text())["written"] == found["written"] == 10
