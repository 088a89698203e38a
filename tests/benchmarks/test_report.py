"""Results are kept row by row, and shown as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import report, suites
from benchmarks.chart import draw
from benchmarks.results import Results

FACTS = {
    "cpu": "a processor",
    "cpus": 2,
    "memory": 2**33,
    "system": "Linux",
    "python": "3.11",
    "mergegraph": "0.1",
    "commit": "abc",
    "threads": 2,
    "budget": "1GiB",
    "device": "cpu",
    "quick": False,
}


def row(method: str, seconds: float, peer: float | None = None) -> dict[str, object]:
    tools = {"mergegraph": {"wall": [seconds, 9.0, seconds], "cpu": [3.0], "peak": [2_000_000, 4_000_000]}}
    if peer is not None:
        tools["mergekit"] = {"wall": [peer], "cpu": [peer], "peak": [40_000_000]}
    floor = [{"seconds": 0.5, "synced": 1.0}]
    facts = {"method": method, "models": 3, "cache": "warm", "threads": 2, "shape": "quick"}
    return {"key": method, "read": 10**9, "written": 10**9, "floor": floor, "tools": tools, **facts}


def kept(*rows: dict[str, object]) -> Results:
    results = Results(None, {})
    for one in rows:
        results.add("methods", FACTS, one)
    return results


def test_a_table_shows_medians_highest_memory_and_ratios() -> None:
    lines = report.table(suites.ALL["methods"], [row("ties", 2.0, peer=60.0)]).splitlines()
    cells = dict(zip(*([c.strip() for c in line.split("|")[1:-1]] for line in lines[::2]), strict=True))
    assert cells["wall s"] == "2.00"
    assert cells["× floor"] == "2.00"
    assert cells["peak MB"] == "4"
    assert cells["GB/s"] == "1.00"
    assert cells["times faster"] == "30.0"
    assert cells["of its memory"] == "0.10"


def test_columns_in_which_nothing_was_measured_are_left_out() -> None:
    table = report.table(suites.ALL["methods"], [row("ties", 2.0)])
    assert "mergekit" not in table
    assert "cp s" not in table


def test_a_row_that_is_measured_again_replaces_the_old_one() -> None:
    results = kept(row("ties", 2.0), row("linear", 1.0), row("ties", 3.0))
    rows = results.suites["methods"]["rows"]
    assert [(one["key"], one["tools"]["mergegraph"]["wall"][0]) for one in rows] == [
        ("ties", 3.0),
        ("linear", 1.0),
    ]


def test_rows_of_another_machine_are_not_mixed_with_these() -> None:
    results = kept(row("ties", 2.0))
    results.add("methods", {**FACTS, "cpus": 64}, row("linear", 1.0))
    assert [one["key"] for one in results.suites["methods"]["rows"]] == ["linear"]


def test_results_are_in_their_file_after_every_row(tmp_path: Path) -> None:
    results = Results.open(tmp_path / "new" / "result.json")
    results.add("methods", FACTS, row("ties", 2.0))
    assert Results.open(tmp_path / "new" / "result.json").suites == results.suites
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["result.json"]


def test_a_page_gets_the_results_between_its_marks_and_keeps_the_rest() -> None:
    page = f"# Performance\n\n{report.BEGIN}\nold\n{report.END}\n\n## What was tried\n"
    new = report.put_into(
        page, report.document(kept(row("ties", 2.0)), {"methods": Path("performance/x.svg")})
    )
    assert new.startswith(f"# Performance\n\n{report.BEGIN}\n\n## Methods, end to end\n")
    assert new.endswith(f"\n\n{report.END}\n\n## What was tried\n")
    assert "old" not in new
    assert "2 × a processor, 8 GiB, Linux" in new
    assert "![Wall time in multiples of the floor](performance/x.svg)" in new
    assert report.put_into(new, "again").count(report.BEGIN) == 1


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no marks"):
        report.put_into("# Performance\n", "text")


def test_the_page_in_the_repository_has_marks() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
    assert "new text" in report.put_into(page.read_text(encoding="utf-8"), "new text")


@pytest.mark.parametrize("name", ["methods", "threads"])
def test_a_chart_is_drawn_where_matplotlib_is_installed(name: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [row("ties", 2.0, peer=60.0), row("linear", 1.0)]
    picture = draw(name, suites.ALL[name].chart, rows, tmp_path)
    text = picture.read_text()
    assert "<svg" in text
    assert "ties" in text
    assert draw(name, suites.ALL[name].chart, rows, tmp_path).read_text() == text
