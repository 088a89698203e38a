"""Every example plan does what it says, on small models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors import safe_open

import mergegraph

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").rglob("*.yml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_an_example_plan_compiles_and_runs(config: Path, demo: Path) -> None:
    plan = shutil.copy(config, demo)

    compiled = mergegraph.compile_plan(plan)
    assert compiled.summary()["problems"] == []
    report = mergegraph.run(plan, demo / "merged")

    assert report.tensors == len(compiled.summary()["outputs"])
    assert not any(report.nonfinite.values())
    written = {}
    for path in (demo / "merged").glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            written |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    assert written == {x["name"]: list(x["shape"]) for x in compiled.summary()["outputs"]}
    layers = json.loads((demo / "merged" / "config.json").read_text())["num_hidden_layers"]
    assert layers == (12 if config.stem == "passthrough" else 8)


def test_there_is_an_example_for_every_method() -> None:
    from mergegraph.methods import all_methods

    assert {path.stem for path in CONFIGS if path.parent.name == "merge"} >= set(all_methods())
