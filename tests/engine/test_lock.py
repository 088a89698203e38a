"""A lock file runs the merge that was locked, from anywhere, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

import mergegraph
from mergegraph import engine
from mergegraph.testing import Llama, write_llama

SHAPE = Llama(layers=2, hidden=16, intermediate=24, heads=2, kv_heads=1, vocab=64)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    base = write_llama(tmp_path / "base", SHAPE, seed=1)
    for seed, name in enumerate(("a", "b"), start=2):
        write_llama(tmp_path / name, SHAPE, seed=seed, finetune_of=base)
    models = "".join(f"  - {{model: {name}, parameters: {{weight: 0.5}}}}\n" for name in ("a", "b"))
    plan = tmp_path / "plan.yml"
    plan.write_text(f"merge_method: ties\nbase_model: base\nmodels:\n{models}seed: 3\n")
    return engine.write_lock(mergegraph.compile_plan(plan), tmp_path / "plan.yml.lock.json")


def test_a_lock_gives_the_bytes_of_its_plan_from_another_directory(
    lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mergegraph.run(tmp_path / "plan.yml", tmp_path / "one")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    mergegraph.run(Path("../plan.yml.lock.json"), tmp_path / "two")
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two


def test_weights_that_changed_after_locking_are_refused(lock: Path, tmp_path: Path) -> None:
    weights = tmp_path / "a" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(mergegraph.PlanError, match="weights of a are not those that were locked"):
        mergegraph.run(lock, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fine_tunes_that_changed_places_are_refused(lock: Path, tmp_path: Path) -> None:
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    (tmp_path / "c").rename(tmp_path / "b")
    with pytest.raises(mergegraph.PlanError, match="weights of a, b are not those"):
        mergegraph.run(lock, tmp_path / "out")
