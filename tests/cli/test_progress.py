"""Watching a run, with a clock that the test turns."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

from rich.console import Console

from mergegraph.cli.progress import Bar, Heartbeat, JsonLines, Silent, make_watcher
from mergegraph.errors import DiskFullError
from mergegraph.runtime.events import Advanced, Finished, Started
from tests.cli.conftest import report


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def advanced(done: int, tensor: str = "model.norm.weight") -> Advanced:
    return Advanced(done, 4_000_000_000, done, 0, tensor)


def test_a_log_gets_a_line_every_five_seconds() -> None:
    clock, stream = Clock(), io.StringIO()
    watcher = Heartbeat(stream, clock)
    watcher(Started(4_000_000_000, 201))
    for second in range(1, 11):
        clock.now = 100.0 + second
        watcher(advanced(second * 200_000_000))
    assert stream.getvalue().splitlines() == [
        "201 tensors, 4.00 GB to read and write",
        "1.00 GB of 4.00 GB (25%), 200.00 MB/s, 0:15 left, model.norm.weight",
        "2.00 GB of 4.00 GB (50%), 200.00 MB/s, 0:10 left, model.norm.weight",
    ]


def test_json_lines_come_at_most_five_times_a_second_and_the_last_always() -> None:
    clock, stream = Clock(), io.StringIO()
    watcher = JsonLines(stream, clock)
    watcher(Started(4_000_000_000, 201))
    for hundredth in range(101):
        clock.now = 100.0 + hundredth / 100
        watcher(advanced(hundredth))
    watcher(advanced(4_000_000_000))
    watcher(Finished(report()))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["event"] for event in events] == ["started", *["advanced"] * (len(events) - 2), "finished"]
    assert 5 <= len(events) - 3 <= 6
    assert events[-2]["done_bytes"] == 4_000_000_000
    assert events[-1]["report"]["stages"] == {"read": 2.0, "compute": 1.0, "write": 1.0}


def test_json_lines_say_why_a_run_failed() -> None:
    stream = io.StringIO()
    JsonLines(stream, Clock()).failed(DiskFullError("no room", hint="free 3 GB"))
    last = json.loads(stream.getvalue())
    assert last == {"event": "failed", "exit_code": 6, "message": "no room — free 3 GB", "problems": []}


def test_the_bar_follows_the_bytes() -> None:
    stream = io.StringIO()
    with Bar(Console(file=stream, force_terminal=True, width=120, markup=False)) as bar:
        bar(Started(4_000_000_000, 201))
        bar(advanced(1_000_000_000, "model.layers.10.self_attn.q_proj.weight[markup]"))
        task = bar._progress.tasks[0]
        assert (task.completed, task.total) == (1_000_000_000, 4_000_000_000)
        assert task.description.endswith("q_proj.weight[markup]")
        bar._progress.refresh()
    assert "1.0/4.0 GB" in stream.getvalue()


def test_auto_is_a_log_where_there_is_no_terminal() -> None:
    assert isinstance(make_watcher("auto"), Heartbeat)
    assert isinstance(make_watcher("json"), JsonLines)
    assert type(make_watcher("none")) is Silent
