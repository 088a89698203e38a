"""What is finished is remembered across a crash; two runs never share a staging directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mergegraph.checkpoint.index import CheckpointIndex, FileEntry
from mergegraph.errors import DiskFullError, OutputError, ResumeError
from mergegraph.storage.journal import JOURNAL_FILE, Journal, input_stamps

HEADER = {"version": "1", "fingerprint": "f", "inputs": {"a": {"x.safetensors": "12 ab mtime:3"}}}


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    return tmp_path / "parents" / "are" / "made"


def unfinished(staging: Path) -> Path:
    with Journal.open(staging, HEADER) as journal:
        assert (journal.done, journal.resumed) == ({}, False)
        journal.record({"a": "1"})
        journal.record({"é\n": "2"})
    return staging / JOURNAL_FILE


def test_an_unfinished_run_is_continued(staging: Path) -> None:
    unfinished(staging)
    (staging / "model.safetensors").write_text("half")
    for _ in range(2):
        with Journal.open(staging, HEADER) as journal:
            assert (journal.done, journal.resumed) == ({"a": "1", "é\n": "2"}, True)
    assert (staging / "model.safetensors").exists()


def test_a_tensor_recorded_twice_counts_as_last_recorded(staging: Path) -> None:
    unfinished(staging)
    with Journal.open(staging, HEADER) as journal:
        journal.record({"a": "3"})
    with Journal.open(staging, HEADER) as journal:
        assert journal.done == {"a": "3", "é\n": "2"}


@pytest.mark.parametrize(
    "torn", [b'{"tensor": "b", "check', b'{"tensor": "b", "checksum": "9"}', b"\0\0\0\n", b"[]\n"]
)
def test_a_torn_last_line_is_forgotten_and_written_over(staging: Path, torn: bytes) -> None:
    path = unfinished(staging)
    with path.open("ab") as file:
        file.write(torn)
    with Journal.open(staging, HEADER) as journal:
        assert journal.done == {"a": "1", "é\n": "2"}
        journal.record({"b": "3"})
    with Journal.open(staging, HEADER) as journal:
        assert journal.done == {"a": "1", "é\n": "2", "b": "3"}


def test_nothing_after_an_unreadable_line_is_believed(staging: Path) -> None:
    path = unfinished(staging)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1] + b"\0" * 10 + b"\n" + lines[2])
    with Journal.open(staging, HEADER) as journal:
        assert journal.done == {"a": "1"}


@pytest.mark.parametrize("content", [b"", b'{"version": "1"', b"\0" * 100, b"[]\n"])
def test_a_torn_header_starts_anew_without_leftovers(staging: Path, content: bytes) -> None:
    path = unfinished(staging)
    path.write_bytes(content)
    (staging / "model.safetensors").write_text("whose?")
    with Journal.open(staging, HEADER) as journal:
        assert (journal.done, journal.resumed) == ({}, False)
    assert [p.name for p in staging.iterdir()] == [JOURNAL_FILE]
    assert json.loads(path.read_text()) == HEADER


@pytest.mark.parametrize(("key", "value"), [("version", "2"), ("fingerprint", "g"), ("inputs", {})])
def test_another_run_is_never_mixed_with_this_one(staging: Path, key: str, value: object) -> None:
    unfinished(staging)
    with pytest.raises(ResumeError, match=rf"{staging}: .*\({key} differs\).*--force"):
        Journal.open(staging, HEADER | {key: value})
    with Journal.open(staging, HEADER) as journal:
        assert len(journal.done) == 2


def test_force_discards_another_run_but_continues_the_same(staging: Path) -> None:
    unfinished(staging)
    with Journal.open(staging, HEADER, force=True) as journal:
        assert len(journal.done) == 2
    (staging / "model.safetensors").write_text("old")
    with Journal.open(staging, HEADER | {"fingerprint": "g"}, force=True) as journal:
        assert (journal.done, journal.resumed) == ({}, False)
    assert [p.name for p in staging.iterdir()] == [JOURNAL_FILE]


def test_headers_are_compared_as_json(staging: Path) -> None:
    header = {"shape": (1, 2)}
    Journal.open(staging, header).close()
    with Journal.open(staging, header) as journal:
        assert journal.resumed


def test_two_runs_at_once_are_kept_apart(staging: Path) -> None:
    with Journal.open(staging, HEADER), pytest.raises(ResumeError, match="another run is writing there"):
        Journal.open(staging, HEADER, force=True)
    Journal.open(staging, HEADER).close()


def test_a_run_in_another_process_is_noticed_and_its_death_releases_the_lock(staging: Path) -> None:
    code = (
        "import sys, pathlib; from mergegraph.storage.journal import Journal\n"
        "journal = Journal.open(pathlib.Path(sys.argv[1]), {}); journal.record({'a': '1'})\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(staging)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ResumeError, match="another run"):
            Journal.open(staging, {})
        other.kill()
    with Journal.open(staging, {}) as journal:
        assert journal.done == {"a": "1"}


def test_a_journal_replaced_between_opening_and_locking_is_not_used(
    staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = unfinished(staging)
    real = os.open

    def published_meanwhile(*args: object, **more: object) -> int:
        descriptor = real(*args, **more)  # type: ignore[arg-type]
        path.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", published_meanwhile)
    with pytest.raises(ResumeError, match="another run"):
        Journal.open(staging, HEADER)


def test_records_from_many_threads_are_whole_lines(staging: Path) -> None:
    with Journal.open(staging, HEADER) as journal, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda i: journal.record({f"t{i}": "x" * 100}), range(200)))
    with Journal.open(staging, HEADER) as journal:
        assert journal.done == {f"t{i}": "x" * 100 for i in range(200)}


def test_a_closed_journal_says_so(staging: Path) -> None:
    journal = Journal.open(staging, HEADER)
    journal.close()
    journal.close()
    with pytest.raises(ValueError, match="after close"):
        journal.record({"a": "1"})


def test_a_full_disk_and_a_file_in_the_way_are_typed(staging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: object) -> int:
        raise OSError(28, "No space left on device")

    with Journal.open(staging, HEADER) as journal:
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(DiskFullError, match=JOURNAL_FILE):
            journal.record({"a": "1"})
    with pytest.raises(OutputError, match="cannot be written"):
        Journal.open(staging / JOURNAL_FILE / "below", HEADER)


def test_stamps_of_an_input_change_with_any_of_its_files() -> None:
    files = {"b": FileEntry("b", 2, "cd", "mtime:4"), "a": FileEntry("a", 1, "ab", "mtime:3")}
    assert input_stamps(CheckpointIndex("m", "/r", {}, files, {})) == {
        "a": "1 ab mtime:3",
        "b": "2 cd mtime:4",
    }
