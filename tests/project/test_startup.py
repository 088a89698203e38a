"""What is loaded when: help and planning must not wait for torch, nor pay for it in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("accelerate", "huggingface_hub", "networkx", "numba", "torch", "transformers")

RUN = """
import json, sys
from mergegraph.cli.app import main
sys.argv = ["mergegraph", *json.loads(sys.argv[1])]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print()
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def loaded_by(*arguments: str, cwd: Path | None = None) -> list[str]:
    """The top-level modules in memory once the command has run."""
    command = [sys.executable, "-c", RUN, json.dumps(arguments)]
    out = subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)
    assert out.returncode == 0, out.stderr
    modules: list[str] = json.loads(out.stdout.splitlines()[-1])
    return modules


@pytest.mark.parametrize("command", ["", "run", "plan", "inspect", "methods", "demo"])
def test_help_loads_nothing_heavy(command: str) -> None:
    modules = loaded_by(*([command] if command else []), "--help")
    assert [name for name in (*HEAVY, "numpy", "yaml") if name in modules] == []


def test_planning_loads_neither_torch_nor_numba(demo: Path) -> None:
    modules = loaded_by("plan", "demo/ties.yml", "--dry-run", cwd=demo)
    assert [name for name in ("torch", "numba", "transformers", "accelerate") if name in modules] == []


def test_merging_on_the_cpu_loads_no_torch_and_once_compiled_no_compiler(demo: Path) -> None:
    heavy = ("torch", "transformers", "accelerate", "scipy")
    loaded_by("run", "demo/ties.yml", "-o", "first", "--device", "cpu", cwd=demo)
    modules = loaded_by("run", "demo/ties.yml", "-o", "merged", "--device", "cpu", cwd=demo)
    assert [name for name in (*heavy, "numba") if name in modules] == []
