"""Whoever watches a run sees a start, steady progress and an end; a report sums it up."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergegraph import run
from mergegraph.engine import session
from mergegraph.errors import OutputError, PlanError, ResumeError
from mergegraph.runtime.events import Advanced, Event, Finished, RunReport, Started
from mergegraph.runtime.probe import cpu_count
from tests.engine.scenario import METHODS, Scenario, tensors_of


@pytest.fixture(autouse=True)
def every_step_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_EVENT_SECONDS", 0.0)


def watched(plan: Path, out: Path, **options: object) -> tuple[list[Event], RunReport]:
    events: list[Event] = []
    report = run(plan, out, on_event=events.append, **options)  # type: ignore[arg-type]
    return events, report


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_progress_starts_grows_to_its_total_and_finishes(
    shared: Scenario, tmp_path: Path, method: str, threads: int
) -> None:
    events, report = watched(shared.plan(method), tmp_path / "out", threads=threads)
    first, *steps, last = events
    outputs = tensors_of(tmp_path / "out")
    assert isinstance(first, Started)
    assert first.outputs == len(outputs) == report.tensors
    assert isinstance(last, Finished)
    assert last.report == report
    advanced = [e for e in steps if isinstance(e, Advanced)]
    assert len(advanced) == len(steps)
    done = [0]
    for event in advanced:
        assert event.total_bytes == first.total_bytes
        assert done[-1] <= event.done_bytes <= event.total_bytes
        assert event.done_bytes <= event.read_bytes + event.written_bytes
        assert event.tensor in outputs
        done.append(event.done_bytes)
    assert done[-1] == first.total_bytes, "the last step completes the work"
    assert (advanced[-1].read_bytes, advanced[-1].written_bytes) == (report.bytes_read, report.bytes_written)


def test_a_report_adds_up(shared: Scenario, tmp_path: Path) -> None:
    _, report = watched(shared.plan("ties"), tmp_path / "out", threads=2)
    assert report.out == tmp_path / "out"
    assert report.merged + report.copied == report.tensors
    assert (report.dropped, report.resumed, report.nonfinite) == (0, 0, {})
    assert report.bytes_written == sum(x.nbytes for x in tensors_of(tmp_path / "out").values())
    assert report.bytes_read > 3 * report.bytes_written, "three inputs, more than one pass"
    assert report.stages.keys() == {"read", "compute", "write"}
    assert report.stages[report.bound] == max(report.stages.values()) > 0
    assert report.seconds > 0
    assert 0 <= report.peak_working < report.peak_rss
    assert (report.budget, report.threads, report.device) == (2**30, 2, "cpu")
    assert 0 < report.plan_peak <= report.budget


def test_all_processors_are_used_unless_told_otherwise(shared: Scenario, tmp_path: Path) -> None:
    assert run(shared.plan("linear"), tmp_path / "out").threads == cpu_count()


@pytest.mark.parametrize("kind", [Started, Advanced])
def test_what_a_watcher_raises_ends_the_run_and_the_next_continues(
    shared: Scenario, tmp_path: Path, kind: type[Event]
) -> None:
    def raises(event: Event) -> None:
        if isinstance(event, kind):
            raise LookupError("the watcher's own trouble")

    with pytest.raises(LookupError, match="own trouble"):
        run(shared.plan("ties"), tmp_path / "out", on_event=raises, threads=2)
    assert not (tmp_path / "out").exists()
    run(shared.plan("ties"), tmp_path / "out", threads=2)


def test_nothing_is_told_of_a_run_that_is_refused(shared: Scenario, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    events: list[Event] = []
    with pytest.raises(OutputError):
        run(shared.plan("ties"), tmp_path / "file", on_event=events.append)
    with pytest.raises(PlanError):
        run(tmp_path / "no-plan.yml", tmp_path / "out", on_event=events.append)
    assert events == []


def test_a_second_run_into_the_same_place_is_refused_and_the_first_goes_on(
    shared: Scenario, tmp_path: Path
) -> None:
    refused: list[ResumeError] = []

    def second(event: Event) -> None:
        if isinstance(event, Started):
            with pytest.raises(ResumeError, match="another run is writing there") as caught:
                run(shared.plan("slerp"), tmp_path / "out", force=True)
            refused.append(caught.value)

    run(shared.plan("slerp"), tmp_path / "out", on_event=second)
    assert len(refused) == 1
    assert (tmp_path / "out" / "config.json").exists()
