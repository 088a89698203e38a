"""What a run does to the process it is in: nothing stays open, running or loaded that should not."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mergegraph import run
from mergegraph.storage.reader import Reader
from mergegraph.storage.writer import OutputWriter
from tests.engine.process import run_to_end
from tests.engine.scenario import Scenario

DESCRIPTORS = Path("/proc/self/fd")
needs_proc = pytest.mark.skipif(not DESCRIPTORS.is_dir(), reason="open files are counted in /proc")


def open_files() -> dict[str, str]:
    return {
        name: os.readlink(DESCRIPTORS / name)
        for name in os.listdir(DESCRIPTORS)
        if (DESCRIPTORS / name).exists()
    }


def own_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("mergegraph")]


class Trouble(Exception):
    """Not an error of mergegraph's."""


def failing(times: int, error: BaseException) -> Callable[..., Any]:
    calls = iter(range(times))

    def fails(*_: Any, **__: Any) -> Any:
        next(calls, None)
        raise error

    return fails


@needs_proc
def test_a_run_leaves_no_file_open_and_no_thread_running(shared: Scenario, tmp_path: Path) -> None:
    run(shared.plan("ties"), tmp_path / "warm", threads=2)
    before = open_files()
    for i in range(3):
        run(shared.plan("ties"), tmp_path / str(i), threads=4, shard_size=1)
    assert open_files() == before
    assert own_threads() == []


@needs_proc
@pytest.mark.parametrize(
    "error", [Trouble("odd"), KeyError("k"), SystemExit(3), MemoryError(), KeyboardInterrupt()]
)
@pytest.mark.parametrize(("owner", "method"), [(Reader, "read_into"), (OutputWriter, "write")])
def test_whatever_a_worker_raises_comes_out_unchanged_and_everything_is_closed(
    shared: Scenario,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    error: BaseException,
) -> None:
    plan, before = shared.plan("ties"), open_files()
    with monkeypatch.context() as patch:
        patch.setattr(owner, method, failing(1, error))
        with pytest.raises(type(error)) as caught:
            run(plan, tmp_path / "out", threads=4)
    assert caught.value is error
    assert open_files() == before
    assert own_threads() == []
    assert not (tmp_path / "out").exists()
    run(plan, tmp_path / "out", threads=4)


@needs_proc
def test_a_failure_late_in_one_worker_stops_the_others(
    shared: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OutputWriter.write
    seen: list[str] = []

    def write(self: OutputWriter, tensor: str, offset: int, buffer: Any) -> None:
        seen.append(tensor)
        if tensor == "model.layers.1.mlp.weight":
            raise Trouble(tensor)
        real(self, tensor, offset, buffer)

    monkeypatch.setattr(OutputWriter, "write", write)
    before = open_files()
    with pytest.raises(Trouble):
        run(shared.plan("ties"), tmp_path / "out", threads=3)
    assert open_files() == before
    assert own_threads() == []


@pytest.mark.parametrize("method", ["ties", "passthrough"])
def test_a_run_on_the_cpu_loads_neither_torch_nor_what_only_other_commands_need(
    shared: Scenario, tmp_path: Path, method: str
) -> None:
    loaded = run_to_end(shared.plan(method), tmp_path / "out", run={"threads": 2})["modules"]
    heavy = {"torch", "transformers", "accelerate", "networkx", "rich", "typer", "huggingface_hub", "pandas"}
    assert heavy.isdisjoint(loaded), sorted(heavy.intersection(loaded))
