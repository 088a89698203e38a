"""Record the goldens: run mergekit 0.1.5 on every plan in `cases/` and keep what it writes.

Run by hand from the repository root, with a Python that has mergekit and transformers::

    python -m tests.parity.record             # everything
    python -m tests.parity.record ties_plain  # only these cases
    python -m tests.parity.record --missing   # only cases that are new or have changed

mergekit is a black box here: its command line is run on absolute paths, offline, in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers

from . import models, plans

RECORDED = models.GOLDEN / "recorded.json"
CONFIG_FIELDS = (
    *("architectures", "model_type", "dtype", "tie_word_embeddings", "vocab_size", "layer_types"),
    *("num_hidden_layers", "n_layer", "hidden_size", "n_embd", "num_local_experts", "num_experts_per_tok"),
)


def _blueprint_configs() -> dict[str, Any]:
    common: dict[str, Any] = {
        **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "vocab_size": 32},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    }
    narrow = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 12, "num_key_value_heads": 1}
    gpt2: dict[str, Any] = {"n_embd": 16, "n_head": 2, "n_layer": 4, "vocab_size": 32, "n_positions": 16}
    return {
        "llama": transformers.LlamaConfig(**common, tie_word_embeddings=False),
        "llama_tied": transformers.LlamaConfig(**common, tie_word_embeddings=True),
        "llama_long": transformers.LlamaConfig(
            **{**common, "num_hidden_layers": 6}, tie_word_embeddings=False
        ),
        "llama_deep": transformers.LlamaConfig(**{**common, **narrow}, tie_word_embeddings=False),
        "mistral": transformers.MistralConfig(**common, tie_word_embeddings=False),
        "qwen2": transformers.Qwen2Config(**common, tie_word_embeddings=True),
        "qwen3": transformers.Qwen3Config(**common, head_dim=8, tie_word_embeddings=False),
        "gemma2": transformers.Gemma2Config(**common, head_dim=4),
        "mixtral": transformers.MixtralConfig(
            **{**common, "num_hidden_layers": 2, "intermediate_size": 12},
            num_local_experts=4,
            num_experts_per_tok=2,
            tie_word_embeddings=False,
        ),
        "gpt2": transformers.GPT2Config(**gpt2, bos_token_id=1, eos_token_id=2),
    }


def write_blueprints() -> None:
    """Write what transformers saves for each family: config and tensor shapes."""
    found: dict[str, Any] = {}
    loader: Any = transformers.AutoModelForCausalLM
    for name, config in _blueprint_configs().items():
        with tempfile.TemporaryDirectory() as folder:
            model = loader.from_config(config, dtype=torch.float32)
            model.save_pretrained(folder)
            saved = json.loads((Path(folder) / "config.json").read_text())
            stored = models.read_safetensors(Path(folder) / "model.safetensors")
        saved.pop("transformers_version")
        shapes = {key: list(stored[key].values.shape) for key in sorted(stored)}
        found[name] = {"config": saved, "tensors": shapes}
    models.GOLDEN.mkdir(exist_ok=True)
    (models.GOLDEN / "blueprints.json").write_text(json.dumps(found, indent=1) + "\n")
    models.blueprints.cache_clear()


def check_loads(root: Path) -> None:
    """Raise unless transformers loads every checkpoint without a missing or unexpected tensor."""
    loader: Any = transformers.AutoModelForCausalLM
    for key in models.MODELS:
        _, info = loader.from_pretrained(models.build(key, root), output_loading_info=True)
        if any(info.values()):
            raise SystemExit(f"{key} does not load cleanly: {info}")


def _run(mergekit: str, text: str, root: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    plan = folder / "plan.yml"
    plan.write_text(plans.filled(text, root))
    # The order of mergekit's sets picks the donor of config.json when there is no base: fix it.
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"}
    command = [mergekit, str(plan), str(folder / "out"), "--no-copy-tokenizer", "--quiet"]
    command += ["--random-seed", "1"]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def record_case(mergekit: str, case: str, root: Path) -> dict[str, Any]:
    """Run one plan, store its tensors as a golden and return the facts to remember."""
    text = plans.template(case)
    with tempfile.TemporaryDirectory() as folder:
        done = _run(mergekit, text, root, Path(folder))
        out = Path(folder) / "out"
        if not (out / "model.safetensors").exists():
            raise RuntimeError(f"{case}: mergekit failed\n{done.stderr[-3000:]}")
        (models.GOLDEN / f"{case}.safetensors").write_bytes((out / "model.safetensors").read_bytes())
        # The weights are renamed when all of them are written; it can still fail on the config after that.
        config = json.loads((out / "config.json").read_text()) if done.returncode == 0 else None
    fields = None if config is None else {key: config[key] for key in CONFIG_FIELDS if key in config}
    return {"plan": plans.digest(text), "config": fields}


def record_failure(mergekit: str, case: str, root: Path, folder_of_case: Path) -> dict[str, Any]:
    """Run a plan that mergekit must refuse, or fail on."""
    text = plans.template(case, folder_of_case)
    with tempfile.TemporaryDirectory() as folder:
        done = _run(mergekit, text, root, Path(folder))
    if done.returncode == 0:
        raise RuntimeError(f"{case}: mergekit accepts this plan")
    return {"plan": plans.digest(text)}


def _selected(folder: Path, arguments: argparse.Namespace, known: dict[str, Any]) -> list[str]:
    cases = plans.names(folder)
    if arguments.missing:
        return [c for c in cases if known.get(c, {}).get("plan") != plans.digest(plans.template(c, folder))]
    return [c for c in cases if not arguments.cases or c in arguments.cases]


def main() -> None:
    """Parse the command line and record."""
    parser = argparse.ArgumentParser(description="Record mergekit's output for the parity plans.")
    parser.add_argument("cases", nargs="*")
    parser.add_argument("--missing", action="store_true", help="only cases that are new or have changed")
    parser.add_argument("--mergekit", default=str(Path(sys.executable).parent / "mergekit-yaml"))
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    everything = not arguments.cases and not arguments.missing
    drawn = set(models.blueprints()) if (models.GOLDEN / "blueprints.json").exists() else set()
    if everything or drawn != set(_blueprint_configs()):
        write_blueprints()
    old = json.loads(RECORDED.read_text()) if RECORDED.exists() and not everything else {}
    groups: list[tuple[str, Path, Callable[[str, str, Path], dict[str, Any]]]] = [
        ("cases", plans.CASES, record_case),
        ("refused", plans.REFUSED, partial(record_failure, folder_of_case=plans.REFUSED)),
        ("beyond", plans.BEYOND, partial(record_failure, folder_of_case=plans.BEYOND)),
    ]
    known = {group: old.get(group, {}) for group, _, _ in groups}
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(arguments.jobs) as pool:
        root = Path(scratch)
        check_loads(root)
        for group, folder, record in groups:
            cases = _selected(folder, arguments, known[group])
            jobs = [(case, pool.submit(record, arguments.mergekit, case, root)) for case in cases]
            for case, job in jobs:
                try:
                    known[group][case] = job.result()
                except RuntimeError as error:
                    print(error, file=sys.stderr)
    for stale in models.GOLDEN.glob("*.safetensors"):
        if stale.stem not in plans.names():
            stale.unlink()
    packages = ("mergekit", "torch", "transformers", "numpy")
    result: dict[str, Any] = {
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "inputs": {key: models.digest(key) for key in models.MODELS},
    }
    for group, folder, _ in groups:
        result[group] = {case: known[group][case] for case in plans.names(folder) if case in known[group]}
    RECORDED.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
