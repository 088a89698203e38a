"""Every suite runs; what it measures is nobody's test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import suites
from benchmarks.__main__ import parse, settings_from

REPOSITORY = Path(__file__).resolve().parents[2]
PEER = """#!/bin/sh
mkdir "$2"
echo weights > "$2/model.safetensors"
"""


@pytest.fixture(scope="module")
def kept(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that suites may add to."""
    return Path(shutil.copytree(models, tmp_path_factory.mktemp("kept") / "models"))


def harness(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def measured(suite: str, kept: Path, tmp_path: Path, *options: object) -> tuple[list[Any], str]:
    """Run a suite in quick mode with one method; return its rows and what it printed."""
    result, work = tmp_path / "result.json", tmp_path / "work"
    where = ("--models", kept, "--work", work, "--json", result, "--quick", "--methods", "ties")
    done = harness(suite, *where, *options)
    assert done.returncode == 0, done.stderr
    assert list(work.iterdir()) == [], "nothing is left"
    rows = json.loads(result.read_text())[suite]["rows"] if result.exists() else []
    return rows, done.stdout + done.stderr


@pytest.mark.parametrize("suite", [name for name in suites.ALL if name != "methods"])
def test_a_suite_runs_and_leaves_nothing(suite: str, kept: Path, tmp_path: Path) -> None:
    rows, printed = measured(suite, kept, tmp_path)
    if rows:
        assert f"## {suites.ALL[suite].title}" in printed
        assert len({row["key"] for row in rows}) == len(rows), "rows are told apart by their keys"
    else:
        assert f"{suite} is skipped: " in printed


def peer(directory: Path, script: str) -> Path:
    """A virtual environment whose programs are all `script`."""
    programs = directory / "venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "mergekit-yaml"):
        (programs / name).write_text(script)
        os.chmod(programs / name, 0o700)
    return directory / "venv"


def test_a_merge_is_compared_with_the_floor_and_the_peer(kept: Path, tmp_path: Path) -> None:
    rows, printed = measured("methods", kept, tmp_path, "--cold", "--peer", peer(tmp_path, PEER))
    for row in rows:
        cold = row["cache"] == "cold"
        assert list(row["tools"]) == ["mergegraph", *(["cat"] if cold else []), "mergekit"]
        assert row["tools"]["mergekit"]["written"] == len("weights\n")
        assert row["read"] == sum(path.stat().st_size for path in kept.glob("quick/*/*.safetensors"))
        # Shards may be cut elsewhere, so headers differ a little in length.
        written = sum(path.stat().st_size for path in kept.glob("quick/base/*.safetensors"))
        assert row["written"] == pytest.approx(written, rel=0.01)
    assert "times faster" in printed
    assert [row["cache"] for row in rows] == ["warm", "cold"] or "page cache" in printed


def test_a_peer_that_fails_leaves_its_column_empty(kept: Path, tmp_path: Path) -> None:
    venv = peer(tmp_path, "#!/bin/sh\necho out of memory; exit 1\n")
    ((row,), printed) = measured("methods", kept, tmp_path, "--peer", venv)
    assert list(row["tools"]) == ["mergegraph"]
    assert "out of memory" in row["failed"]["mergekit"]
    assert "times faster" not in printed


def test_a_peer_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--peer", str(tmp_path / "nowhere")])
    assert settings_from(parse()).peer is None
    assert f"{tmp_path / 'nowhere'} is not there" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [("nonsense",), ("methods", "--methods", "nonsense", "--quick")])
def test_what_does_not_exist_is_named(arguments: tuple[str, ...], kept: Path, tmp_path: Path) -> None:
    done = harness(*arguments, "--models", kept, "--work", tmp_path)
    assert done.returncode == 1
    assert "nonsense" in done.stderr
