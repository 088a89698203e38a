"""Pictures of results, drawn with matplotlib, which is installed by the ``bench`` extra only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contest import Row
from benchmarks.suites.base import Chart, Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ENDINGS = ("svg", "png")
_COLOURS = ("#2a6f97", "#e07a5f", "#6a994e", "#8d6a9f")


def draw(name: str, chart: Chart, rows: list[Row], directory: Path) -> Path:
    """Draw a suite into ``directory/name.svg`` (and a PNG beside it) and return the path.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    # Without these, two drawings of the same rows differ.
    matplotlib.rcParams.update({"svg.hashsalt": "mergegraph", "svg.fonttype": "none"})
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bars = chart.kind == "bars"
    figure = Figure(figsize=(8, 1.6 + 0.3 * len(rows)) if bars else (8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(chart.title)
    (_bars if bars else _lines)(axes, chart, rows)
    axes.grid(True, axis="x" if bars else "both", alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    directory.mkdir(parents=True, exist_ok=True)
    for ending in _ENDINGS:
        figure.savefig(directory / f"{name}.{ending}", metadata={"Date": None} if ending == "svg" else None)
    return directory / f"{name}.svg"


def _bars(axes: Axes, chart: Chart, rows: list[Row]) -> None:
    """Horizontal bars, the first row on top, one bar per series."""
    series = [one for one in chart.series if any(one.value(row) is not None for row in rows)]
    height = 0.8 / max(1, len(series))
    for place, one in enumerate(series):
        points = [(i, value) for i, row in enumerate(rows) if (value := one.value(row)) is not None]
        at = [i + (place - (len(series) - 1) / 2) * height for i, _ in points]
        drawn = axes.barh(at, [value for _, value in points], height, label=one.name, color=_COLOURS[place])
        axes.bar_label(drawn, fmt="%.2f", padding=2, fontsize=7)
    axes.set_yticks(range(len(rows)), [chart.label(row) for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(chart.axis)
    if chart.log:
        axes.set_xscale("log")
    if chart.goal is not None:
        axes.axvline(chart.goal, color="black", linewidth=1)
    if chart.log and chart.goal is not None:
        values = [value for one in series for row in rows if (value := one.value(row)) is not None]
        axes.set_xlim(left=min(chart.goal, *values) / 1.5)
    axes.margins(x=0.1)  # room for the numbers behind the bars


def _lines(axes: Axes, chart: Chart, rows: list[Row]) -> None:
    """One line per group and series; a single point is drawn as a mark."""
    for place, one in enumerate(chart.series):
        for style, group in zip(_styles(), dict.fromkeys(map(chart.group, rows)), strict=False):
            points = _points(chart, one, [row for row in rows if chart.group(row) == group])
            if points:
                label = f"{one.name}, {group}" if group else one.name
                axes.plot(*zip(*points, strict=True), style, label=label, color=_COLOURS[place], markersize=5)
    axes.set_xlabel(chart.x_axis)
    axes.set_ylabel(chart.axis)
    if chart.log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, axes.get_ylim()[1] * 1.1)


def _styles() -> tuple[str, ...]:
    return ("o-", "s--", "^:", "D-.", "v-", "x--", "+:", "*-.")


def _points(chart: Chart, one: Series, rows: list[Row]) -> list[tuple[float, float]]:
    found = ((chart.x(row), one.value(row)) for row in rows)
    return sorted((x, value) for x, value in found if value is not None)
