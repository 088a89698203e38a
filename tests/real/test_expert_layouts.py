"""Mixtures of experts as transformers saves them, in both layouts, merge into models that it loads.

Each model is saved twice: with the names that its family is published under, and with the stacked ones
that it runs with. Whatever is merged with whatever, the logits are those of the models' averaged
parameters, computed in float64 on whole state dicts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import mergegraph

COMMON = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "num_experts_per_tok": 2,
}
ROUTED = {
    "n_routed_experts": 4,
    "moe_intermediate_size": 12,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 4,
    "num_key_value_heads": 4,
}
SHARED = {"num_experts": 4, "moe_intermediate_size": 12, "shared_expert_intermediate_size": 8}
FAMILIES: dict[str, dict[str, Any]] = {
    "MixtralConfig": COMMON | {"num_local_experts": 4},
    "Qwen2MoeConfig": COMMON | SHARED,
    "Qwen3MoeConfig": COMMON | {"head_dim": 4, "num_experts": 4, "moe_intermediate_size": 12},
    "DeepseekV3Config": COMMON | ROUTED | LATENT,
    "Glm4MoeConfig": COMMON | ROUTED | {"head_dim": 4},
    "OlmoeConfig": COMMON | {"num_experts": 4},
    "MiniMaxM2Config": COMMON | {"head_dim": 4, "num_local_experts": 4},
    "PhimoeConfig": COMMON | {"num_local_experts": 4},
    "Ernie4_5_MoeConfig": COMMON
    | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 12, "moe_num_shared_experts": 1},
    "GraniteMoeConfig": COMMON | {"num_local_experts": 4},
    "GptOssConfig": COMMON | {"head_dim": 4, "num_local_experts": 4},
    "Llama4TextConfig": COMMON
    | {
        "head_dim": 4,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 20,
        "interleave_moe_layer_step": 2,
    },
}
PROMPT = torch.tensor([[1, 5, 9, 13, 17, 21, 25, 29], [1, 46, 3, 2, 30, 4, 4, 8]])
WEIGHTS = (0.6, 0.7)
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
"""What computes in float64, too."""


@dataclass(frozen=True)
class Family:
    """A directory with models ``a`` and ``b`` below ``own/`` and ``stacked/``, and the averaged logits."""

    root: Path
    averaged: Tensor


def make(config: transformers.PreTrainedConfig, tune: int) -> transformers.PreTrainedModel:
    """A model in which every parameter, and every balancing bias, has something to merge."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(config, **EAGER)
    random = torch.Generator().manual_seed(tune)
    balance = [x for name, x in model.named_buffers() if "correction_bias" in name]
    with torch.no_grad():
        for x in (*model.parameters(), *balance):
            x += 0.05 * torch.randn(x.shape, generator=random)
    return model.eval()


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    root = tmp_path_factory.mktemp(request.param)
    config = getattr(transformers, request.param)(**FAMILIES[request.param])
    models = [make(config, tune) for tune in (1, 2)]
    for name, model in zip("ab", models, strict=True):
        model.save_pretrained(root / "own" / name)
        model.save_pretrained(root / "stacked" / name, save_original_format=False)
    first, second = (model.double().state_dict() for model in models)
    total = sum(WEIGHTS)
    averaged = {n: (WEIGHTS[0] * x + WEIGHTS[1] * second[n]) / total for n, x in first.items()}
    models[0].load_state_dict(averaged)
    return Family(root, logits(models[0]))


def logits(model: transformers.PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model.double()(PROMPT).logits


def merge(family: Family, out: Path, *models: str, method: str = "linear", **changes: Any) -> Path:
    plan = out.with_suffix(".yml")
    listed = [
        {"model": str(family.root / name), "parameters": {"weight": weight}}
        for name, weight in zip(models, WEIGHTS, strict=False)
    ]
    plan.write_text(json.dumps({"merge_method": method, "models": listed} | changes))
    compiled = mergegraph.compile_plan(plan, threads=2)
    assert compiled.report.partial == () and compiled.report.dropped == ()
    mergegraph.run(compiled, out)
    assert mergegraph.verify(out) == []
    return out


def load(directory: Path) -> transformers.PreTrainedModel:
    """Load as users do; a tensor that is missing, left over or of another shape fails the test."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype="auto", output_loading_info=True, **EAGER
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def stored(directory: Path) -> dict[str, Tensor]:
    return {n: x for path in directory.glob("*.safetensors") for n, x in load_file(path).items()}


COMBINATIONS = [("own", "own"), ("own", "stacked"), ("stacked", "own"), ("stacked", "stacked")]


@pytest.mark.parametrize("layouts", COMBINATIONS, ids="-".join)
def test_any_mixture_of_layouts_loads_and_computes_the_average(
    family: Family, tmp_path: Path, layouts: tuple[str, str]
) -> None:
    out = merge(family, tmp_path / "out", f"{layouts[0]}/a", f"{layouts[1]}/b")
    model = load(out)
    assert (logits(model) - family.averaged).abs().max() < 1e-5 * family.averaged.abs().max()
    if layouts[0] == layouts[1]:
        assert stored(out).keys() == stored(family.root / layouts[0] / "a").keys()


@pytest.mark.parametrize("method", ["slerp", "ties"])
def test_statistics_do_not_depend_on_the_layout(family: Family, tmp_path: Path, method: str) -> None:
    found = []
    for number, layouts in enumerate(COMBINATIONS):
        base = str(family.root / layouts[0] / "a")
        settings = {"t": 0.4} if method == "slerp" else {"weight": 1.0, "density": 0.5}
        listed = [{"model": str(family.root / layouts[1] / "b")}]
        out = tmp_path / f"out{number}"
        merge(family, out, method=method, base_model=base, models=listed, parameters=settings)
        found.append(logits(load(out)))
    assert all(torch.equal(found[0], x) for x in found[1:])


@pytest.mark.parametrize("layout", ["own", "stacked"])
def test_a_model_that_passes_through_is_itself(family: Family, tmp_path: Path, layout: str) -> None:
    out = merge(
        family,
        tmp_path / "out",
        f"{layout}/b",
        method="passthrough",
        models=[{"model": str(family.root / layout / "b")}],
    )
    before, after = stored(family.root / layout / "b"), stored(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(x, after[n]) and x.dtype is after[n].dtype for n, x in before.items())
    load(out)
