"""Every plan in `cases/` gives the tensors and the config that mergekit 0.1.5 gave.

A new case needs no code: a plan in `cases/` and its recording. Another method needs its formula in
`oracle.py`, a few lines in `reading.py`, and a place in `plans.METHODS`. Deliberate differences stand in
`recordings.DEVIATIONS`. Tensors are compared by their names in the layout of one tensor per expert, whichever
layout a mixture is stored in.
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
from mergegraph.methods import all_methods

from . import models, plans
from .judge import judged, per_expert
from .models import Stored
from .recordings import DEVIATIONS, deviation, recording


def ready(case: str, folder: Path = plans.CASES) -> bool:
    """Whether mergegraph has the method of `case`."""
    return plans.method(case, folder) in all_methods()


WHOLE = [pytest.param((plans.CASES, case), id=case) for case in plans.names() if ready(case)]
FORMULA_ONLY = [
    pytest.param((plans.BEYOND, case), id=f"beyond-{case}")
    for case in plans.names(plans.BEYOND)
    if ready(case, plans.BEYOND)
]


@dataclass(frozen=True)
class Merged:
    """What mergegraph wrote for one case."""

    case: str
    text: str
    tensors: dict[str, Stored]
    config: dict[str, Any]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the tiny checkpoints are built in, each when a plan first names it."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module", params=[*WHOLE, *FORMULA_ONLY])
def merged(request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Merged:
    """One case, run once for all the tests that look at it."""
    cases, case = request.param
    text = plans.template(case, cases)
    folder = tmp_path_factory.mktemp("run")
    plan = folder / "plan.yml"
    plan.write_text(plans.filled(text, inputs))
    out = folder / "out"
    mergegraph.run(plan, out)
    config = json.loads((out / "config.json").read_text())
    return Merged(case, text, per_expert(models.read_checkpoint(out)), config)


def test_a_plan_gives_the_recorded_tensors(merged: Merged) -> None:
    assert not judged(merged.case, merged.text, merged.tensors)


def test_a_plan_gives_the_recorded_config(merged: Merged) -> None:
    fields = recording()["cases"].get(merged.case, {}).get("config") or {}
    wanted = {**fields, **deviation(merged.case).config}
    assert {key: merged.config.get(key) for key in wanted} == wanted


@pytest.mark.parametrize("method", [m for m in plans.METHODS if m in all_methods()])
def test_every_method_has_plans_that_run(method: str) -> None:
    assert any(plans.method(case) == method for case in plans.names() if ready(case))


@pytest.mark.parametrize("case", plans.names(plans.REFUSED))
def test_a_plan_that_mergekit_refuses_is_a_plan_error(case: str, inputs: Path, tmp_path: Path) -> None:
    assert case in recording()["refused"]
    plan = tmp_path / "plan.yml"
    plan.write_text(plans.filled(plans.template(case, plans.REFUSED), inputs))
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
    assert set(DEVIATIONS) <= {*plans.names(), *plans.names(plans.BEYOND)}
