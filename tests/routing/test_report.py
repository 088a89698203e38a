"""Reports say in words what deserves attention, and survive being written as JSON."""

from __future__ import annotations

import json

import numpy as np

from mergegraph.routing.prompts import PromptGroup
from mergegraph.routing.report import GateReport, Reporter
from mergegraph.routing.weights import Array

GROUPS = (PromptGroup((0,), ()), PromptGroup((1,), ()), PromptGroup((2,), ()))
NAMES = ("poet", "coder", "counter")


def report(*layers: Array, chosen: int = 1) -> GateReport:
    reporter = Reporter(NAMES, GROUPS, chosen)
    for rows in layers:
        reporter.add(np.asarray(rows, np.float32), np.eye(3))
    return reporter.finish("hidden", 3, 12, "<s>", [])


def test_distinct_rows_need_no_notes() -> None:
    found = report(np.eye(3), np.eye(3))
    assert found.notes == ()
    assert found.load == (1 / 3, 1 / 3, 1 / 3) or np.allclose(found.load, 1 / 3, atol=1e-4)
    assert found.own == (1.0, 1.0, 1.0)
    assert found.overlap == ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    assert [layer.condition for layer in found.layers] == [1.0, 1.0]


def test_rows_that_are_nearly_dependent_are_pointed_out_with_the_worst_pair() -> None:
    near = np.array([[1.0, 0, 0], [0.99, 0.141, 0], [0, 0, 1.0]])
    (note,) = report(np.eye(3), near, chosen=3).notes
    assert note.startswith(
        "in 1 of 2 layers the router rows are nearly dependent: condition number up to 14."
    )
    assert "poet and coder (cosine 0.990)" in note


def test_dependent_rows_are_worse_than_any_condition_number() -> None:
    near = np.array([[1.0, 0, 0], [0.99, 0.141, 0], [0, 0, 1.0]])
    same = np.array([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]])
    assert "up to infinite, above 5; most alike are poet and coder" in report(near, same, chosen=3).notes[0]


def test_an_expert_whose_prompts_cancel_out_is_pointed_out() -> None:
    rows = np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 1.0]])
    note = report(rows, chosen=3).notes[0]
    assert note == "coder: the router row is zero in every layer: its prompts cancel out"


def test_an_expert_that_its_own_prompts_do_not_choose_is_pointed_out() -> None:
    swapped = np.eye(3)[[1, 0, 2]]
    assert report(swapped).notes == (
        "poet: only 0% of its own prompts choose it (by chance 33% would)",
        "coder: only 0% of its own prompts choose it (by chance 33% would)",
    )


def test_a_report_survives_json() -> None:
    for found in (report(np.eye(3)), report(np.ones((3, 3)))):
        assert GateReport.from_dict(json.loads(json.dumps(found.as_dict()))) == found


def test_centred_rows_are_not_blamed_for_cancelling_out() -> None:
    plane = np.array([[1.0, 0, 0], [-0.5, 0.75**0.5, 0], [-0.5, -(0.75**0.5), 0]])
    same = np.array([[1.0, 0, 0], [1.0, 0, 0], [-1.0, 0, 0]])
    for rows, notes in ((plane, 0), (same, 1)):
        reporter = Reporter(NAMES, GROUPS, 3, centred=True)
        reporter.add(np.asarray(rows, np.float32), np.eye(3))
        found = reporter.finish("hidden", 3, 12, "<s>", []).notes
        assert len(found) == notes
        assert all(note.endswith("Make the experts' prompts differ more") for note in found)
