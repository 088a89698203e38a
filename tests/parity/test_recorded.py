"""Every plan in `cases/` gives the tensors and the config that mergekit 0.1.5 gave.

A new case needs no code: a plan in `cases/` and its recording. Another method needs its formula in
`oracle.py` and a few lines in `reading.py`. Deliberate differences stand in `recordings.DEVIATIONS`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mergegraph

from . import models, plans, reading
from .compare import against_recording, against_reference
from .models import Stored
from .recordings import DEVIATIONS, deviation, recorded, recording

REFUSED = plans.CASES / "refused"


@dataclass(frozen=True)
class Merged:
    """What mergegraph wrote for one case."""

    case: str
    tensors: dict[str, Stored]
    config: dict[str, Any]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the tiny checkpoints are built in, each when a plan first names it."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module", params=plans.names())
def merged(request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Merged:
    """One case, run once for all the tests that look at it."""
    case: str = request.param
    folder = tmp_path_factory.mktemp("run")
    plan = folder / "plan.yml"
    plan.write_text(plans.filled(plans.template(case), inputs))
    out = folder / "out"
    mergegraph.run(plan, out)
    return Merged(case, models.read_checkpoint(out), json.loads((out / "config.json").read_text()))


def test_a_plan_gives_the_recorded_tensors(merged: Merged) -> None:
    stored = recorded(merged.case)
    meant = deviation(merged.case)
    expected = reading.read(plans.bare(plans.template(merged.case)))
    assert sorted(merged.tensors) == sorted([*stored, *meant.extra])
    wrong: dict[str, str] = {}
    for name, ours in merged.tensors.items():
        wanted = expected[name]
        assert ours.values.shape == wanted.answer.values.shape, name
        assert ours.dtype == wanted.dtype, name
        problem = against_reference(ours, wanted) if wanted.wide or name not in stored else None
        if name in stored and name not in meant.tensors:
            assert ours.dtype == stored[name].dtype, name
            problem = problem or against_recording(ours, stored[name], wanted)
        if problem:
            wrong[name] = problem
    assert not wrong


def test_a_plan_gives_the_recorded_config(merged: Merged) -> None:
    fields = recording()["cases"][merged.case]["config"] or {}
    wanted = {**fields, **deviation(merged.case).config}
    assert {key: merged.config.get(key) for key in wanted} == wanted


@pytest.mark.parametrize("case", plans.names(REFUSED))
def test_a_plan_that_mergekit_refuses_is_a_plan_error(case: str, inputs: Path, tmp_path: Path) -> None:
    assert case in recording()["refused"]
    plan = tmp_path / "plan.yml"
    plan.write_text(plans.filled(plans.template(case, REFUSED), inputs))
    with pytest.raises(mergegraph.PlanError):
        mergegraph.run(plan, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.yml"]


def test_the_command_line_writes_what_the_api_writes(inputs: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yml"
    plan.write_text(plans.filled(plans.template("ties_gradients"), inputs))
    mergegraph.run(plan, tmp_path / "api")
    main = "from mergegraph.cli.app import main; main()"
    command = [sys.executable, "-c", main, "run", str(plan), "-o", str(tmp_path / "cli")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    written = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("api", "cli")]
    assert written[0] == written[1]


def test_no_deviation_outlives_its_case() -> None:
    assert set(DEVIATIONS) <= set(plans.names())
