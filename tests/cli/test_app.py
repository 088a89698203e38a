"""The commands: spellings, exit codes, what goes to stdout and what to stderr."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mergegraph.errors import CheckpointError, MemoryBudgetError, PlanError, Problem
from mergegraph.version import VERSION
from tests.cli.conftest import FakeEngine

PROBLEMS = PlanError(
    [
        Problem("unknown merge method 'tise'", "plan.yml:1", hint="did you mean 'ties'?"),
        Problem("shapes differ", "plan.yml:4", tensor="model.norm.weight", model="./b"),
        Problem("the output directory is an input"),
    ]
)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tmp_path / "plan.yml"
    file.write_text("merge_method: slerp\n")
    return file


def test_help_loads_none_of_the_heavy_packages() -> None:
    code = (
        "import sys\n"
        "from mergegraph.cli.app import main\n"
        "sys.argv = ['mergegraph', '--help']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'numba', 'pydantic', 'numpy', 'networkx', 'yaml', 'mergegraph.engine'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in ("run", "plan", "inspect", "methods", "demo"):
        assert f"  {command} " in done.stdout


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mergegraph", "--version"], capture_output=True, text=True, check=False
    )
    assert done.stdout == f"mergegraph {VERSION}\n"


def test_run_passes_every_option_on(cli: Any, engine: FakeEngine, plan: Path) -> None:
    options = "--memory 2GiB --threads 3 --device cuda:0,1 --vram 8GiB --shard-size 1GB --seed 7"
    options += " --progress none --force --expert-layout stacked"
    result = cli("run", str(plan), "-o", "out", *options.split())
    assert result.exit_code == 0, result.output
    assert engine.asked == {
        "plan": plan,
        "out": Path("out"),
        "memory": "2GiB",
        "threads": 3,
        "device": "cuda:0,1",
        "vram": "8GiB",
        "shard_size": "1GB",
        "seed": 7,
        "expert_layout": "stacked",
        "force": True,
    }


def test_run_defaults_are_those_of_the_engine(cli: Any, engine: FakeEngine, plan: Path) -> None:
    cli("run", str(plan), "-o", "out")
    assert (engine.asked["memory"], engine.asked["shard_size"]) == ("1GiB", "5GB")
    assert (engine.asked["threads"], engine.asked["seed"], engine.asked["force"]) == (None, None, False)
    assert (engine.asked["device"], engine.asked["vram"]) == ("auto", None)


def test_run_ends_with_the_report_on_stdout(cli: Any, engine: FakeEngine, plan: Path) -> None:
    result = cli("run", str(plan), "-o", "out")
    assert "1.50 GB" in result.stdout
    assert "1.00 GB/s" in result.stdout
    assert "bound by   reading" in result.stdout
    assert "The result is in out" in result.stdout


def test_run_says_how_to_go_on_when_it_is_interrupted(cli: Any, engine: FakeEngine, plan: Path) -> None:
    engine.error = KeyboardInterrupt()
    result = cli("run", str(plan), "-o", "out")
    assert result.exit_code == 130
    assert "the same command continues the run" in result.stderr


def test_run_with_json_progress_prints_nothing_but_json_lines(
    cli: Any, engine: FakeEngine, plan: Path
) -> None:
    result = cli("run", str(plan), "-o", "out", "--progress", "json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [event["event"] for event in events] == ["started", "advanced", "finished"]
    assert events[-1]["report"]["out"] == "out"


def test_a_failed_run_with_json_progress_ends_with_the_reason(
    cli: Any, engine: FakeEngine, plan: Path
) -> None:
    engine.error = PROBLEMS
    result = cli("run", str(plan), "-o", "out", "--progress", "json")
    last = json.loads(result.stdout.splitlines()[-1])
    assert (result.exit_code, last["event"], last["exit_code"]) == (2, "failed", 2)
    assert len(last["problems"]) == 3


@pytest.mark.parametrize("option", [("--memory", "lots"), ("--shard-size", "0"), ("--threads", "0")])
def test_a_value_that_makes_no_sense_is_a_usage_error(
    cli: Any, engine: FakeEngine, plan: Path, option: tuple[str, str]
) -> None:
    result = cli("run", str(plan), "-o", "out", *option)
    assert result.exit_code == 2
    assert option[0] in result.stderr
    assert engine.asked == {}


def test_all_problems_of_a_plan_are_told_with_their_place_and_hint(
    cli: Any, engine: FakeEngine, plan: Path
) -> None:
    engine.error = PROBLEMS
    result = cli("plan", str(plan))
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        "plan.yml:1: unknown merge method 'tise'",
        "    → did you mean 'ties'?",
        "plan.yml:4: shapes differ [tensor model.norm.weight] [model ./b]",
        f"{plan}: the output directory is an input",
        "3 problems; nothing was written",
    ]


def test_problems_are_json_where_json_was_asked_for(cli: Any, engine: FakeEngine, plan: Path) -> None:
    engine.error = PROBLEMS
    result = cli("plan", str(plan), "--json")
    assert result.exit_code == 2
    assert [p["where"] for p in json.loads(result.stdout)["problems"]] == ["plan.yml:1", "plan.yml:4", None]


@pytest.mark.parametrize(
    "error",
    [
        CheckpointError("is truncated", path="a/model.safetensors", hint="download it again"),
        MemoryBudgetError("lm_head.weight", 2000, 1000),
    ],
)
def test_an_error_exits_with_its_code_and_without_a_traceback(
    cli: Any, engine: FakeEngine, plan: Path, error: Any
) -> None:
    engine.error = error
    result = cli("plan", str(plan))
    assert result.exit_code == error.exit_code
    assert error.message in result.stderr
    assert f"→ {error.hint}" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_raises_instead(
    cli: Any, engine: FakeEngine, plan: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.error = PROBLEMS
    if how == "environment":
        monkeypatch.setenv("MERGEGRAPH_DEBUG", "1")
    result = cli(*(["--debug"] if how == "option" else []), "plan", str(plan))
    assert result.exception is PROBLEMS


def test_a_dry_run_writes_nothing(cli: Any, engine: FakeEngine, plan: Path) -> None:
    result = cli("plan", str(plan), "--dry-run")
    assert result.exit_code == 0, result.output
    assert list(plan.parent.iterdir()) == [plan]


def test_plan_writes_the_lock_file_beside_the_plan(cli: Any, engine: FakeEngine, plan: Path) -> None:
    result = cli("plan", str(plan))
    assert (plan.parent / "plan.yml.lock.json").exists()
    assert f"wrote {plan.parent / 'plan.yml.lock.json'}" in result.stderr


def test_planning_a_lock_file_writes_no_lock_of_the_lock(
    cli: Any, engine: FakeEngine, tmp_path: Path
) -> None:
    lock = tmp_path / "plan.yml.lock.json"
    lock.write_text("{}")
    assert cli("plan", str(lock)).exit_code == 0
    assert list(tmp_path.iterdir()) == [lock]


def test_plan_json_is_the_summary_and_nothing_else(cli: Any, engine: FakeEngine, plan: Path) -> None:
    result = cli("plan", str(plan), "--json")
    assert json.loads(result.stdout) == engine.facts


def test_explain_prints_one_expression(cli: Any, engine: FakeEngine, plan: Path) -> None:
    result = cli("plan", str(plan), "--dry-run", "--explain", "model.norm.weight")
    assert result.stdout == "%0 = load a:model.norm.weight\n"


@pytest.mark.parametrize(
    ("ending", "start"), [("html", "<!doctype"), ("svg", "<svg"), ("dot", "digraph"), ("graphml", "<graphml")]
)
def test_graph_draws_by_file_ending(
    cli: Any, engine: FakeEngine, plan: Path, tmp_path: Path, ending: str, start: str
) -> None:
    file = tmp_path / f"graph.{ending}"
    result = cli("plan", str(plan), "--dry-run", "--graph", str(file))
    assert result.exit_code == 0, result.output
    assert file.read_text(encoding="utf-8").startswith(start)


def test_an_unknown_picture_format_is_refused_before_anything_is_read(
    cli: Any, engine: FakeEngine, plan: Path
) -> None:
    result = cli("plan", str(plan), "--graph", "graph.png")
    assert result.exit_code == 2
    assert ".graphml" in result.stderr
    assert engine.asked == {}


def test_a_picture_that_cannot_be_written_is_an_output_error(
    cli: Any, engine: FakeEngine, plan: Path, tmp_path: Path
) -> None:
    result = cli("plan", str(plan), "--dry-run", "--graph", str(tmp_path / "no" / "graph.svg"))
    assert result.exit_code == 6
    assert "cannot be written" in result.stderr


def test_methods_lists_all_and_describes_one(cli: Any) -> None:
    assert "slerp" in cli("methods").stdout
    described = cli("methods", "slerp").stdout
    for part in ("Formula", "Parameters", "required", "Reference", "Deviations", "merge_method: slerp"):
        assert part in described


def test_methods_are_json_too(cli: Any) -> None:
    names = [method["name"] for method in json.loads(cli("methods", "--json").stdout)]
    assert names == sorted(names)
    one = json.loads(cli("methods", "slerp", "--json").stdout)
    assert one["parameters"][0]["required"] is True


def test_an_unknown_method_is_answered_with_the_nearest(cli: Any) -> None:
    result = cli("methods", "slrep")
    assert result.exit_code == 2
    assert "did you mean 'slerp'?" in result.stderr


def test_the_demo_makes_models_plans_them_and_runs_them(
    cli: Any, engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mergegraph.testing.prepare_demo", lambda where: [where / "slerp.yml"])
    result = cli("demo", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert engine.asked["out"] == tmp_path / "merged-slerp"
    assert "slerp of 2 models" in result.stdout
    assert "The result is in" in result.stdout
