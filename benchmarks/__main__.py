"""Run suites: ``python -m benchmarks methods plan --models bench/models --work bench/work``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from benchmarks import peer, suites
from benchmarks.measure import ProgramFailed
from benchmarks.report import pictures_of, print_tables
from benchmarks.results import Results, circumstances
from benchmarks.scratch import scratch
from benchmarks.settings import Settings, Unavailable
from benchmarks.shapes import SHAPES


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure, print tables.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{', '.join(suites.ALL)}; default all")
    add = parser.add_argument
    add("--models", type=Path, default=Path("bench/models"), help="where checkpoints are made once and kept")
    add("--work", type=Path, default=Path("bench/work"), help="where results go, on the disk to measure")
    add("--json", type=Path, help="results to update: rows measured again are replaced")
    add("--charts", type=Path, help="directory for a chart of each suite")
    add("--runs", type=int, default=3, help="counted rounds, after one that is not (default 3)")
    add("--quick", action="store_true", help="tiny checkpoints, few cases: shows that everything runs")
    add("--cold", action="store_true", help="measure with a cold page cache too")
    add("--peer", type=Path, metavar="VENV", help="virtual environment with mergekit, to time it too")
    add("--peer-runs", type=int, default=1, help="rounds that mergekit takes part in (default 1)")
    add("--methods", nargs="+", default=[], metavar="METHOD", help="merge methods; default: the suite's")
    add("--shape", choices=SHAPES, help="checkpoints; default: the suite's")
    add("--threads", type=int, default=_cpus(), help="default: all processors")
    add("--memory", default="1GiB", help="the budget given to mergegraph (default 1GiB)")
    add("--device", default="cpu", help="where mergegraph computes (default cpu)")
    return parser.parse_args()


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def settings_from(options: argparse.Namespace) -> Settings:
    """What a command line asks for; programs are run from elsewhere, so paths become absolute."""
    venv: Path | None = options.peer
    if venv is not None and not peer.installed(venv):
        print(f"{venv} is not there (make bench-peer): mergekit's columns stay empty", file=sys.stderr)
        venv = None
    return Settings(
        models=options.models.absolute(),
        work=options.work.absolute(),
        runs=1 if options.quick else options.runs,
        quick=options.quick,
        peer=venv.absolute() if venv is not None else None,
        peer_runs=options.peer_runs,
        cold=options.cold,
        threads=options.threads,
        memory=options.memory,
        device=options.device,
        methods=tuple(options.methods),
        shape=options.shape,
    )


def measure(chosen: list[str], settings: Settings, results: Results) -> bool:
    """Measure suites one after the other; return whether nothing failed."""
    facts = circumstances(settings)
    good = True
    for name in chosen:
        try:
            with scratch(settings.work) as work:
                for found in suites.ALL[name].measure(settings, work):
                    if isinstance(found, ProgramFailed):
                        print(f"{name}: {found}", file=sys.stderr)
                        good = False
                    else:
                        results.add(name, facts, found)
        except Unavailable as reason:
            print(f"{name} is skipped: {reason}", file=sys.stderr)
        except (ProgramFailed, ValueError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            good = False
    return good


def main() -> int:
    """Measure, print, draw."""
    options = parse()
    chosen = options.suites or list(suites.ALL)
    unknown = [name for name in chosen if name not in suites.ALL]
    if unknown:
        sys.exit(f"there is no suite {', '.join(unknown)}; there is {', '.join(suites.ALL)}")
    signal.signal(signal.SIGTERM, _terminated)
    results = Results.open(options.json)
    good = measure(chosen, settings_from(options), results)
    print_tables(results, chosen)
    if options.charts:
        pictures_of(results, options.charts)
    return 0 if good else 1


def _terminated(number: int, _: object) -> None:
    """Leave as after an exception, so that results and running programs are removed."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
