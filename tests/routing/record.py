"""Record the router rows that mergekit-moe 0.1.5 makes of the prompts in `scenario`.

Run by hand from the repository root, with the path of its command::

    python -m tests.routing.record .../bin/mergekit-moe

mergekit is a black box here: its command line is run offline in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from mergegraph.routing.prompts import GatePrompts
from mergegraph.routing.weights import Array, widen
from tests.routing.scenario import CASES, GOLDEN, LAYERS, Case, weights_of, write_base


def main() -> None:
    """Run every case and keep the rows."""
    command = sys.argv[1]
    found: dict[str, Array] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            found |= record(command, name, case, Path(folder, name))
    np.savez_compressed(GOLDEN, allow_pickle=False, **found)


def record(command: str, name: str, case: Case, folder: Path) -> dict[str, Array]:
    """Return ``{name}`` [layers, experts, hidden], and ``{name}.shared`` if there are shared experts."""
    base = str(write_base(folder / "base", case.dtype))
    plan = {
        "base_model": base,
        "gate_mode": case.mode,
        "dtype": "float32",
        "architecture": "qwen" if case.shared else "mixtral",
        "experts": [_expert(base, expert) for expert in case.experts],
        "shared_experts": [_expert(base, expert) for expert in case.shared] or None,
    }
    (folder / "plan.yml").write_text(json.dumps(plan))
    arguments = ["plan.yml", "out", "--quiet", "--i-understand-this-is-not-useful-without-training"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([command, *arguments], cwd=folder, env=environment, check=True, capture_output=True)
    rows = {name: _rows(folder / "out", "mlp.gate.weight")}
    if case.shared:
        rows[f"{name}.shared"] = _rows(folder / "out", "mlp.shared_expert_gate.weight")
    return rows


def _expert(model: str, expert: GatePrompts) -> dict[str, Any]:
    prompts = {"positive_prompts": expert.positive, "negative_prompts": expert.negative}
    return {"source_model": model, **prompts}


def _rows(directory: Path, suffix: str) -> Array:
    with weights_of(directory) as weights:
        names = [f"model.layers.{layer}.{suffix}" for layer in range(LAYERS)]
        return np.stack([widen(weights.read(n), weights.specs[n].dtype) for n in names])


if __name__ == "__main__":
    main()
