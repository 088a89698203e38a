"""Inputs that change, shrink or vanish after they were planned with are never merged."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergegraph import Compiled, compile_plan, run
from mergegraph.errors import CheckpointError
from mergegraph.runtime.events import Advanced, Event, Started
from mergegraph.storage.reader import Reader
from tests.engine.scenario import MEDIUM, Scenario, contents, make


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return make(tmp_path / "models", shapes=MEDIUM, shard_size=300_000)


@pytest.fixture
def compiled(scenario: Scenario) -> Compiled:
    return compile_plan(scenario.plan("ties"), threads=2)


def shard(scenario: Scenario, model: str = "code", number: int = -1) -> Path:
    return sorted(scenario.model(model).glob("*.safetensors"))[number]


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def grow(path: Path) -> None:
    with open(path, "ab") as file:
        file.write(b"\0" * 8)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def replace(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(bytes(path.stat().st_size))
    os.utime(other, ns=(5, 5))
    other.rename(path)


CHANGES: list[Callable[[Path], None]] = [touch, grow, cut, empty, replace, Path.unlink]


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_between_planning_and_running_is_named(
    scenario: Scenario, compiled: Compiled, tmp_path: Path, change: Callable[[Path], None], number: int
) -> None:
    path = shard(scenario, number=number)
    change(path)
    with pytest.raises(CheckpointError) as caught:
        run(compiled, tmp_path / "out")
    assert caught.value.path == str(path)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [touch, cut, replace, Path.unlink])
@pytest.mark.parametrize("kind", [Started, Advanced])
def test_a_file_that_changes_while_it_is_merged_is_noticed_before_anything_is_published(
    scenario: Scenario,
    compiled: Compiled,
    tmp_path: Path,
    kind: type[Event],
    change: Callable[[Path], None],
) -> None:
    path, seen = shard(scenario, number=0), []

    def watch(event: Event) -> None:
        if isinstance(event, kind) and not seen:
            seen.append(event)
            change(path)

    with pytest.raises(CheckpointError, match=path.name):
        run(compiled, tmp_path / "out", on_event=watch)
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_even_read_may_not_change_either(scenario: Scenario, tmp_path: Path) -> None:
    """All is finished but the publishing: the inputs are looked at all the same."""
    compiled = compile_plan(scenario.plan("passthrough"))
    path = shard(scenario, "chat")
    with pytest.MonkeyPatch.context() as patch:
        real = Reader.check_unchanged

        def check(self: Reader) -> None:
            touch(path)
            real(self)

        patch.setattr(Reader, "check_unchanged", check)
        with pytest.raises(CheckpointError, match=path.name):
            run(compiled, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_sidecar_that_vanished_is_named(scenario: Scenario, compiled: Compiled, tmp_path: Path) -> None:
    (scenario.model("base") / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        run(compiled, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_short_read_that_no_size_announced_is_an_error(
    scenario: Scenario, compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like a network file system that ends early."""
    real = os.preadv

    def short(descriptor: int, buffers: Any, position: int) -> int:
        return real(descriptor, [buffers[0][: max(0, 100_000 - position)]], position)

    monkeypatch.setattr(os, "preadv", short)
    with pytest.raises(CheckpointError, match="ended at byte"):
        run(compiled, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_reads_in_pieces_of_any_size_change_nothing(
    scenario: Scenario, compiled: Compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(compiled, tmp_path / "a" / "out")
    real = os.preadv
    sizes = [1, 7, 65_536, 12_345]

    def piecewise(descriptor: int, buffers: Any, position: int) -> int:
        sizes.append(sizes.pop(0))
        return real(descriptor, [buffers[0][: max(sizes[0], 1000)]], position)

    monkeypatch.setattr(os, "preadv", piecewise)
    run(compiled, tmp_path / "b" / "out")
    assert contents(tmp_path / "b" / "out") == contents(tmp_path / "a" / "out")


def test_a_file_that_was_not_touched_can_be_run_from_one_plan_many_times(
    compiled: Compiled, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        run(compiled, tmp_path / name)
