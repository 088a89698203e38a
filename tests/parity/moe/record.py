"""Record what mergekit-moe 0.1.5 makes of the plans in `cases/`.

Run by hand from the repository root, with the path of its command::

    python -m tests.parity.moe.record .../bin/mergekit-moe

mergekit is a black box here: its command line is run offline in a process of its own. Kept are the router
rows, digests of all other tensors, the config, and the spread of the noise that experts have.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from .. import models, plans
from ..models import Stored
from .cases import CASES, RECORDED, ROWS, digest, is_expert, is_router, logical, prepared

CONFIG = (
    *("architectures", "model_type", "num_local_experts", "num_experts", "n_routed_experts"),
    *("num_experts_per_tok", "sliding_window", "norm_topk_prob", "moe_intermediate_size"),
    *("shared_expert_intermediate_size", "tie_word_embeddings", "head_dim", "n_shared_experts"),
)


def main() -> None:
    """Run every case and keep what is compared."""
    command = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        names = plans.names(CASES)
        texts = [prepared(case, Path(folder, "models")) for case in names]
        runs = [pool.submit(record, command, c, t, Path(folder)) for c, t in zip(names, texts, strict=True)]
        done = [run.result() for run in runs]
    rows: dict[str, Any] = {}
    facts: dict[str, Any] = {}
    for case, (tensors, config) in zip(names, done, strict=True):
        rows |= {f"{case}:{name}": x.values for name, x in tensors.items() if is_router(name)}
        facts[case] = {
            "config": {key: config[key] for key in CONFIG if key in config},
            "tensors": {name: digest(x) for name, x in sorted(tensors.items()) if not is_router(name)},
            "spread": spread(case, tensors),
        }
    np.savez_compressed(ROWS, allow_pickle=False, **rows)
    RECORDED.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")


def record(command: str, case: str, text: str, folder: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    """The logical tensors and the config that mergekit writes."""
    (folder / f"{case}.yml").write_text(text)
    arguments = [
        f"{case}.yml",
        f"out-{case}",
        "--quiet",
        "--i-understand-this-is-not-useful-without-training",
    ]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [command, *arguments], cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{case}: {done.stderr[-2000:]}")
    out = folder / f"out-{case}"
    return logical(models.read_checkpoint(out)), json.loads((out / "config.json").read_text())


def spread(case: str, tensors: dict[str, Stored]) -> dict[str, float]:
    """The standard deviation of what each expert of `mixtral_noise` has beside its model's weights."""
    if case != "mixtral_noise":
        return {}
    found = {}
    for e, key in enumerate(("llama_a", "llama_b")):
        for role in ("gate", "up", "down"):
            noise = [
                x.values - (0.5 if role == "down" and e else 1.0) * models.tensors(key)[dense_name(name)]
                for name, x in tensors.items()
                if is_expert(name) and name.split("/")[1:] == [str(e), role]
            ]
            found[f"{e}/{role}"] = float(np.std(noise))
    return found


def dense_name(name: str) -> str:
    """Where the weights of an expert's matrix come from."""
    layer, _, role = name.split("/")
    return f"model.layers.{layer}.mlp.{role}_proj.weight"


if __name__ == "__main__":
    main()
