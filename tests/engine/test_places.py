"""Where output may go: never over an input, never mixed with what is there, nothing left behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mergegraph import run, verify
from mergegraph.errors import OutputError, PlanError
from mergegraph.testing import write_checkpoint
from tests.engine.scenario import CONFIG, Scenario, contents, make


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    held = {"w": np.ones((20, 30), np.float32), "v": np.ones(5, np.float32)}
    return make(tmp_path / "models", dict.fromkeys(("base", "chat", "code"), held), shard_size=1000)


@pytest.mark.parametrize(
    ("where", "relation"),
    [("chat", "is the input"), ("chat/merged", "is inside"), (".", "contains the input")],
)
@pytest.mark.parametrize("force", [False, True])
def test_an_output_over_an_input_is_refused_even_with_force(
    scenario: Scenario, where: str, relation: str, force: bool
) -> None:
    plan = scenario.plan("ties")
    before = contents(scenario.root)
    with pytest.raises(OutputError, match=relation) as caught:
        run(plan, scenario.root / where, force=force)
    assert caught.value.exit_code == 6
    assert contents(scenario.root) == before


def test_a_single_file_is_guarded_too_but_not_the_folder_around_it(tmp_path: Path) -> None:
    save_file({"w": np.ones(3, np.float32)}, tmp_path / "x.safetensors")
    plan = tmp_path / "plan.yml"
    plan.write_text(f"merge_method: passthrough\nmodels: [{{model: {tmp_path}/x.safetensors}}]")
    for out in (tmp_path, tmp_path / "x.safetensors", tmp_path / "x.safetensors" / "below"):
        with pytest.raises(OutputError):
            run(plan, out, force=True)
    run(plan, tmp_path / "merged")
    assert verify(tmp_path / "merged") == []


def test_a_directory_that_holds_something_is_left_alone_without_force(
    scenario: Scenario, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"not empty.*--force"):
        run(scenario.plan("ties"), out)
    assert contents(out) == {"notes.txt": b"mine"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["models", "out"]
    run(scenario.plan("ties"), out, force=True)
    assert (out / "notes.txt").read_text() == "mine"
    assert verify(out) == []


def test_an_empty_directory_and_a_link_to_one_are_filled(scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    run(scenario.plan("ties"), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert verify(tmp_path / "real") == []


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_file_in_the_way_is_refused(scenario: Scenario, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    for force in (False, True):
        with pytest.raises(OutputError, match="not a directory"):
            run(scenario.plan("ties"), tmp_path / where, force=force)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_file_where_staging_should_be_is_refused_and_kept(scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / ".out.mergegraph").write_text("mine")
    with pytest.raises(OutputError):
        run(scenario.plan("ties"), tmp_path / "out", force=True)
    assert (tmp_path / ".out.mergegraph").read_text() == "mine"


def test_force_leaves_nothing_of_an_older_model_that_a_loader_could_find(
    scenario: Scenario, tmp_path: Path
) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh" / "out"
    many = {f"old.{i}": np.ones(100, np.float32) for i in range(9)}
    write_checkpoint(out, many, shard_size=500, config=CONFIG)
    (out / "pytorch_model.bin").write_bytes(b"old")
    assert len(list(out.glob("*.safetensors"))) == 9
    run(scenario.plan("ties"), out, force=True)
    run(scenario.plan("ties"), fresh)
    assert contents(out) == contents(fresh)


def test_force_from_one_file_to_shards_and_back(scenario: Scenario, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for size, files in (("5GB", 1), (100, 2), ("5GB", 1)):
        run(scenario.plan("ties"), out, shard_size=size, force=True)
        assert len(list(out.glob("*.safetensors"))) == files
        assert (out / "model.safetensors.index.json").exists() == (files == 2)
        assert verify(out) == []


def test_the_current_directory_can_be_the_output(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = scenario.plan("ties")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    run(plan, ".")
    assert verify(here) == []


def test_a_wrong_plan_leaves_no_trace(scenario: Scenario, tmp_path: Path) -> None:
    plan = scenario.plan("ties", models=[{"model": str(tmp_path / "nowhere")}])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PlanError):
        run(plan, tmp_path / "new" / "out", force=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_that_cannot_be_written_is_refused(scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="not writable"):
        run(scenario.plan("ties"), tmp_path / "locked" / "out")


def test_the_config_that_is_written_describes_the_result(scenario: Scenario, tmp_path: Path) -> None:
    run(scenario.plan("ties", out_dtype="float32"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config.get("torch_dtype", config.get("dtype")) == "float32"
