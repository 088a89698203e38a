"""Merged models load with transformers and compute what the formulas say.

Checkpoints are made by `save_pretrained`, merged by `mergegraph.run`, and loaded by `from_pretrained`.
What is expected comes from a second, independent implementation: plain float64 arithmetic on whole
state dicts, written here from the papers' formulas. Logits are computed in float64 on both sides, so
what is left is the rounding of the merged weights to the output dtype, and nothing else.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

import mergegraph

LAYERS = 3
COMMON = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2 = {
    "vocab_size": 48,
    "n_embd": 16,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, tuple[type[transformers.PreTrainedConfig], dict[str, object]]] = {
    "llama": (transformers.LlamaConfig, COMMON),
    "mistral": (transformers.MistralConfig, COMMON),
    "qwen2": (transformers.Qwen2Config, {k: v for k, v in COMMON.items() if k != "head_dim"}),
    "qwen3": (transformers.Qwen3Config, COMMON),
    # A window shorter than the prompt: a wrong order of sliding and full layers changes the logits.
    "gemma2": (transformers.Gemma2Config, {**COMMON, "sliding_window": 4, "query_pre_attn_scalar": 4}),
    "gpt2": (transformers.GPT2Config, GPT2),
}
PROMPT = torch.tensor([[1, 5, 9, 13, 17, 21, 25, 29, 33, 40], [1, 46, 3, 2, 30, 4, 4, 8, 19, 11]])

State = dict[str, Tensor]
Method = Callable[[str, State, State, State], Tensor]


@dataclass(frozen=True)
class Models:
    """Three checkpoints of one shape: `a` and `b` are fine-tunes of `base`."""

    base: Path
    a: Path
    b: Path


def make(
    directory: Path, config: transformers.PreTrainedConfig, dtype: torch.dtype, seed: int, tune: int
) -> Path:
    """Save a model with the weights of `seed`, changed a little by `tune`; more than one shard."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config)
    random = torch.Generator().manual_seed(tune)
    with torch.no_grad():
        # Fresh biases are all zero and norms all one: give every element something to merge.
        for scale, generator in (
            (0.05, torch.Generator().manual_seed(seed)),
            (0.02 if tune else 0.0, random),
        ):
            for parameter in model.parameters():
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    model.to(dtype).save_pretrained(directory, max_shard_size=12_000)
    assert len(list(directory.glob("*.safetensors"))) > 1
    return directory


def make_models(directory: Path, config: transformers.PreTrainedConfig, dtype: torch.dtype) -> Models:
    base, a, b = (make(directory / n, config, dtype, 1, i) for i, n in enumerate(("base", "a", "b")))
    return Models(base, a, b)


@pytest.fixture(
    scope="module",
    params=[(family, tied) for family in FAMILIES for tied in (False, True)],
    ids=lambda x: f"{x[0]}-{'tied' if x[1] else 'untied'}",
)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    family, tied = request.param
    kind, values = FAMILIES[family]
    config = kind(**values, tie_word_embeddings=tied)
    made = make_models(tmp_path_factory.mktemp(family), config, torch.float32)
    assert ("lm_head.weight" in state(made.base)) is not tied
    return made


def state(directory: Path) -> State:
    """The stored tensors, in float64."""
    files = sorted(directory.glob("*.safetensors"))
    return {name: x.double() for path in files for name, x in load_file(path).items()}


def load(directory: Path) -> transformers.PreTrainedModel:
    """Load as users do; a tensor that is missing, left over or of another shape fails the test."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype="auto", attn_implementation="eager", output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model.eval()


def logits(model: transformers.PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model.double()(PROMPT).logits


def expected_logits(config: transformers.PreTrainedConfig, tensors: Mapping[str, Tensor]) -> Tensor:
    """Logits of a fresh model that holds `tensors`, never rounded."""
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"} and (not missing or config.tie_word_embeddings)
    return logits(model)


# ---- the formulas, once more -------------------------------------------------------------------


def linear(name: str, base: State, a: State, b: State) -> Tensor:
    """(0.3 a + 0.9 b) / 1.2"""
    return (0.3 * a[name] + 0.9 * b[name]) / 1.2


def slerp(name: str, base: State, a: State, b: State) -> Tensor:
    """Along the great circle from a to b, t = 0.35; straight where they are nearly parallel."""
    x, y, t = a[name], b[name], torch.tensor(0.35, dtype=torch.float64)
    cosine = (x * y).sum() / (x.norm() * y.norm())
    if cosine.abs() > 0.9995:
        return (1 - t) * x + t * y
    angle = torch.arccos(cosine)
    return (torch.sin((1 - t) * angle) * x + torch.sin(t * angle) * y) / torch.sin(angle)


def task_arithmetic(name: str, base: State, a: State, b: State) -> Tensor:
    """base + 0.8 (0.7 (a - base) + 0.4 (b - base))"""
    return base[name] + 0.8 * (0.7 * (a[name] - base[name]) + 0.4 * (b[name] - base[name]))


def ties(name: str, base: State, a: State, b: State) -> Tensor:
    """Trim to the largest 60 %, elect the sign of the weighted sum, average those that agree."""
    weights = (0.7, 0.4)
    trimmed = []
    for x in (a[name], b[name]):
        delta = x - base[name]
        keep = max(1, int(0.6 * delta.numel()))
        smallest = delta.abs().flatten().sort(descending=True).values[keep - 1]
        trimmed.append(torch.where(delta.abs() >= smallest, delta, 0.0))
    total = sum(w * d for w, d in zip(weights, trimmed, strict=True))
    sign = torch.where(total >= 0, 1.0, -1.0)
    agree = [(torch.sign(d) == sign).double() for d in trimmed]
    above = sum(w * m * d for w, m, d in zip(weights, agree, trimmed, strict=True))
    below = sum(w * m for w, m in zip(weights, agree, strict=True))
    return base[name] + above / torch.where(below == 0, 1.0, below)


REFERENCES: dict[str, Method] = {
    "linear": linear,
    "slerp": slerp,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
}
PLANS = {
    "linear": """
merge_method: linear
models:
  - {{model: {m.a}, parameters: {{weight: 0.3}}}}
  - {{model: {m.b}, parameters: {{weight: 0.9}}}}
""",
    "slerp": """
merge_method: slerp
base_model: {m.a}
models:
  - model: {m.a}
  - model: {m.b}
parameters: {{t: 0.35}}
""",
    "task_arithmetic": """
merge_method: task_arithmetic
base_model: {m.base}
models:
  - {{model: {m.a}, parameters: {{weight: 0.7}}}}
  - {{model: {m.b}, parameters: {{weight: 0.4}}}}
parameters: {{lambda: 0.8}}
""",
    "ties": """
merge_method: ties
base_model: {m.base}
models:
  - {{model: {m.a}, parameters: {{weight: 0.7, density: 0.6}}}}
  - {{model: {m.b}, parameters: {{weight: 0.4, density: 0.6}}}}
""",
    "passthrough": """
merge_method: passthrough
slices:
  - sources: [{{model: {m.a}, layer_range: [0, 2]}}]
  - sources: [{{model: {m.b}, layer_range: [1, 3]}}]
""",
}
STACKED = (("a", 0), ("a", 1), ("b", 1), ("b", 2))
"""Where each layer of the passthrough plan comes from."""


def merge(method: str, models: Models, directory: Path) -> Path:
    plan = directory / "plan.yml"
    plan.write_text(PLANS[method].format(m=models))
    mergegraph.run(plan, directory / "merged")
    return directory / "merged"


@pytest.mark.parametrize("method", REFERENCES)
def test_a_merge_computes_what_the_formula_says(method: str, models: Models, tmp_path: Path) -> None:
    out = merge(method, models, tmp_path)

    states = [state(path) for path in (models.base, models.a, models.b)]
    wanted = {name: REFERENCES[method](name, *states) for name in states[0]}
    written = state(out)
    assert written.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            written[name], tensor, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )
    merged = load(out)
    config = transformers.AutoConfig.from_pretrained(models.base)
    torch.testing.assert_close(logits(merged), expected_logits(config, wanted), rtol=1e-5, atol=1e-5)


def test_stacked_layers_compute_what_the_same_layers_in_a_row_compute(models: Models, tmp_path: Path) -> None:
    out = merge("passthrough", models, tmp_path)

    config = transformers.AutoConfig.from_pretrained(models.a)
    wanted = stack({"a": state(models.a), "b": state(models.b)})
    written = state(out)
    assert written.keys() == wanted.keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in wanted.items())
    torch.testing.assert_close(
        logits(load(out)), expected_logits(deepen(config), wanted), rtol=1e-9, atol=1e-9
    )


def stack(states: Mapping[str, State]) -> State:
    """The layers of `STACKED`; what stands before them is from the first source, after from the last."""
    layer = re.compile(r"^(.*?\.)(\d+)(\..*)$")
    stacked: State = {}
    for name, tensor in states["a"].items():
        match = layer.match(name)
        if match is None:
            after = name.startswith(("lm_head.", "model.norm.", "transformer.ln_f."))
            stacked[name] = states["b"][name] if after else tensor
        elif int(match[2]) == 0:
            for number, (source, index) in enumerate(STACKED):
                stacked[f"{match[1]}{number}{match[3]}"] = states[source][f"{match[1]}{index}{match[3]}"]
    return stacked


def deepen(config: transformers.PreTrainedConfig) -> transformers.PreTrainedConfig:
    """The config of the stacked model: as many layers, each of its source's type."""
    deeper = copy.deepcopy(config)
    deeper.num_hidden_layers = len(STACKED)
    if getattr(config, "layer_types", None):
        deeper.layer_types = [config.layer_types[index] for _, index in STACKED]
    return deeper


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", REFERENCES)
def test_narrow_dtypes_are_rounded_once_at_the_end(method: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Within half a unit in the last place of the exact result: no intermediate value was narrow."""
    config = transformers.LlamaConfig(**COMMON, tie_word_embeddings=False)
    models = make_models(tmp_path, config, dtype)

    out = merge(method, models, tmp_path)

    states = [state(path) for path in (models.base, models.a, models.b)]
    written = state(out)
    half = torch.finfo(dtype).eps / 2
    for name, tensor in written.items():
        wanted = REFERENCES[method](name, *states)
        assert torch.equal(tensor.to(dtype).double(), tensor)
        torch.testing.assert_close(tensor, wanted, rtol=half * 1.0001, atol=1e-7)
    assert next(load(out).parameters()).dtype == dtype
    assert torch.isfinite(logits(load(out))).all()


def test_a_model_merged_with_itself_is_itself(models: Models, tmp_path: Path) -> None:
    same = Models(models.a, models.a, tmp_path / "copy")
    same.b.symlink_to(models.a)
    before = state(models.a)
    for method in ("slerp", "task_arithmetic", "ties"):
        (tmp_path / method).mkdir()
        after = state(merge(method, same, tmp_path / method))
        for name, tensor in before.items():
            # One rounding of float32: x (1 - t) + x t need not be x to the last bit.
            torch.testing.assert_close(after[name], tensor, rtol=2.5e-7, atol=1e-8)


def test_tied_and_untied_models_can_be_told_apart_in_the_result(models: Models, tmp_path: Path) -> None:
    before = transformers.AutoConfig.from_pretrained(models.base)
    merged = load(merge("linear", models, tmp_path))
    assert merged.config.tie_word_embeddings is before.tie_word_embeddings
    shared = (
        merged.get_input_embeddings().weight.data_ptr() == merged.get_output_embeddings().weight.data_ptr()
    )
    assert shared is before.tie_word_embeddings
