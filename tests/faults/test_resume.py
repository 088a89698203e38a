"""An unfinished run is continued only by the same run, and only as far as its bytes are still there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergegraph import run
from mergegraph.engine import verbs
from mergegraph.errors import ResumeError
from mergegraph.runtime import executor
from mergegraph.storage.journal import JOURNAL_FILE, Journal, unfinished
from mergegraph.storage.publish import staging_path
from mergegraph.storage.writer import OutputWriter
from tests.engine.scenario import MEDIUM, Scenario, contents, make

RUN: dict[str, Any] = {"threads": 2, "shard_size": 700_000}


class Crash(Exception):
    """Stands for the end of the process: whatever it interrupts is left as it is."""


def crash(plan: Path, out: Path, *, after: int = 6, **options: Any) -> Path:
    """Run until `after` tensors are finished; return the staging directory."""
    real, count = Journal.record, iter(range(after))

    def record(self: Journal, checksums: Mapping[str, str]) -> None:
        for tensor, checksum in checksums.items():
            if next(count, None) is None:
                raise Crash
            real(self, {tensor: checksum})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "record", record)
        with pytest.raises(Crash):
            run(plan, out, **{**RUN, **options})
    assert not out.exists()
    return staging_path(out)


def finished(staging: Path) -> list[str]:
    return [json.loads(line)["tensor"] for line in (staging / JOURNAL_FILE).read_text().splitlines()[1:]]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tensors that are written from now on."""
    names: list[str] = []
    real = OutputWriter.write

    def write(self: OutputWriter, tensor: str, offset: int, buffer: Any) -> None:
        names.append(tensor)
        real(self, tensor, offset, buffer)

    monkeypatch.setattr(OutputWriter, "write", write)
    return names


@pytest.fixture(scope="module")
def expected(shared: Scenario, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    run(shared.plan("ties"), out, **RUN)
    return contents(out)


def completes(plan: Path, out: Path, expected: dict[str, bytes], **options: Any) -> int:
    report = run(plan, out, **{**RUN, **options})
    assert contents(out) == expected
    assert not staging_path(out).exists()
    return report.resumed


def test_what_is_finished_is_not_computed_again(
    shared: Scenario, expected: dict[str, bytes], tmp_path: Path, written: list[str]
) -> None:
    plan, out = shared.plan("ties"), tmp_path / "out"
    staging = crash(plan, out)
    done = finished(staging)
    assert len(done) == 6
    written.clear()
    assert completes(plan, out, expected) == 6
    assert set(done).isdisjoint(written)
    assert written, "the others were still to do"


def test_progress_and_report_of_a_resumed_run_count_all_work(shared: Scenario, tmp_path: Path) -> None:
    plan = shared.plan("slerp")
    whole = run(plan, tmp_path / "whole", **RUN)
    crash(plan, tmp_path / "out")
    resumed = run(plan, tmp_path / "out", **RUN)
    assert (resumed.bytes_read, resumed.bytes_written) == (whole.bytes_read, whole.bytes_written)
    assert (resumed.merged, resumed.copied, resumed.tensors) == (whole.merged, whole.copied, whole.tensors)


def test_counts_of_bad_numbers_survive_an_interruption(tmp_path: Path) -> None:
    held = {f"w{i}": np.array([np.nan, i, np.inf], np.float32) for i in range(8)}
    scenario = make(tmp_path / "models", dict.fromkeys(("base", "chat", "code"), held))
    plan = scenario.plan("linear")
    whole = run(plan, tmp_path / "whole")
    assert whole.nonfinite == {f"w{i}": 2 for i in range(8)}
    crash(plan, tmp_path / "out", after=3)
    resumed = run(plan, tmp_path / "out", **RUN)
    assert (resumed.resumed, resumed.nonfinite) == (3, whole.nonfinite)


@pytest.mark.parametrize("everything", [False, True])
def test_a_flipped_byte_in_staging_is_found_and_the_tensor_computed_again(
    shared: Scenario, expected: dict[str, bytes], tmp_path: Path, everything: bool
) -> None:
    plan, out = shared.plan("ties"), tmp_path / "out"
    staging = crash(plan, out)
    done = finished(staging)
    for path in staging.glob("*.safetensors"):
        length = int.from_bytes(path.read_bytes()[:8], "little")
        header = json.loads(path.read_bytes()[8 : 8 + length])
        for tensor in done if everything else done[:1]:
            if tensor in header:
                begin, end = header[tensor]["data_offsets"]
                with open(path, "r+b") as file:
                    file.seek(8 + length + (begin + end) // 2)
                    (byte,) = file.read(1)
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([byte ^ 0x10]))
    assert completes(plan, out, expected) == (0 if everything else len(done) - 1)


def test_staged_files_that_were_cut_short_removed_or_overwritten_are_made_again(
    shared: Scenario, tmp_path: Path
) -> None:
    plan, out = shared.plan("ties"), tmp_path / "out"
    small = {"shard_size": 100_000}
    staging = crash(plan, out, after=8, **small)
    shards = sorted(staging.glob("*.safetensors"))
    assert len(shards) >= 3
    shards[0].unlink()
    os.truncate(shards[1], 100)
    shards[2].write_bytes(b"\xff" * (shards[2].stat().st_size + 5))
    run(plan, tmp_path / "fresh" / "out", **RUN | small)
    assert completes(plan, out, contents(tmp_path / "fresh" / "out"), **small) < 8


@pytest.mark.parametrize(
    "torn", [b'{"tensor": "lm_head.we', b'{"tensor": "model.norm.scale"}\n', b"\0" * 64, b"\n"]
)
def test_a_torn_journal_line_costs_at_most_that_tensor(
    shared: Scenario, expected: dict[str, bytes], tmp_path: Path, torn: bytes
) -> None:
    plan, out = shared.plan("ties"), tmp_path / "out"
    staging = crash(plan, out)
    with open(staging / JOURNAL_FILE, "ab") as file:
        file.write(torn)
    assert completes(plan, out, expected) == 6


@pytest.mark.parametrize(
    "checksum", ["", ":", ":0", "0:0", "x:y", "None", "0123456789abcdef:many", "é", "0" * 16 + ":-1"]
)
def test_a_journal_that_lies_is_not_believed(
    shared: Scenario, expected: dict[str, bytes], tmp_path: Path, checksum: str
) -> None:
    plan, out = shared.plan("ties"), tmp_path / "out"
    staging = crash(plan, out, after=0)
    with open(staging / JOURNAL_FILE, "ab") as file:
        for tensor in ("model.embed_tokens.weight", "no.such.tensor", "model.nothing"):
            file.write(json.dumps({"tensor": tensor, "checksum": checksum}).encode() + b"\n")
    resumed = completes(plan, out, expected)
    assert resumed <= 1, "only the empty tensor can have a checksum of nothing"


def test_a_torn_header_starts_anew(shared: Scenario, expected: dict[str, bytes], tmp_path: Path) -> None:
    plan, out = shared.plan("ties"), tmp_path / "out"
    staging = crash(plan, out)
    os.truncate(staging / JOURNAL_FILE, 20)
    assert completes(plan, out, expected) == 0


def test_strange_files_in_staging_are_not_published_by_a_fresh_run(
    shared: Scenario, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    staging = staging_path(out)
    staging.mkdir()
    (staging / "model-00001-of-00099.safetensors").write_text("whose?")
    (staging / "notes.txt").write_text("whose?")
    assert completes(shared.plan("ties"), out, expected) == 0


def test_strange_files_in_staging_are_not_published_by_a_resumed_run(
    shared: Scenario, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """A stale shard beside new ones would be loaded with them."""
    plan, out = shared.plan("ties"), tmp_path / "out"
    staging = crash(plan, out)
    (staging / "model-00001-of-00099.safetensors").write_text("whose?")
    assert completes(plan, out, expected) == 6


def test_a_file_that_the_donor_no_longer_has_is_not_published_by_a_resumed_run(tmp_path: Path) -> None:
    """It was copied beside the weights before the crash, and is no part of the checkpoint any more."""
    scenario = make(tmp_path / "models", shapes=MEDIUM)
    plan, out = scenario.plan("ties"), tmp_path / "out"
    old = scenario.model("base") / "added_tokens.json"
    old.write_text("{}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OutputWriter, "sync", _crash)
        with pytest.raises(Crash):
            run(plan, out, **RUN)
    assert (staging_path(out) / old.name).exists()
    old.unlink()
    assert run(plan, out, **RUN).resumed > 0
    run(plan, tmp_path / "fresh" / "out", **RUN)
    assert contents(out) == contents(tmp_path / "fresh" / "out")


def _crash(*_: object) -> None:
    raise Crash


# ---- something else ---------------------------------------------------------------------------------


def others(shared: Scenario) -> dict[str, tuple[Path, dict[str, Any]]]:
    return {
        "plan": (shared.plan("ties", name="denser", parameters={"density": 0.5}), {}),
        "method": (shared.plan("linear"), {}),
        "seed": (shared.plan("ties"), {"seed": 3}),
        "shard size": (shared.plan("ties"), {"shard_size": "5GB"}),
        "dtype": (shared.plan("ties", name="wider", out_dtype="float32"), {}),
    }


@pytest.mark.parametrize("what", ["plan", "method", "seed", "shard size", "dtype"])
def test_another_run_into_the_same_place_is_refused_and_force_discards_the_old_one(
    shared: Scenario, tmp_path: Path, what: str
) -> None:
    plan, options = others(shared)[what]
    out = tmp_path / "out"
    staging = crash(shared.plan("ties"), out)
    before = contents(staging)
    with pytest.raises(ResumeError, match=r"unfinished run of something else.*--force") as caught:
        run(plan, out, **{**RUN, **options})
    assert caught.value.exit_code == 6
    assert str(staging) in str(caught.value)
    assert contents(staging) == before, "it can still be continued"
    report = run(plan, out, **{**RUN, **options}, force=True)
    assert report.resumed == 0
    run(plan, tmp_path / "fresh" / "out", **{**RUN, **options})
    assert contents(out) == contents(tmp_path / "fresh" / "out")


def test_another_version_or_numerics_is_another_run(
    shared: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergegraph.engine import session

    for name in ("VERSION", "NUMERICS"):
        out = tmp_path / name
        crash(shared.plan("ties"), out)
        with monkeypatch.context() as patch:
            patch.setattr(session, name, "another")
            with pytest.raises(ResumeError, match=name.lower()):
                run(shared.plan("ties"), out, **RUN)


def test_a_changed_input_is_another_run(tmp_path: Path) -> None:
    scenario = make(tmp_path / "models", shapes=MEDIUM)
    plan, out = scenario.plan("ties"), tmp_path / "out"
    crash(plan, out, after=2)
    shard = next(iter(scenario.model("code").glob("*.safetensors")))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    os.utime(shard, ns=(1, 1))
    with pytest.raises(ResumeError, match="inputs differs"):
        run(plan, out, **RUN)
    assert run(plan, out, force=True, **RUN).resumed == 0
    run(plan, tmp_path / "fresh" / "out", **RUN)
    assert contents(out) == contents(tmp_path / "fresh" / "out")


def test_tiles_threads_memory_and_a_comment_are_not(
    shared: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, out = shared.plan("ties"), tmp_path / "out"
    crash(plan, out, threads=1)
    text = plan.read_text()
    commented = tmp_path / "commented.yml"
    commented.write_text(f"{text}\n# the same all the same\n")
    monkeypatch.setattr(executor, "BATCH_PROGRAMS", 1)
    assert run(commented, out, threads=3, memory="300MiB", shard_size=700_000).resumed == 6


def test_an_unfinished_run_elsewhere_is_nobodys_business(shared: Scenario, tmp_path: Path) -> None:
    crash(shared.plan("ties"), tmp_path / "one")
    run(shared.plan("slerp"), tmp_path / "two", **RUN)
    assert run(shared.plan("ties"), tmp_path / "one", **RUN).resumed == 6


def test_auto_goes_on_where_the_unfinished_run_computed(
    shared: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever wins the trial the next time: its last bits might be others."""
    plan, out = shared.plan("ties"), tmp_path / "out"
    asked: list[str] = []
    real = verbs.place

    def place(wanted: str, *rest: Any) -> Any:
        asked.append(wanted)
        return real(wanted, *rest)

    monkeypatch.setattr(verbs, "place", place)
    crash(plan, out)
    report = run(plan, out, **RUN)
    assert (asked, report.resumed, report.reason) == (["auto", "cpu"], 6, "as asked for")


@pytest.mark.parametrize("content", [None, b"", b"torn", b"[1]\n", b'{"backend": "cu'])
def test_a_journal_that_says_nothing_decides_nothing(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / JOURNAL_FILE).write_bytes(content)
    assert unfinished(tmp_path) == {}
