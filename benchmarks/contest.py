"""Programs that do the same work, timed in turn.

The order is floor, A, B, floor, A, B, …: a slow moment of the machine then hits all of them. The first
round is mergegraph's alone and is not counted: it warms the page cache and the compiled kernels, and tells
how many bytes there are to write.
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import pagecache
from benchmarks.measure import ProgramFailed, Usage, probe, run
from benchmarks.settings import Settings, Unavailable
from benchmarks.shapes import weights

OURS = "mergegraph"

Row = dict[str, Any]
"""One line of a result: JSON values. ``key`` tells it from the others of its suite."""

Outcome = Row | ProgramFailed
"""What a suite yields: a row, or why there is none; it goes on with the next."""


@dataclass(frozen=True)
class Contestant:
    """A program that reads the inputs and writes a checkpoint into a directory.

    Attributes:
        name: what its column is called.
        command: the command line, given the directory to write to (which is not there yet).
        rounds: counted rounds that it takes part in; None for all.
        cache: the one state of the page cache in which it takes part; None for all.
    """

    name: str
    command: Callable[[Path], list[str]]
    rounds: int | None = None
    cache: str | None = None

    def plays(self, number: int, cache: str) -> bool:
        """Whether it takes part in round `number` (from 0)."""
        return (self.rounds is None or number < self.rounds) and self.cache in (None, cache)


@dataclass(frozen=True)
class Contest:
    """The work: checkpoints to read, who does it, and how many bytes of each are read if not all."""

    inputs: tuple[Path, ...]
    contestants: tuple[Contestant, ...]
    threads: int
    limits: tuple[int, ...] = ()

    @property
    def reads(self) -> list[str]:
        """The inputs as the floor's arguments."""
        if not self.limits:
            return [str(path) for path in self.inputs]
        return [f"{path}:{limit}" for path, limit in zip(self.inputs, self.limits, strict=True)]

    @property
    def files(self) -> list[Path]:
        """Every file that holds weights to read."""
        return [file for path in self.inputs for file in sorted(path.glob("*.safetensors"))]


def mergegraph_run(plan: Path, out: Path, settings: Settings, threads: int) -> list[str]:
    """The command that runs a plan with mergegraph."""
    command = [str(Path(sys.executable).with_name("mergegraph")), "run", str(plan), "-o", str(out)]
    command += ["--threads", str(threads), "--memory", settings.memory, "--device", settings.device]
    return [*command, "--progress", "none"]


def hold(contest: Contest, settings: Settings, work: Path, cache: str, say: str) -> Row:
    """Hold a contest; return the seconds and bytes of every counted round.

    Raises:
        ProgramFailed: a program failed.
        Unavailable: files cannot be evicted from the page cache here.
    """
    if cache == "cold" and not pagecache.can_evict():
        raise Unavailable("this system does not let files be dropped from the page cache")
    written = _turn(contest.contestants[0], work)[1]
    row: Row = {"cache": cache, "threads": contest.threads, "written": written}
    row |= {"floor": [], "direct": [], "tools": {}}
    left = 0.0
    for number in range(settings.runs):
        print(f"{say}, {cache}: round {number + 1} of {settings.runs}", file=sys.stderr, flush=True)
        for way in ("floor", "direct"):
            left = max(left, _prepare(contest, cache, settings))
            floor = _floor(contest, written, work, direct=way == "direct")
            if floor is not None:
                row["read"] = floor["read"]
                row[way].append({"seconds": floor["seconds"], "synced": floor["synced"]})
        for contestant in contest.contestants:
            if contestant.plays(number, cache):
                left = max(left, _prepare(contest, cache, settings))
                _take_turn(contestant, row, work)
    return {**row, "cached": left} if cache == "cold" else row


def _prepare(contest: Contest, cache: str, settings: Settings) -> float:
    """Make all programs start alike; return the share of the inputs that a cold cache still holds."""
    if not settings.quick:
        os.sync()  # nobody pays for what another left to be written
    if cache == "cold":
        return pagecache.evict(contest.files)
    pagecache.warm(contest.files)
    return 0.0


def _floor(contest: Contest, written: int, work: Path, *, direct: bool) -> dict[str, Any] | None:
    """Measure the floor; None: this file system takes no direct writes."""
    arguments: list[object] = ["--write", written, "--to", work, "--threads", contest.threads]
    for text in contest.reads:
        arguments += ["--read", text]
    if not direct:
        return probe("benchmarks.floor", *arguments, log=work / "floor.log")
    try:
        return probe("benchmarks.floor", *arguments, "--direct", log=work / "direct.log")
    except ProgramFailed:
        return None


def _turn(contestant: Contestant, work: Path) -> tuple[Usage, int]:
    """Run one program into a fresh directory and remove the result; return its size too."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    try:
        usage = run(contestant.command(out), work / f"{contestant.name}.log")
        return usage, weights(out) if out.is_dir() else 0
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _take_turn(contestant: Contestant, row: Row, work: Path) -> None:
    """Time one program. Another tool's failure leaves its column empty; ours ends the contest."""
    try:
        usage, written = _turn(contestant, work)
    except ProgramFailed as error:
        if contestant.name == OURS:
            raise
        row.setdefault("failed", {})[contestant.name] = str(error)
        print(f"{contestant.name} failed, its column stays empty: {error}", file=sys.stderr, flush=True)
        return
    found = row["tools"].setdefault(contestant.name, {"wall": [], "cpu": [], "peak": []})
    found["wall"].append(usage.wall)
    found["cpu"].append(usage.cpu)
    found["peak"].append(usage.peak)
    found["written"] = written


# ---- reading rows --------------------------------------------------------------------------------


def floor_seconds(row: Row) -> float:
    """Median of the floor, the wait for the disk included, as every merge here waits for it."""
    return float(statistics.median(found["synced"] for found in row["floor"]))


def direct_seconds(row: Row) -> float | None:
    """Median of the floor that writes past the page cache; None if it could not be measured."""
    found = [one["synced"] for one in row.get("direct", ())]
    return float(statistics.median(found)) if found else None


def wall(row: Row, tool: str) -> float | None:
    """Median wall time of a tool; None if it took no part."""
    return _median(row, tool, "wall")


def cpu(row: Row, tool: str) -> float | None:
    """Median CPU time of a tool; None if it took no part."""
    return _median(row, tool, "cpu")


def peak(row: Row, tool: str) -> int | None:
    """Largest resident memory of a tool over all rounds; None if it took no part."""
    found = row["tools"].get(tool)
    return max(found["peak"]) if found else None


def _median(row: Row, tool: str, what: str) -> float | None:
    found = row["tools"].get(tool)
    return statistics.median(found[what]) if found else None
