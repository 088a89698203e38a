"""Kill it anywhere: nothing is published, and the same call goes on to the same bytes.

The processes are real and die by a real signal, at points that are chosen exactly rather than timed.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mergegraph import run, verify
from mergegraph.errors import OutputError, ResumeError
from mergegraph.storage.journal import JOURNAL_FILE
from mergegraph.storage.publish import staging_path
from mergegraph.testing import write_checkpoint
from tests.engine.process import DEADLINE, finish, kill_at, start
from tests.engine.scenario import CONFIG, Scenario, contents, values

RUN = {"threads": 2, "shard_size": 700_000}

# Before the first tensor, between tensors, within a write, beside the weights, on the way out.
POINTS = [
    ("prepare", 0),
    ("write", 7),
    ("record", 0),
    ("record", 5),
    ("sidecars", 0),
    ("manifest", 0),
    ("json", 0),
    ("publish", 0),
    ("rename", 0),
]


@pytest.fixture(scope="module")
def expected(shared: Scenario, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("uninterrupted") / "out"
    run(shared.plan("ties"), out, **RUN)
    return contents(out)


def journal_lines(out: Path) -> int:
    path = staging_path(out) / JOURNAL_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize(("point", "after"), POINTS)
def test_a_killed_run_publishes_nothing_and_the_next_completes_it(
    shared: Scenario, expected: dict[str, bytes], tmp_path: Path, point: str, after: int
) -> None:
    plan, out = shared.plan("ties"), tmp_path / "out"
    kill_at(plan, out, point, after, **RUN)
    assert not out.exists()
    finished = max(0, journal_lines(out) - 1)
    report = run(plan, out, **RUN)
    assert report.resumed == finished
    if point != "write":  # where what happens to be finished depends on the other worker
        assert (finished > 0) == ((point, after) not in [("prepare", 0), ("record", 0)])
    assert contents(out) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "no staging directory is left"


def test_a_run_killed_again_and_again_gets_there_with_any_settings(
    shared: Scenario, expected: dict[str, bytes], tmp_path: Path
) -> None:
    plan, out = shared.plan("ties"), tmp_path / "out"
    seen = [1]
    for threads, memory in ((1, "1GiB"), (3, "200MiB")):
        kill_at(plan, out, "record", 2, threads=threads, memory=memory, shard_size=RUN["shard_size"])
        assert not out.exists()
        assert journal_lines(out) == seen[-1] + 2, "every run keeps what the runs before it finished"
        seen.append(journal_lines(out))
    report = run(plan, out, threads=4, memory="512MiB", shard_size=RUN["shard_size"])
    assert report.resumed == seen[-1] - 1
    assert contents(out) == expected


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.002)


def test_a_run_killed_from_outside_while_it_works(
    shared: Scenario, expected: dict[str, bytes], tmp_path: Path
) -> None:
    """Killed by another process, whenever that happens to see a finished tensor."""
    plan, out = shared.plan("ties"), tmp_path / "out"
    process = start(plan, out, run=RUN | {"threads": 1}, signal="SIGSTOP", die={"at": "record", "after": 3})
    wait_until(lambda: journal_lines(out) >= 2 or process.poll() is not None)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    assert not out.exists()
    report = run(plan, out, **RUN)
    assert report.resumed >= 1
    assert contents(out) == expected


def test_nobody_else_can_write_where_a_stopped_run_still_lives(shared: Scenario, tmp_path: Path) -> None:
    plan, out = shared.plan("ties"), tmp_path / "out"
    process = start(plan, out, run=RUN, signal="SIGSTOP", die={"at": "record", "after": 3})
    try:
        wait_until(lambda: journal_lines(out) >= 4)
        for force in (False, True):
            with pytest.raises(ResumeError, match="another run is writing"):
                run(plan, out, force=force, **RUN)
    finally:
        process.kill()
        finish(process)
    assert run(plan, out, **RUN).resumed == 3


@pytest.mark.parametrize("point", ["record", "write"])
def test_interrupted_at_the_keyboard_it_exits_130_and_the_same_command_continues(
    shared: Scenario, expected: dict[str, bytes], tmp_path: Path, point: str
) -> None:
    plan, out = shared.plan("ties"), tmp_path / "out"
    command = ["--threads", "2", "--shard-size", str(RUN["shard_size"])]
    code, _, errors = finish(start(plan, out, cli=command, signal="SIGINT", die={"at": point, "after": 3}))
    assert code == 130, errors
    assert "interrupted: what is finished is kept, and the same command continues" in errors
    assert "Traceback" not in errors
    assert not out.exists()
    assert journal_lines(out) > 1
    assert run(plan, out, **RUN).resumed > 0
    assert contents(out) == expected
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_killed_right_after_publishing_it_is_complete(
    shared: Scenario, expected: dict[str, bytes], tmp_path: Path
) -> None:
    plan, out = shared.plan("ties"), tmp_path / "out"
    kill_at(plan, out, "published", 1, **RUN)
    assert verify(out) == []
    assert {n: data for n, data in contents(out).items() if n != JOURNAL_FILE} == expected
    with pytest.raises(OutputError, match="not empty"):
        run(plan, out, **RUN)


# ---- replacing a model with --force ---------------------------------------------------------------


def old_model(out: Path) -> None:
    tensors = values(99, {f"old.{i}": (300,) for i in range(5)})
    write_checkpoint(out, tensors, shard_size=1500, config=CONFIG)
    (out / "mine.txt").write_text("mine")


@pytest.mark.parametrize(("point", "after"), [("publish", 0), ("retract", 0), ("replace", 0), ("replace", 4)])
def test_killed_while_it_replaces_a_model_there_is_the_old_one_or_none_and_then_the_new(
    shared: Scenario, expected: dict[str, bytes], tmp_path: Path, point: str, after: int
) -> None:
    plan, out = shared.plan("ties"), tmp_path / "out"
    old_model(out)
    before = contents(out)
    kill_at(plan, out, point, after, force=True, **RUN)
    if point in ("publish", "retract"):
        assert contents(out) == before
    else:
        assert not (out / "config.json").exists()
        assert not (out / "model.safetensors.index.json").exists()
    with pytest.raises(OutputError, match="not empty"):
        run(plan, out, **RUN)
    report = run(plan, out, force=True, **RUN)
    assert report.resumed > 0
    assert contents(out) == expected | {"mine.txt": b"mine"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_killed_between_the_last_moves_it_is_not_yet_loadable(
    shared: Scenario, expected: dict[str, bytes], tmp_path: Path
) -> None:
    plan, out = shared.plan("ties"), tmp_path / "out"
    old_model(out)
    kill_at(plan, out, "replace", len(expected) - 1, force=True, **RUN)
    assert not (out / "config.json").exists(), "config.json is the very last"
    run(plan, out, force=True, **RUN)
    assert contents(out) == expected | {"mine.txt": b"mine"}
