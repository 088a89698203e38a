"""What a suite is: rows that it measures, and how they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks import peer
from benchmarks.contest import OURS, Outcome, Row, cpu, direct_seconds, floor_seconds, peak, wall
from benchmarks.settings import Settings

EMPTY = "–"
"""What a table shows where nothing was measured."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    heading: str
    text: Callable[[Row], str]


@dataclass(frozen=True)
class Series:
    """One named set of points of a chart; a point without a value is left out."""

    name: str
    value: Callable[[Row], float | None]


@dataclass(frozen=True)
class Chart:
    """A picture of a suite: bars by row, or lines over a number of each row.

    Attributes:
        kind: ``bars`` or ``lines``.
        title: what is shown.
        axis: what the values are.
        series: the values.
        label: the name of a row, on the other axis of bars.
        x: the number that lines run over.
        x_axis: what that number is.
        group: rows with the same text share a line.
        log: whether axes are logarithmic.
        goal: a value to hold the others against, drawn as a line.
    """

    kind: Literal["bars", "lines"]
    title: str
    axis: str
    series: tuple[Series, ...]
    label: Callable[[Row], str] = field(default=lambda row: str(row["key"]))
    x: Callable[[Row], float] = field(default=lambda row: 0.0)
    x_axis: str = ""
    group: Callable[[Row], str] = field(default=lambda row: "")
    log: bool = True
    goal: float | None = None


@dataclass(frozen=True)
class Suite:
    """A suite.

    Attributes:
        name: what it is called on the command line.
        title: its heading in reports.
        note: what its numbers mean, in Markdown.
        measure: measure, row by row, given a directory for results that is removed afterwards. Raises
            `Unavailable` if it cannot run here.
        columns: how its table looks.
        chart: its picture.
    """

    name: str
    title: str
    note: str
    measure: Callable[[Settings, Path], Iterator[Outcome]]
    columns: tuple[Column, ...]
    chart: Chart


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table."""
    return EMPTY if value is None else f"{value:.{digits}f}"


def megabytes(value: float | None) -> str:
    """A number of bytes for a table."""
    return EMPTY if value is None else f"{value / 1e6:.0f}"


def ratio(over: float | None, under: float | None) -> float | None:
    """A quotient, if both numbers were measured."""
    return over / under if over is not None and under else None


def to_floor(row: Row, tool: str = OURS) -> float | None:
    """Wall time of a tool in multiples of the floor."""
    return ratio(wall(row, tool), floor_seconds(row))


def faster(row: Row) -> float | None:
    """How many times as fast as the peer."""
    return ratio(wall(row, peer.NAME), wall(row, OURS))


def contest_columns(*first: Column) -> tuple[Column, ...]:
    """Columns of a contest: what everybody used, and the ratios."""
    measured: Sequence[Column] = (
        Column("GB", lambda row: number((row["read"] + row["written"]) / 1e9)),
        Column("floor s", lambda row: number(floor_seconds(row))),
        Column("direct s", lambda row: number(direct_seconds(row))),
        Column("wall s", lambda row: number(wall(row, OURS))),
        Column("CPU s", lambda row: number(cpu(row, OURS))),
        Column("peak MB", lambda row: megabytes(peak(row, OURS))),
        Column("GB/s", lambda row: number(ratio((row["read"] + row["written"]) / 1e9, wall(row, OURS)))),
        Column("× floor", lambda row: number(to_floor(row))),
        Column("× direct", lambda row: number(ratio(wall(row, OURS), direct_seconds(row)))),
        Column("mergekit s", lambda row: number(wall(row, peer.NAME), 1)),
        Column("mergekit CPU s", lambda row: number(cpu(row, peer.NAME), 1)),
        Column("mergekit peak MB", lambda row: megabytes(peak(row, peer.NAME))),
        Column("times faster", lambda row: number(faster(row), 1)),
        Column("of its memory", lambda row: number(ratio(peak(row, OURS), peak(row, peer.NAME)))),
    )
    cached = Column("still cached", lambda row: f"{row['cached']:.0%}" if "cached" in row else EMPTY)
    return (*first, *measured, cached)
