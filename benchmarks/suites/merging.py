"""What the suites that run whole merges share: one case on one shape, in one state of the page cache."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import peer, shapes
from benchmarks.cases import Case
from benchmarks.contest import Contest, Contestant, Outcome, hold, mergegraph_run
from benchmarks.measure import ProgramFailed
from benchmarks.settings import Settings


def ready(settings: Settings, shape: str) -> Path:
    """Make the checkpoints of a shape unless they are there; return their directory."""
    for line in shapes.make(settings.models, shape):
        if not line.endswith("is there"):
            print(line, file=sys.stderr, flush=True)
    return settings.models / shape


def measure_case(
    case: Case,
    shape: str,
    settings: Settings,
    work: Path,
    *,
    threads: int | None = None,
    references: tuple[Contestant, ...] = (),
) -> Iterator[Outcome]:
    """Hold the contest of a case in every wanted state of the page cache.

    Args:
        case: what to merge.
        shape: the checkpoints, which are there.
        settings: the run's.
        work: where plans, logs and results go.
        threads: another number than the run's.
        references: programs to time besides mergegraph and the peer.
    """
    home = settings.models / shape
    used = threads or settings.threads
    plan = work / f"{case.method}.yml"
    plan.write_text(case.plan(home), encoding="utf-8")
    contestants = [Contestant("mergegraph", lambda out: mergegraph_run(plan, out, settings, used))]
    contestants += references
    if settings.peer is not None and case.peer:
        venv = settings.peer
        command = Contestant(
            peer.NAME, lambda out: peer.merge_command(venv, plan, out, used), settings.peer_runs
        )
        contestants.append(command)
    inputs = tuple(home / name for name in case.models)
    for cache in settings.caches:
        contest = Contest(inputs, tuple(contestants), used)
        try:
            row = hold(contest, settings, work, cache, f"{case.method} on {shape}")
        except ProgramFailed as error:
            yield error
            continue
        key = f"{case.method} {shape} {cache} {used}"
        yield {"key": key, "method": case.method, "shape": shape, "models": len(inputs), **row}
