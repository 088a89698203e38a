"""Every merge method, end to end, on one shape."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import peer, shapes
from benchmarks.cases import METHODS, QUICK, Case, case, example_case
from benchmarks.contest import OURS, Contestant, Outcome, Row, wall
from benchmarks.measure import probe
from benchmarks.settings import Settings
from benchmarks.suites.base import Chart, Column, Series, Suite, contest_columns, number, to_floor
from benchmarks.suites.merging import measure_case, ready


def measure(settings: Settings, work: Path) -> Iterator[Outcome]:
    """Measure every method asked for, or all there are."""
    shape = settings.main_shape
    ready(settings, shape)
    for chosen in cases(settings, work):
        yield from measure_case(
            chosen, shape, settings, work, references=_references(chosen, settings.models / shape, settings)
        )


def cases(settings: Settings, work: Path) -> list[Case]:
    """The cases to measure: those both tools know, then mergegraph's own methods.

    Raises:
        ValueError: there is no method of a name that was asked for.
    """
    found = probe("benchmarks.probes.methods", log=work / "methods.log")
    examples: dict[str, str] = found["examples"]
    wanted = settings.methods or (QUICK if settings.quick else (*METHODS, *examples))
    chosen = tuple(dict.fromkeys(name for name in wanted))
    unknown = [name for name in chosen if name not in examples]
    if unknown:
        raise ValueError(f"there is no method {', '.join(unknown)}; there is {', '.join(examples)}")
    names = shapes.find(settings.main_shape).names
    dtype = "float32" if shapes.find(settings.main_shape).dtype == "F32" else "bfloat16"
    return [
        case(name, names, dtype) if name in METHODS else example_case(name, examples[name], names)
        for name in chosen
    ]


def _references(chosen: Case, home: Path, settings: Settings) -> tuple[Contestant, ...]:
    """``cp`` for what is a copy, and with a cold cache ``cat``, which shows the disk's own read rate."""
    sources = [str(file) for name in chosen.models for file in sorted((home / name).glob("*.safetensors"))]
    copy = 'mkdir "$0" && cp "$@" "$0" && sync "$0"/*'
    found = []
    if chosen.method == "passthrough":
        found.append(Contestant("cp", partial(_shell, copy, sources)))
    if settings.cold:
        found.append(Contestant("cat", partial(_shell, 'cat "$@" > /dev/null', sources), cache="cold"))
    return tuple(found)


def _shell(script: str, sources: list[str], out: Path) -> list[str]:
    return ["sh", "-c", script, str(out), *sources]


def _reference(name: str, row: Row) -> str:
    seconds = wall(row, name)
    return number(seconds)


COLUMNS = contest_columns(
    Column("method", lambda row: str(row["method"])),
    Column("models", lambda row: str(row["models"])),
    Column("cache", lambda row: str(row["cache"])),
)

SUITE = Suite(
    name="methods",
    title="Methods, end to end",
    note=(
        "Whole processes, interpreter and imports included. The floor reads every input byte once, writes "
        "every output byte once and waits for the disk, as a merge does; its interpreter's start is not "
        "counted. It writes through the page cache, as most programs do; *direct* is the same past the page "
        "cache, as mergegraph writes where the file system allows it."
    ),
    measure=measure,
    columns=(
        *COLUMNS,
        Column("cp s", partial(_reference, "cp")),
        Column("cat s", partial(_reference, "cat")),
    ),
    chart=Chart(
        kind="bars",
        goal=1.0,
        title="Wall time in multiples of the floor",
        axis="× floor (reading every input and writing every output byte once)",
        series=(Series(OURS, to_floor), Series(peer.NAME, lambda row: to_floor(row, peer.NAME))),
        label=lambda row: f"{row['method']}{'' if row['cache'] == 'warm' else ' (cold)'}",
    ),
)
