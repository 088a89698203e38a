"""Plans of mergekit-moe give the rows and the experts that mergekit-moe 0.1.5 gave, where those are right.

Rows from embeddings agree to the last bits of float32; mergekit computes hidden states, and normalises them,
in bfloat16. Random rows and noise are drawn otherwise, so their spread is compared. What is done better on
purpose stands in `BETTER`, and has a test of its own.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import mergegraph
from mergegraph.errors import PlanError
from mergegraph.testing import write_checkpoint

from .. import models, plans
from ..models import Stored
from .cases import CASES, RECORDED, ROWS, digest, is_expert, is_router, logical, prepared
from .record import dense_name, spread

Array = npt.NDArray[Any]

CASE_NAMES = plans.names(CASES)
TOLERANCE = {"cheap_embed": 2e-7, "hidden": 1.5e-2, "hidden_avg": 1.5e-2}
BETTER: Mapping[str, Mapping[str, Any]] = {
    # mergekit drops the window; the base model has one in all layers.
    "mistral_hidden_avg": {"sliding_window": 4096},
}
"""Config values that differ from the recorded ones on purpose."""
SPELT = {"num_experts": ("num_experts", "num_local_experts")}
PADDED = "mixtral_hidden_avg_padded"
"""mergekit's mean counts padding; the rows are others, so only the experts are compared."""


@dataclass(frozen=True)
class Built:
    """What mergegraph wrote for a case."""

    case: str
    mode: str
    tensors: dict[str, Stored]
    config: dict[str, Any]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


# The code that reads deepseek knows one tensor per expert only.
RUNS = [
    (case, layout)
    for case in CASE_NAMES
    for layout in ("per-expert", "stacked")
    if layout == "per-expert" or not case.startswith("deepseek")
]


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def built(request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    case, layout = request.param
    folder = tmp_path_factory.mktemp("run")
    plan = folder / "plan.yml"
    plan.write_text(prepared(case, inputs))
    mergegraph.run(plan, folder / "out", expert_layout=layout)
    text = plan.read_text()
    mode = next(line.split(": ")[1] for line in text.splitlines() if line.startswith("gate_mode"))
    config = json.loads((folder / "out" / "config.json").read_text())
    return Built(case, mode, logical(models.read_checkpoint(folder / "out")), config)


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(RECORDED.read_text())
    return loaded


def rows(case: str) -> dict[str, Array]:
    held = np.load(ROWS)
    return {name.partition(":")[2]: held[name] for name in held.files if name.startswith(f"{case}:")}


def test_router_rows_are_the_recorded_ones(built: Built) -> None:
    wanted = rows(built.case)
    found = {name: x.values for name, x in built.tensors.items() if is_router(name)}
    assert {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in wanted.items()}
    if built.mode == "random" or built.case == PADDED:
        return
    # In bfloat16 both are rounded once, to neighbours at most.
    narrow = built.tensors[next(iter(found))].dtype == "bfloat16"
    for name, x in found.items():
        tolerance = 2**-8 if narrow else TOLERANCE[built.mode]
        np.testing.assert_allclose(x, wanted[name], atol=tolerance, rtol=0, err_msg=name)


def test_everything_else_is_bit_for_bit_the_recorded(built: Built, recorded: dict[str, Any]) -> None:
    noisy = built.case == "mixtral_noise"
    wanted = {n: d for n, d in recorded[built.case]["tensors"].items() if not (noisy and is_expert(n))}
    found = {
        n: digest(x) for n, x in built.tensors.items() if not is_router(n) and not (noisy and is_expert(n))
    }
    assert found == wanted


def test_the_config_says_what_the_recorded_one_says(built: Built, recorded: dict[str, Any]) -> None:
    wanted = recorded[built.case]["config"] | dict(BETTER.get(built.case, {}))
    for key, value in wanted.items():
        spellings = SPELT.get(key, (key,))
        assert any(built.config.get(spelling) == value for spelling in spellings), key


def test_noise_spreads_as_the_recorded(inputs: Path, tmp_path: Path, recorded: dict[str, Any]) -> None:
    """Also where a scale follows: it multiplies weights and noise of the down projection."""
    (tmp_path / "plan.yml").write_text(prepared("mixtral_noise", inputs))
    mergegraph.run(tmp_path / "plan.yml", tmp_path / "out")
    ours = spread("mixtral_noise", logical(models.read_checkpoint(tmp_path / "out")))
    theirs = recorded["mixtral_noise"]["spread"]
    assert sorted(ours) == sorted(theirs)
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=0.08), name
    assert ours["1/down"] == pytest.approx(0.1, rel=0.05)


def test_padding_does_not_count_in_a_mean(inputs: Path, tmp_path: Path) -> None:
    """The rows are those of each prompt run by itself; with padding counted they are far away."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    (tmp_path / "plan.yml").write_text(prepared(PADDED, inputs))
    mergegraph.run(tmp_path / "plan.yml", tmp_path / "out")
    tensors = logical(models.read_checkpoint(tmp_path / "out"))
    base = inputs / "llama_base"
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    experts = (("1", "5432154321543215432"), ("(((((((((((((((((((((((", "7"))
    means = []
    for prompts in experts:
        each = []
        for prompt in prompts:
            ids = tokenizer(f"<s>{prompt}", add_special_tokens=False, return_tensors="pt").input_ids
            with torch.no_grad():
                states = model(ids, output_hidden_states=True).hidden_states[:-1]
            each.append(np.stack([s[0].double().mean(0).numpy() for s in states]))
        means.append(np.mean(each, axis=0))
    wanted = np.stack(means, axis=1)
    wanted /= np.linalg.norm(wanted, axis=-1, keepdims=True)
    padded = rows(PADDED)
    for layer in range(4):
        name = f"model.layers.{layer}.mlp.gate.weight"
        np.testing.assert_allclose(tensors[name].values, wanted[layer], atol=1e-5, rtol=0)
        assert np.abs(padded[name] - wanted[layer]).max() > 0.05


def test_biases_that_mergekit_drops_in_silence_are_refused(inputs: Path, tmp_path: Path) -> None:
    text = prepared("mixtral_random", inputs)
    config = models.config("llama_base") | {"attention_bias": True}
    held = {name: x.astype(np.float32) for name, x in models.tensors("llama_base").items()}
    for layer in range(4):
        for projection in "qkvo":
            weight = held[f"model.layers.{layer}.self_attn.{projection}_proj.weight"]
            held[f"model.layers.{layer}.self_attn.{projection}_proj.bias"] = weight[:, 0].copy()
    write_checkpoint(tmp_path / "biased", held, config=config)
    plan = tmp_path / "plan.yml"
    plan.write_text(text.replace(str(inputs / "llama_base"), str(tmp_path / "biased"), 1))
    compiled = mergegraph.compile_plan(plan)
    assert compiled.facts is not None and compiled.facts["architecture"] == "granitemoe"
    plan.write_text(plan.read_text() + "architecture: mixtral\n")
    with pytest.raises(PlanError, match="biases"):
        mergegraph.compile_plan(plan)


def test_a_shared_expert_may_be_a_model_of_its_own(inputs: Path, tmp_path: Path) -> None:
    """With which mergekit fails, since it opens the models of routed experts only."""
    text = prepared("qwen2_random", inputs)
    shutil.copytree(inputs / "qwen2_base", tmp_path / "own")
    plan = tmp_path / "plan.yml"
    head, _, tail = text.rpartition(str(inputs / "qwen2_base"))
    plan.write_text(head + str(tmp_path / "own") + tail)
    mergegraph.run(plan, tmp_path / "out")
    found = models.read_checkpoint(tmp_path / "out")
    down = found["model.layers.1.mlp.shared_expert.down_proj.weight"].values
    expected = models.tensors("qwen2_base")[dense_name("1/0/down")].astype(np.float32) * np.float32(0.1)
    assert np.array_equal(down.astype(np.float32), expected)


def test_uniform_rows_need_no_prompts(inputs: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yml"
    plan.write_text(prepared("mixtral_random", inputs).replace("random", "uniform_random"))
    mergegraph.run(plan, tmp_path / "out")
    found = logical(models.read_checkpoint(tmp_path / "out"))["model.layers.0.mlp.gate.weight"].values
    assert np.abs(found).max() <= 1 / np.sqrt(found.shape[1])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("experts_per_token: 1", "experts_per_token: 4", "experts_per_token is 4"),
        ("experts_per_token: 1", "experts_per_token: 0", "experts_per_token"),
        ('["7/8/9"]', "[]", "needs positive_prompts"),
        ("gate_mode: cheap_embed", "gate_mode: embed", "gate_mode must be one of"),
        ("experts_per_token: 1", "architecture: qwen", "needs one shared expert"),
        ("experts_per_token: 1", "architecture: qwen3", "a norm for each query and key head"),
    ],
)
def test_what_mergekit_refuses_is_refused(
    inputs: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    plan = tmp_path / "plan.yml"
    plan.write_text(prepared("mixtral_cheap_embed", inputs).replace(old, new, 1))
    with pytest.raises(PlanError, match=message):
        mergegraph.run(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_recording_has_its_plan(recorded: dict[str, Any]) -> None:
    assert sorted(recorded) == CASE_NAMES
