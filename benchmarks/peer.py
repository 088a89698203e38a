"""Mergekit, in a virtual environment of its own: the commands, and how its planning is timed."""

from __future__ import annotations

from pathlib import Path

NAME = "mergekit"
VERSION = "0.1.5"


def merge_command(venv: Path, plan: Path, out: Path, threads: int) -> list[str]:
    """The command that runs a merge plan."""
    program = str(venv / "bin" / "mergekit-yaml")
    return [program, str(plan), str(out), "--quiet", "--num-threads", str(threads), "--random-seed", "0"]


def moe_command(venv: Path, plan: Path, out: Path) -> list[str]:
    """The command that builds a mixture of experts."""
    return [str(venv / "bin" / "mergekit-moe"), str(plan), str(out), "--quiet", "--random-seed", "0"]


def installed(venv: Path) -> bool:
    """Whether the environment is there, and complete."""
    return python(venv).exists() and (venv / "bin" / "mergekit-yaml").exists()


def python(venv: Path) -> Path:
    """The environment's interpreter."""
    return venv / "bin" / "python"
