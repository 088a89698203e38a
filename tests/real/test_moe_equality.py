"""Mixtures of equal experts compute what their dense model does, loaded by transformers.

Tiny dense models with random weights are saved, the recipe is carried out on their files, and what
comes out is loaded without a missing or an unexpected tensor. Routers are random wherever the family
allows it, so all experts are used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from mergegraph.architectures import moe_family
from mergegraph.architectures.dense import Dense, body_of
from mergegraph.architectures.dense_recipe import Chosen, dense_recipe
from mergegraph.architectures.fit import fitting
from mergegraph.architectures.moe import Layout, Options, Recipe
from mergegraph.architectures.recipe import recipe
from mergegraph.tensorspec import TensorSpec, dtype_from_torch_name
from tests.architectures.baking import bake

EXPERTS = 4
TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEADS = {**TINY, "head_dim": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 5000.0,
    "short_factor": [1.0, 1.5, 2.0, 2.5],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
}
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "original_max_position_embeddings": 64}
MLA = {
    **TINY,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "first_k_dense_replace": 2,
}
SLIDING = ["sliding_attention", "full_attention"]
QWEN35 = {
    **HEADS,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
GEMMA4 = {
    **HEADS,
    "global_head_dim": 16,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 96,
    "layer_types": SLIDING,
    "sliding_window": 8,
}
MULTIPLIERS = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.7,
    "logits_scaling": 2.0,
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", TINY),
    "llama-heads": ("llama", {**HEADS, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}),
    "llama-llama3": ("llama", {**TINY, "rope_parameters": LLAMA3}),
    "llama-tied": ("llama", {**TINY, "tie_word_embeddings": True}),
    "llama-biased": ("llama", {**HEADS, "attention_bias": True}),
    "mistral": ("mistral", {**TINY, "sliding_window": None}),
    "mistral-window": ("mistral", {**TINY, "sliding_window": 8}),
    "ministral-window": ("ministral", {**HEADS, "sliding_window": 8, "layer_types": SLIDING[:1] * 2}),
    "ministral-mixed": ("ministral", {**HEADS, "sliding_window": 8, "layer_types": SLIDING}),
    "ministral3": ("ministral3", {**HEADS, "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1}}),
    "phi3": ("phi3", {**TINY, "sliding_window": 8}),
    "phi3-long": (
        "phi3",
        {
            **TINY,
            "rope_parameters": LONG,
            "max_position_embeddings": 64,
            "original_max_position_embeddings": 16,
        },
    ),
    "phi3-partial": (
        "phi3",
        {**HEADS, "rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5}},
    ),
    "gemma": ("gemma", HEADS),
    "ernie4_5": ("ernie4_5", HEADS),
    "helium": ("helium", {**HEADS, "head_dim": 8}),
    "qwen2": ("qwen2", TINY),
    "qwen2-mixed": (
        "qwen2",
        {**TINY, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "seed_oss": ("seed_oss", HEADS),
    "qwen3": ("qwen3", HEADS),
    "qwen3-biased-tied": ("qwen3", {**HEADS, "attention_bias": True, "tie_word_embeddings": True}),
    "qwen3-window": (
        "qwen3",
        {**HEADS, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0},
    ),
    "qwen3-mixed": (
        "qwen3",
        {**HEADS, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    ),
    "glm": ("glm", HEADS),
    "granite": ("granite", {**TINY, **MULTIPLIERS}),
    "granite-biased": ("granite", {**TINY, **MULTIPLIERS, "attention_bias": True}),
    "smollm3": ("smollm3", {**TINY, "no_rope_layer_interval": 2}),
    "olmo2": ("olmo2", {**TINY, "rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
    "olmo3-full": ("olmo3", {**TINY, "layer_types": SLIDING[1:] * 2}),
    "cohere2": ("cohere2", {**HEADS, "sliding_window": 8, "layer_types": SLIDING}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", HEADS),
    "lfm2": ("lfm2", {**TINY, "layer_types": ["conv", "full_attention"], "block_multiple_of": 16}),
    "qwen3_5_text": ("qwen3_5_text", QWEN35),
    "gemma4_text": ("gemma4_text", GEMMA4),
    "deepseek_v2": ("deepseek_v2", MLA),
    "deepseek_v3": ("deepseek_v3", MLA),
    "jamba": (
        "jamba",
        {
            **TINY,
            "num_experts": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "use_mamba_kernels": False,
        },
    ),
}
VISION = {
    "depth": 1,
    "hidden_size": 16,
    "out_hidden_size": 32,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 1,
    "num_position_embeddings": 16,
}
WRAPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5": ("qwen3_5", {"text_config": QWEN35, "vision_config": VISION}),
    "gemma4": ("gemma4", {"text_config": GEMMA4}),
}
GRANITE = ("granitemoe", "granitemoehybrid", "granitemoeshared")
PLAIN = ("mixtral", "qwen2_moe", "glm4_moe", *GRANITE, "ernie4_5_moe", "llama4_text")
HELD_BY: dict[str, tuple[str, ...]] = {
    "llama": PLAIN,
    "llama-heads": PLAIN,
    "llama-llama3": PLAIN,
    "llama-tied": PLAIN,
    "llama-biased": (*GRANITE, "llama4_text"),
    "mistral": PLAIN,
    "mistral-window": ("mixtral", "qwen2_moe"),
    "ministral-window": ("mixtral", "qwen2_moe"),
    "ministral-mixed": ("qwen2_moe",),
    "ministral3": PLAIN,
    "phi3": ("mixtral", "qwen2_moe"),
    "phi3-long": PLAIN,
    "phi3-partial": ("glm4_moe",),
    "gemma": ("mixtral",),
    "ernie4_5": PLAIN,
    "helium": PLAIN,
    "qwen2": ("qwen2_moe", "glm4_moe", *GRANITE, "llama4_text"),
    "qwen2-mixed": ("qwen2_moe",),
    "seed_oss": ("qwen2_moe", "glm4_moe", *GRANITE, "llama4_text"),
    "qwen3": ("qwen3_moe", "dots1", "glm4_moe"),
    "qwen3-biased-tied": ("qwen3_moe", "dots1"),
    "qwen3-window": ("qwen3_moe", "dots1"),
    "qwen3-mixed": ("dots1",),
    "glm": ("glm4_moe",),
    "granite": GRANITE,
    "granite-biased": GRANITE,
    "smollm3": ("llama4_text",),
    "olmo2": ("flex_olmo",),
    "olmo3-full": ("flex_olmo",),
    "cohere2": ("cohere2_moe",),
    "hunyuan_v1_dense": ("hunyuan_v1_moe",),
    "lfm2": ("lfm2_moe",),
    "qwen3_5_text": ("qwen3_5_moe_text",),
    "gemma4_text": ("gemma4_text",),
    "deepseek_v2": ("deepseek_v2",),
    "deepseek_v3": ("deepseek_v3",),
    "jamba": ("jamba",),
}
ALIKE = ("llama-tied", "mistral", "ministral3", "phi3-long", "helium")
"""Variants that are a Llama to whatever holds them: some of the families say enough."""
REMOTE = "deepseek"
"""Its code is not part of transformers, so nothing here can load it."""
TOKENS = torch.from_numpy(np.random.default_rng(5).integers(3, 96, (2, 40)))


class Model:
    """A dense model on disk, and what it computes."""

    @torch.no_grad()
    def __init__(self, variant: str, place: Path) -> None:
        kind, values = {**VARIANTS, **WRAPPED}[variant]
        self.auto = hf.AutoModelForImageTextToText if variant in WRAPPED else hf.AutoModelForCausalLM
        torch.manual_seed(sum(map(ord, variant)))
        model = self.auto.from_config(CONFIG_MAPPING[kind](**values)).eval()
        for parameter in model.parameters():
            # Gemma 4's last norm absorbs scales up to its epsilon, so MLPs must not be tiny.
            spread = 0.3 if parameter.ndim < 2 or kind.startswith("gemma4") else 0.1
            parameter.add_(torch.randn_like(parameter) * spread)
        self.place, self.kind = place, type(model).__name__
        model.save_pretrained(place)
        self.logits = model(input_ids=TOKENS).logits
        self.config = json.loads((place / "config.json").read_text())
        self.tensors = load_file(place / "model.safetensors")
        self.weights = {n: t.double().numpy() for n, t in self.tensors.items()}
        self.dense = Dense(self.config, {n: _spec(t) for n, t in self.tensors.items()})


def _spec(tensor: torch.Tensor) -> TensorSpec:
    dtype = dtype_from_torch_name(str(tensor.dtype))
    assert dtype is not None
    return TensorSpec(tuple(tensor.shape), dtype)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Model]:
    made: dict[str, Model] = {}

    class Made(dict[str, Model]):
        def __missing__(self, variant: str) -> Model:
            self[variant] = Model(variant, tmp_path_factory.mktemp(variant))
            return self[variant]

    return Made(made)


def pairs() -> list[tuple[str, str, Layout | None]]:
    """Every family with every variant it can hold, in every layout it has."""
    found: list[tuple[str, str, Layout | None]] = []
    for variant, names in HELD_BY.items():
        for name in names[:3] if variant in ALIKE else names:
            family = moe_family(name)
            assert family is not None
            found.append((variant, name, None))
            if family.names.per_expert and family.names.stacked_down is not None and name == names[0]:
                found.append((variant, name, "stacked"))
    return found


def load(
    made: Recipe,
    tensors: Mapping[str, np.ndarray[Any, Any]],
    place: Path,
    dtype: torch.dtype,
    auto: Any = hf.AutoModelForCausalLM,
) -> Any:
    forced = {t.name: t.dtype for t in made.tensors}
    stored = {
        n: torch.from_numpy(np.ascontiguousarray(x)).to(torch.float32 if forced[n] is not None else dtype)
        for n, x in tensors.items()
    }
    save_file(stored, place / "model.safetensors", metadata={"format": "pt"})
    (place / "config.json").write_text(json.dumps(made.config))
    model, info = auto.from_pretrained(place, dtype=dtype, output_loading_info=True)
    left = {key: list(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    assert not any(left.values()), left
    return model.eval()


def options_for(name: str, layout: Layout | None = None, zero: bool = False) -> Options:
    family = moe_family(name)
    assert family is not None
    active = EXPERTS if family.exact == "all active" else 2
    needs = family.shared is not None and family.shared.absent == "refused"
    return Options(EXPERTS, active, int(needs), layout, zero or family.exact == "zero router")


def built(model: Model, name: str, options: Options) -> tuple[Recipe, dict[str, np.ndarray[Any, Any]]]:
    family = moe_family(name)
    assert family is not None
    shared = [model.dense] * options.shared
    made = recipe(family, model.dense, [model.dense], shared, options)
    assert isinstance(made, Recipe), made
    tensors = bake(made, model.weights, [model.weights], [model.weights])
    for tensor in tensors:
        if options.shared and "shared_expert.down_proj" in tensor:  # what residual_scale: 0 does
            tensors[tensor] = tensors[tensor] * 0
    return made, tensors


def difference(model: Model, name: str, options: Options, place: Path) -> float:
    made, tensors = built(model, name, options)
    logits = load(made, tensors, place, torch.float32)(TOKENS).logits
    return float((logits - model.logits).abs().max() / model.logits.abs().max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_dense_model_is_held_by_these_families_and_no_others(
    models: Mapping[str, Model], variant: str
) -> None:
    body = body_of(models[variant].dense)
    assert body is not None
    able = [f.name for f in fitting(body) if f.name != REMOTE]
    assert sorted(able) == sorted(HELD_BY[variant])


@pytest.mark.parametrize(("variant", "name", "layout"), pairs())
def test_equal_experts_compute_what_the_dense_model_does(
    models: Mapping[str, Model], tmp_path: Path, variant: str, name: str, layout: Layout | None
) -> None:
    assert difference(models[variant], name, options_for(name, layout), tmp_path) < 1e-4


@pytest.mark.parametrize(("variant", "name"), [("qwen3_5", "qwen3_5_moe_text"), ("gemma4", "gemma4_text")])
def test_the_language_model_of_a_multimodal_one_becomes_a_mixture_in_place(
    models: Mapping[str, Model], tmp_path: Path, variant: str, name: str
) -> None:
    model = models[variant]
    made, tensors = built(model, name, options_for(name))
    logits = load(made, tensors, tmp_path, torch.float32, model.auto)(input_ids=TOKENS).logits
    assert (logits - model.logits).abs().max() < 1e-4 * model.logits.abs().max()


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("llama", "qwen2_moe"),
        ("qwen3", "qwen3_moe"),
        ("qwen3", "dots1"),
        ("phi3-partial", "glm4_moe"),
        ("ernie4_5", "ernie4_5_moe"),
        ("lfm2", "lfm2_moe"),
        ("llama", "llama4_text"),
        ("deepseek_v2", "deepseek_v2"),
        ("deepseek_v3", "deepseek_v3"),
    ],
)
def test_a_layer_may_stay_dense(models: Mapping[str, Model], tmp_path: Path, variant: str, name: str) -> None:
    options = replace(options_for(name), keep_dense_layers=1)
    assert difference(models[variant], name, options, tmp_path) < 1e-4


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("llama", "mixtral"),
        ("llama", "glm4_moe"),
        ("qwen2", "qwen2_moe"),
        ("qwen3", "qwen3_moe"),
        ("granite", "granitemoe"),
        ("ernie4_5", "ernie4_5_moe"),
        ("olmo2", "flex_olmo"),
        ("cohere2", "cohere2_moe"),
    ],
)
def test_in_bfloat16_zero_routers_change_no_bit(
    models: Mapping[str, Model], tmp_path: Path, variant: str, name: str
) -> None:
    model = models[variant]
    made, tensors = built(model, name, options_for(name, zero=True))
    (tmp_path / "moe").mkdir()
    logits = load(made, tensors, tmp_path / "moe", torch.bfloat16)(TOKENS).logits
    dense = hf.AutoModelForCausalLM.from_pretrained(model.place, dtype=torch.bfloat16).eval()
    assert torch.equal(logits, dense(TOKENS).logits)


@pytest.mark.parametrize("name", ["glm4_moe", "ernie4_5_moe", "qwen2_moe", "granitemoeshared", "llama4_text"])
def test_a_shared_expert_adds_its_output(models: Mapping[str, Model], tmp_path: Path, name: str) -> None:
    """The MLP twice, once routed and once shared, is one with twice the output; halved it is the model."""
    model = models["llama"]
    family = moe_family(name)
    assert family is not None
    options = replace(options_for(name), shared=1)
    made = recipe(family, model.dense, [model.dense], [model.dense], options)
    assert isinstance(made, Recipe), made
    halved = {n: x / 2 if "down_proj" in n else x for n, x in model.weights.items()}
    always = model.weights if name == "qwen2_moe" else halved  # behind a sigmoid of zero
    tensors = bake(made, model.weights, [halved], [always])
    logits = load(made, tensors, tmp_path, torch.float32)(TOKENS).logits
    assert (logits - model.logits).abs().max() < 1e-4 * model.logits.abs().max()


@pytest.mark.parametrize(
    ("variant", "name", "layout"),
    [
        ("llama-llama3", "mixtral", "per-expert"),
        ("mistral-window", "mixtral", "per-expert"),
        ("qwen2-mixed", "qwen2_moe", "per-expert"),
        ("qwen3-biased-tied", "qwen3_moe", "stacked"),
        ("qwen3-window", "qwen3_moe", "per-expert"),
        ("qwen3-mixed", "dots1", "per-expert"),
        ("qwen3", "glm4_moe", "per-expert"),
        ("qwen2", "glm4_moe", "stacked"),
        ("llama-heads", "glm4_moe", "per-expert"),
        ("granite-biased", "granitemoe", "stacked"),
        ("granite", "granitemoeshared", "stacked"),
        ("granite", "granitemoehybrid", "stacked"),
        ("olmo2", "flex_olmo", "per-expert"),
        ("ernie4_5", "ernie4_5_moe", "per-expert"),
        ("cohere2", "cohere2_moe", "per-expert"),
        ("hunyuan_v1_dense", "hunyuan_v1_moe", "stacked"),
        ("lfm2", "lfm2_moe", "per-expert"),
        ("qwen3_5_text", "qwen3_5_moe_text", "per-expert"),
        ("deepseek_v2", "deepseek_v2", "per-expert"),
        ("deepseek_v3", "deepseek_v3", "stacked"),
        ("jamba", "jamba", "per-expert"),
    ],
)
def test_one_of_equal_experts_is_the_dense_model_again(
    models: Mapping[str, Model], tmp_path: Path, variant: str, name: str, layout: Layout
) -> None:
    """The mixture goes through transformers, which spells its config in its own way."""
    family = moe_family(name)
    assert family is not None
    model = models[variant]
    kept = 1 if variant == "qwen3" else 0
    made, tensors = built(model, name, replace(options_for(name), keep_dense_layers=kept))
    loaded = load(made, tensors, tmp_path, torch.float32)
    loaded.save_pretrained(tmp_path / "moe", save_original_format=layout == "per-expert")
    config = json.loads((tmp_path / "moe" / "config.json").read_text())
    stored = load_file(tmp_path / "moe" / "model.safetensors")
    moe = Dense(config, {n: _spec(t) for n, t in stored.items()})
    again = dense_recipe(family, moe, [Chosen(2)])
    assert isinstance(again, Recipe), again
    weights = {n: t.double().numpy() for n, t in stored.items()}
    (tmp_path / "dense").mkdir()
    dense = load(again, bake(again, weights, [], []), tmp_path / "dense", torch.float32)
    assert type(dense).__name__ == model.kind
    assert (dense(TOKENS).logits - model.logits).abs().max() < 1e-4 * model.logits.abs().max()
