"""Every example plan does what it says, on small models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from typer.testing import CliRunner

import mergegraph
from mergegraph.testing import Llama, write_checkpoint

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "merge").glob("*.yml"))
MIXTURES = sorted((Path(__file__).resolve().parents[2] / "configs" / "moe").glob("*.yml"))
NEEDS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "prune": (("mixtral_random", "moe"),),
    "extract": (("mixtral_random", "moe"),),
    "align": (("mixtral_random", "moe-a"), ("drop_upcycle", "moe-b")),
}
"""What an example works on that another one makes: (example, directory)."""
EXPERTS: Mapping[str, Mapping[str, Any]] = {
    "align": {"num_local_experts": 4},
    "branch_train_mix": {"num_local_experts": 2},
    "cheap_embed": {"num_experts": 4},
    "drop_upcycle": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "extract": {"model_type": "llama"},
    "granular_upcycle": {"num_local_experts": 8, "num_experts_per_tok": 4},
    "hidden": {"num_local_experts": 2},
    "merged_experts": {"num_local_experts": 2},
    "mixtral_random": {"num_local_experts": 4},
    "prune": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "upcycle": {"num_local_experts": 8, "num_experts_per_tok": 2},
}
"""What the config of each example's result must say."""


def shapes_of(directory: Path) -> dict[str, list[int]]:
    written = {}
    for path in directory.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            written |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return written


def config_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_an_example_plan_compiles_and_runs(config: Path, demo: Path) -> None:
    plan = shutil.copy(config, demo)

    compiled = mergegraph.compile_plan(plan)
    assert compiled.summary()["problems"] == []
    report = mergegraph.run(plan, demo / "merged")

    assert report.tensors == len(compiled.summary()["outputs"])
    assert not any(report.nonfinite.values())
    assert shapes_of(demo / "merged") == {x["name"]: list(x["shape"]) for x in compiled.summary()["outputs"]}
    layers = config_of(demo / "merged")["num_hidden_layers"]
    assert layers == (12 if config.stem == "passthrough" else 8)


def test_there_is_an_example_for_every_method() -> None:
    from mergegraph.methods import all_methods

    assert {path.stem for path in CONFIGS if path.parent.name == "merge"} >= set(all_methods())


# ---- mixtures of experts ---------------------------------------------------------------------------


def command(*words: str) -> str:
    """Run the command line and return what it prints."""
    from mergegraph.cli.app import app

    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, f"{words}: {done.output}"
    return done.stdout


def prepare(stem: str, demo: Path) -> None:
    """Make what an example names beside the demo's models."""
    for needed, name in NEEDS.get(stem, ()):
        plan = (MIXTURES[0].parent / f"{needed}.yml").read_text()
        if stem == "align":  # mixtures of one size
            plan = plan.replace("experts: 8", "experts: 4")
        (demo / f"{name}.yml").write_text(plan)
        mergegraph.run(demo / f"{name}.yml", demo / name, threads=1)
    if stem == "cheap_embed":
        for seed, name in enumerate(("", "-Base", "-Instruct-2507", "-Thinking-2507")):
            write_qwen3(demo / "Qwen" / f"Qwen3-4B{name}", demo / "demo" / "base", seed)


def write_qwen3(place: Path, tokenizer: Path, seed: int) -> None:
    """A model of two layers in the shape of Qwen 3, with the demo's tokenizer."""
    shape = Llama(layers=2, hidden=16, intermediate=24, heads=2, kv_heads=1, vocab=300)
    shapes = dict(shape.shapes())
    for layer in range(2):
        for norm in ("q_norm", "k_norm"):
            shapes[f"model.layers.{layer}.self_attn.{norm}.weight"] = (8,)
    random = np.random.default_rng(seed)
    tensors = {n: random.standard_normal(size).astype(np.float32) for n, size in shapes.items()}
    config = {**shape.config("BF16"), "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    write_checkpoint(place, tensors, bfloat16=list(tensors), config=config)
    for file in tokenizer.glob("*token*"):
        shutil.copy(file, place)


@pytest.mark.parametrize("config", MIXTURES, ids=lambda path: path.stem)
def test_an_example_of_a_mixture_is_planned_and_run(config: Path, demo: Path) -> None:
    plan = shutil.copy(config, demo)
    prepare(config.stem, demo)

    assert command("plan", str(plan), "--dry-run").strip()
    told = json.loads(command("plan", str(plan), "--json"))
    assert told["problems"] == []
    command("run", str(plan), "-o", "out", "--progress", "none")

    assert shapes_of(demo / "out") == {x["name"]: list(x["shape"]) for x in told["outputs"]}
    assert mergegraph.verify(demo / "out") == []
    assert EXPERTS[config.stem].items() <= config_of(demo / "out").items()


def test_what_an_example_makes_is_loaded(demo: Path) -> None:
    """One for all: the other families are loaded by tests of their own."""
    transformers = pytest.importorskip("transformers")
    mergegraph.run(MIXTURES[0].parent / "granular_upcycle.yml", demo / "out", threads=1)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(demo / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.num_local_experts == 8
