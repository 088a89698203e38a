"""Results as Markdown: for the terminal, and for the part of ``docs/performance.md`` that is generated.

python -m benchmarks.report bench/result.json --docs docs/performance.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import suites
from benchmarks.chart import draw
from benchmarks.contest import Row
from benchmarks.results import Results
from benchmarks.suites.base import EMPTY, Suite

BEGIN = "<!-- results: begin (written by `python -m benchmarks.report`; do not edit) -->"
END = "<!-- results: end -->"


def table(suite: Suite, rows: list[Row]) -> str:
    """The rows as a Markdown table; columns in which nothing was measured are left out."""
    cells = [[column.text(row) for row in rows] for column in suite.columns]
    used = [i for i, texts in enumerate(cells) if any(text != EMPTY for text in texts)]
    lines = [[suite.columns[i].heading for i in used], ["---"] * len(used)]
    lines += [[cells[i][r] for i in used] for r in range(len(rows))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def document(results: Results, pictures: dict[str, Path]) -> str:
    """Every suite that was measured: circumstances, note, table, picture."""
    return "\n\n".join(part for suite in measured(results) for part in _section(suite, results, pictures))


def measured(results: Results) -> Iterator[Suite]:
    """The suites that `results` hold rows of, in the order of the report."""
    return (suite for name, suite in suites.ALL.items() if name in results.suites)


def _section(suite: Suite, results: Results, pictures: dict[str, Path]) -> Iterator[str]:
    found = results.suites[suite.name]
    yield f"## {suite.title}"
    yield suite.note
    yield _circumstances(found["circumstances"])
    yield table(suite, found["rows"])
    if suite.name in pictures:
        yield f"![{suite.chart.title}]({pictures[suite.name].as_posix()})"


def _circumstances(found: dict[str, Any]) -> str:
    parts = [
        f"{found['cpus']} × {found['cpu']}",
        f"{found['memory'] / 2**30:.0f} GiB",
        found["system"],
        f"Python {found['python']}",
        f"mergegraph {found['mergegraph']}{' at ' + found['commit'] if found['commit'] else ''}",
        f"{found['threads']} threads",
        f"budget {found['budget']}",
        f"device {found['device']}",
    ]
    quick = "**Quick mode: these numbers only show that it runs.** " if found["quick"] else ""
    return f"{quick}Measured on: {', '.join(parts)}."


def put_into(page: str, text: str) -> str:
    """`page` with `text` between its marks.

    Raises:
        ValueError: the marks are not there.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError("the page has no marks for the results")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def pictures_of(results: Results, directory: Path) -> dict[str, Path]:
    """Draw every suite that was measured; none, with a message, where matplotlib is not installed."""
    try:
        return {
            suite.name: draw(suite.name, suite.chart, results.suites[suite.name]["rows"], directory)
            for suite in measured(results)
        }
    except ModuleNotFoundError as error:
        print(f"no charts: {error.name} is not installed (pip install -e '.[bench]')", file=sys.stderr)
        return {}


def relative(pictures: dict[str, Path], page: Path) -> dict[str, Path]:
    """The pictures as a page beside their directory links to them."""
    return {name: path.relative_to(page.parent) for name, path in pictures.items()}


def print_tables(results: Results, names: Iterable[str]) -> None:
    """Print the tables of some suites."""
    for name in names:
        if name in results.suites:
            suite = suites.ALL[name]
            print(f"\n## {suite.title}\n\n{table(suite, results.suites[name]['rows'])}")


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", type=Path, help="results, as written by `python -m benchmarks --json`")
    parser.add_argument("--docs", type=Path, help="the page to write into, between its marks")
    options = parser.parse_args()
    results = Results.open(options.json)
    if options.docs is None:
        print_tables(results, suites.ALL)
        return
    page: Path = options.docs
    pictures = relative(pictures_of(results, page.parent / page.stem), page)
    page.write_text(put_into(page.read_text(encoding="utf-8"), document(results, pictures)), encoding="utf-8")


if __name__ == "__main__":
    main()
