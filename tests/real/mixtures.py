"""Small mixtures of experts of many families, made, saved and loaded by transformers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import mergegraph
from tests.real.test_moe_equality import TOKENS

EXPERTS = 6
"""No other size of the models below."""
TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
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
LOCAL = {**TINY, "num_local_experts": EXPERTS}
QWEN = {**TINY, "num_experts": EXPERTS, "moe_intermediate_size": 16, "head_dim": 8, "norm_topk_prob": True}
ROUTED = {
    **TINY,
    "n_routed_experts": EXPERTS,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_hidden_layers": 3,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
ERNIE = {"moe_num_experts": EXPERTS, "moe_k": 2, "moe_intermediate_size": 16, "moe_num_shared_experts": 1}
GEMMA = {
    "head_dim": 8,
    "global_head_dim": 8,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 96,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 8,
    "enable_moe_block": True,
    "num_experts": EXPERTS,
    "top_k_experts": 2,
    "moe_intermediate_size": 16,
}
LFM = {
    **QWEN,
    "layer_types": ["conv", "full_attention", "full_attention"],
    "num_hidden_layers": 3,
    "num_dense_layers": 1,
}
LLAMA4 = {
    **LOCAL,
    "head_dim": 8,
    "num_experts_per_tok": 1,
    "intermediate_size_mlp": 20,
    "interleave_moe_layer_step": 2,
    "num_hidden_layers": 4,
}
MIXTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("mixtral", LOCAL),
    "qwen2_moe": ("qwen2_moe", {**QWEN, "shared_expert_intermediate_size": 20}),
    "qwen3_moe": ("qwen3_moe", QWEN),
    "olmoe": ("olmoe", {**TINY, "num_experts": EXPERTS, "norm_topk_prob": True}),
    "flex_olmo": ("flex_olmo", {**TINY, "num_experts": EXPERTS}),
    "deepseek_v3": ("deepseek_v3", {**ROUTED, **LATENT}),
    "glm4_moe": ("glm4_moe", {**ROUTED, "head_dim": 8}),
    "dots1": ("dots1", {**ROUTED, "head_dim": 8}),
    "granitemoe": ("granitemoe", LOCAL),
    "granitemoeshared": ("granitemoeshared", {**LOCAL, "shared_intermediate_size": 20}),
    "ernie4_5_moe": ("ernie4_5_moe", {**TINY, **ERNIE, "moe_layer_start_index": 1}),
    "minimax_m2": ("minimax_m2", {**LOCAL, "head_dim": 8}),
    "gpt_oss": ("gpt_oss", {**LOCAL, "head_dim": 8}),
    "llama4_text": ("llama4_text", LLAMA4),
    "gemma4_text": ("gemma4_text", {**TINY, **GEMMA}),
    "hunyuan_v1_moe": ("hunyuan_v1_moe", {**QWEN, "moe_topk": 2, "moe_intermediate_size": 24}),
    "lfm2_moe": ("lfm2_moe", LFM),
    "cohere2_moe": ("cohere2_moe", {**QWEN, "layer_types": ["sliding_attention", "full_attention"]}),
}
ONE_LAYOUT = ("granitemoe", "granitemoeshared", "gpt_oss", "llama4_text", "gemma4_text")
LAYOUTS = [(n, k) for n in MIXTURES for k in (("own",) if n in ONE_LAYOUT else ("per-expert", "stacked"))]


def random_model(kind: str, values: Mapping[str, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**values)).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.2)
    for name, buffer in model.named_buffers():
        if "bias" in name:
            buffer.add_(torch.rand_like(buffer))
    return model


def load(place: Path) -> Any:
    model, info = hf.AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
    left = {key: list(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    assert not any(left.values()), left
    return model.eval()


def logits(model: Any) -> Tensor:
    found: Tensor = model(TOKENS).logits
    return found


def close(found: Tensor, expected: Tensor) -> bool:
    assert expected.isfinite().all()
    return bool((found - expected).abs().max() < 1e-4 * expected.abs().max())


def run(plan: Mapping[str, Any], out: Path, **options: Any) -> Any:
    file = out.parent / f"{out.name}.yml"
    file.write_text(json.dumps(plan))
    mergegraph.run(file, out, threads=1, **options)
    assert mergegraph.verify(out) == []
    return load(out)


def config_of(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "config.json").read_text())
    return found


def tensors_of(place: Path) -> dict[str, Tensor]:
    return {n: x for file in sorted(place.glob("*.safetensors")) for n, x in load_file(file).items()}


@dataclass(frozen=True)
class Mixture:
    """A mixture saved in every layout it has."""

    model: Any
    places: Mapping[str, Path]


class Mixtures(dict[str, Mixture]):
    """Mixtures by family, each made when it is first wanted."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    @torch.no_grad()
    def __missing__(self, name: str) -> Mixture:
        places = saved(random_model(*MIXTURES[name]), name, self.root / name)
        self[name] = Mixture(load(next(iter(places.values()))), places)
        return self[name]


def saved(model: Any, name: str, root: Path) -> dict[str, Path]:
    kinds = ("own",) if name in ONE_LAYOUT else ("per-expert", "stacked")
    for kind in kinds:
        model.save_pretrained(root / kind, save_original_format=kind != "stacked")
    return {kind: root / kind for kind in kinds}


_OTHER = re.compile(r"experts|per_layer")


def routers_of(model: Any, experts: int = EXPERTS) -> list[Tensor]:
    return [
        x
        for n, x in model.named_parameters()
        if x.ndim == 2 and len(x) == experts and ("gate" in n or "router" in n) and not _OTHER.search(n)
    ]
