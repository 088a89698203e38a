"""Watching a run: a bar on a terminal, a line now and then in a log, JSON lines for programs."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mergegraph.cli.render import make_console, plural
from mergegraph.errors import MergeGraphError, PlanError
from mergegraph.runtime.events import Advanced, Event, Finished, Routing, RunReport, Started
from mergegraph.tensorspec import format_bytes

Mode = Literal["auto", "json", "none"]
Clock = Callable[[], float]
HEARTBEAT_SECONDS = 5.0
JSON_SECONDS = 0.2
_NAME_WIDTH = 40


class Watcher(Protocol):
    """Takes the events of one run, inside a ``with`` block that ends with the run."""

    def __call__(self, event: Event) -> None:
        """Take one event."""

    def failed(self, error: MergeGraphError) -> None:
        """Take the error that ended the run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_watcher(mode: Mode) -> Watcher:
    """Return the watcher for ``--progress``: a bar or log lines on stderr, or JSON on stdout."""
    if mode == "none":
        return Silent()
    if mode == "json":
        return JsonLines(sys.stdout)
    return Bar() if sys.stderr.isatty() else Heartbeat(sys.stderr)


class Silent:
    """Watches without a word; what the other watchers share."""

    def __call__(self, event: Event) -> None:
        """Ignore `event`."""

    def failed(self, error: MergeGraphError) -> None:
        """Ignore `error`: it is reported by whoever raised it."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Bar(Silent):
    """A progress bar by bytes: done and total, GB/s, time left, the tensor at hand."""

    def __init__(self, console: Console | None = None) -> None:
        self._progress = Progress(
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}", style="dim", markup=False),
            console=console or make_console(stderr=True),
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task("", total=None)

    def __call__(self, event: Event) -> None:
        """Move the bar."""
        if isinstance(event, Routing):
            share = f"router rows: {event.done:,} of {event.total:,} tokens through a layer"
            self._progress.update(self._task, description=share)
        elif isinstance(event, Started):
            self._progress.update(self._task, total=event.total_bytes, description="")
        elif isinstance(event, Advanced):
            self._progress.update(
                self._task,
                completed=event.done_bytes,
                total=event.total_bytes,
                description=_tail(event.tensor, _NAME_WIDTH),
            )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class Heartbeat(Silent):
    """Plain lines for logs: one at the start, then one every few seconds."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._begun = self._said = clock()

    def __call__(self, event: Event) -> None:
        """Print a line if it is time for one."""
        now = self._clock()
        if isinstance(event, Started):
            self._begun = self._said = now
            todo = f"{plural(event.outputs, 'tensor')}, {format_bytes(event.total_bytes)} to read and write"
            print(todo, file=self._stream, flush=True)
        elif isinstance(event, Routing) and now - self._said >= HEARTBEAT_SECONDS:
            self._said = now
            done = f"router rows: {event.done:,} of {event.total:,} tokens through a layer"
            print(done, file=self._stream, flush=True)
        elif isinstance(event, Advanced) and now - self._said >= HEARTBEAT_SECONDS:
            self._said = now
            print(_progress_line(event, now - self._begun), file=self._stream, flush=True)


def _progress_line(event: Advanced, seconds: float) -> str:
    done, total = event.done_bytes, event.total_bytes
    rate = done / seconds if seconds > 0 else 0.0
    share = done / total if total else 1.0
    left = f"{_minutes((total - done) / rate)} left, " if rate else ""
    amount = f"{format_bytes(done)} of {format_bytes(total)} ({share:.0%})"
    return f"{amount}, {format_bytes(round(rate))}/s, {left}{event.tensor}"


def _minutes(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02}"


def _tail(text: str, width: int) -> str:
    """Keep the end of a name: that is what tells tensors apart."""
    return text if len(text) <= width else f"…{text[1 - width :]}"


class JsonLines(Silent):
    """One JSON object per line and event; `Advanced` at most five times a second, the last always."""

    def __init__(self, stream: TextIO, clock: Clock = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._begun = clock()
        self._said = -JSON_SECONDS

    def __call__(self, event: Event) -> None:
        """Print `event` unless it comes too soon after the last."""
        seconds = self._clock() - self._begun
        match event:
            case Routing(done=done, total=total):
                if seconds - self._said >= JSON_SECONDS or done >= total:
                    self._said = seconds
                    self._put("routing", seconds=round(seconds, 3), **asdict(event))
            case Started():
                self._put("started", **asdict(event))
            case Advanced(done_bytes=done, total_bytes=total):
                if seconds - self._said >= JSON_SECONDS or done >= total:
                    self._said = seconds
                    self._put("advanced", seconds=round(seconds, 3), **asdict(event))
            case Finished():
                self._put("finished", report=report_facts(event.report))

    def failed(self, error: MergeGraphError) -> None:
        """Print `error`, with every problem if it is about the plan."""
        problems = [p.as_dict() for p in error.problems] if isinstance(error, PlanError) else []
        self._put("failed", exit_code=error.exit_code, message=str(error), problems=problems)

    def _put(self, event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, **facts}), file=self._stream, flush=True)


def report_facts(report: RunReport) -> dict[str, Any]:
    """Return `report` as JSON-ready data."""
    return {**asdict(report), "out": str(report.out)}
