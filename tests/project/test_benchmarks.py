"""The benchmark harness works; what it measures is nobody's test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SHAPE = {"layers": 2, "hidden": 32, "intermediate": 48, "heads": 4, "kv-heads": 2, "vocab": 300}


def script(name: str, *arguments: object) -> str:
    command = [sys.executable, str(BENCHMARKS / name), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def models(tmp_path: Path) -> Path:
    shape = [word for key, value in SHAPE.items() for word in (f"--{key}", value)]
    script("make_checkpoint.py", tmp_path / "models", "--models", 4, "--shard-size", "30kB", *shape)
    return tmp_path / "models"


def test_checkpoints_that_are_there_are_not_made_again(models: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in models.rglob("*")}
    out = script("make_checkpoint.py", models, "--models", 2)
    assert out.splitlines() == [f"{models / 'base'} is there", f"{models / 'tune1'} is there"]
    assert files == {path: path.stat().st_mtime_ns for path in models.rglob("*")}


def test_the_floor_reads_and_writes_every_byte_and_leaves_nothing(models: Path, tmp_path: Path) -> None:
    sizes = [
        path.stat().st_size for name in ("base", "tune1") for path in (models / name).glob("*.safetensors")
    ]
    work = tmp_path / "work"
    work.mkdir()
    arguments = ["--read", models / "base", "--read", models / "tune1", "--write", 100_001, "--to", work]
    found = json.loads(script("floor.py", *arguments, "--threads", 2))
    assert found["read"] == sum(sizes)
    assert found["written"] == 100_001
    assert found["seconds_synced"] >= found["seconds"] > 0
    assert list(work.iterdir()) == []


def test_the_harness_compares_a_merge_with_the_floor(models: Path, tmp_path: Path) -> None:
    arguments = ["--models", models, "--work", tmp_path / "work", "--json", tmp_path / "result.json"]
    out = script("run.py", *arguments, "--methods", "ties", "--runs", 1)
    (row,) = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert (row["method"], row["tool"], len(row["walls"])) == ("ties", "mergegraph", 1)
    assert row["ratio"] == pytest.approx(row["wall"] / row["floor"])
    assert row["peak_rss"] > 10_000_000
    assert "| ties | mergegraph |" in out
