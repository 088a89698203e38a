"""Real tensor names and configs of many families, from models that transformers builds without memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as hf

BODY = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD = {**BODY, "head_dim": 4}
OLD = {"vocab_size": 48, "n_embd": 16, "n_layer": 4, "n_head": 4, "n_positions": 64}
BLOOM = {"vocab_size": 48, "hidden_size": 16, "n_layer": 4, "n_head": 4}
MPT = {"vocab_size": 48, "d_model": 16, "n_layers": 4, "n_heads": 4, "max_seq_len": 64}
OPT = {
    "vocab_size": 48,
    "hidden_size": 16,
    "ffn_dim": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 8,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
NEO = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_layers": 4,
    "num_heads": 4,
    "attention_types": [[["global", "local"], 2]],
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {**HEAD, "num_local_experts": 4}
SEQ2SEQ = {
    "vocab_size": 48,
    "d_model": 16,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5 = {"vocab_size": 48, "d_model": 16, "d_ff": 24, "d_kv": 4, "num_heads": 4, "num_layers": 4}
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "image_size": 32,
    "patch_size": 16,
}

CAUSAL: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, HEAD),
    "mistral": (hf.MistralConfig, HEAD),
    "qwen2": (hf.Qwen2Config, BODY),
    "qwen3": (hf.Qwen3Config, HEAD),
    "gemma": (hf.GemmaConfig, HEAD),
    "gemma2": (hf.Gemma2Config, HEAD),
    "gemma3_text": (hf.Gemma3TextConfig, {**HEAD, "sliding_window": 4, "_sliding_window_pattern": 2}),
    "phi": (hf.PhiConfig, BODY),
    "phi3": (hf.Phi3Config, BODY),
    "gpt2": (hf.GPT2Config, {**OLD, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt_neo": (hf.GPTNeoConfig, NEO),
    "gpt_neox": (hf.GPTNeoXConfig, BODY),
    "opt": (hf.OPTConfig, OPT),
    "falcon": (hf.FalconConfig, {k: v for k, v in BODY.items() if k != "intermediate_size"}),
    "bloom": (hf.BloomConfig, BLOOM),
    "mpt": (hf.MptConfig, MPT),
    "stablelm": (hf.StableLmConfig, BODY),
    "starcoder2": (hf.Starcoder2Config, BODY),
    "olmo2": (hf.Olmo2Config, BODY),
    "cohere2": (hf.Cohere2Config, {**HEAD, "sliding_window": 4}),
    "granite": (hf.GraniteConfig, BODY),
    "smollm3": (hf.SmolLM3Config, BODY),
    "mixtral": (hf.MixtralConfig, EXPERTS),
    "llama4_text": (hf.Llama4TextConfig, {**EXPERTS, "intermediate_size_mlp": 24}),
    "mamba": (hf.MambaConfig, {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 4, "state_size": 4}),
    "lfm2": (hf.Lfm2Config, BODY),
}
OTHERS: dict[str, tuple[Any, dict[str, Any], Any]] = {
    "bert": (hf.BertConfig, BODY, hf.BertForMaskedLM),
    "roberta": (hf.RobertaConfig, BODY, hf.RobertaForMaskedLM),
    "t5": (hf.T5Config, T5, hf.T5ForConditionalGeneration),
    "bart": (hf.BartConfig, SEQ2SEQ, hf.BartForConditionalGeneration),
    "whisper": (hf.WhisperConfig, SEQ2SEQ, hf.WhisperForConditionalGeneration),
    "llava": (
        hf.LlavaConfig,
        {
            "text_config": {**HEAD, "model_type": "llama"},
            "vision_config": {**VIT, "model_type": "clip_vision_model"},
        },
        hf.LlavaForConditionalGeneration,
    ),
    "gemma3": (
        hf.Gemma3Config,
        {"text_config": HEAD, "vision_config": VIT},
        hf.Gemma3ForConditionalGeneration,
    ),
    "qwen2_5_vl": (
        hf.Qwen2_5_VLConfig,
        {
            "text_config": {**BODY, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
            "vision_config": {
                "depth": 6,
                "hidden_size": 16,
                "out_hidden_size": 16,
                "intermediate_size": 24,
                "num_heads": 4,
            },
        },
        hf.Qwen2_5_VLForConditionalGeneration,
    ),
}
ALL = (*CAUSAL, *OTHERS)


@dataclass(frozen=True)
class Made:
    """A family's tensors as transformers names them in memory, and its ``config.json``."""

    shapes: dict[str, tuple[int, ...]]
    config: dict[str, Any]


def config_of(family: str) -> Any:
    """The family's small config."""
    kind, values = CAUSAL[family] if family in CAUSAL else OTHERS[family][:2]
    return kind(**values)


def shapes_of(family: str, config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model with `config`; the tensor that a tied head repeats appears once."""
    with torch.device("meta"):
        if family in CAUSAL:
            model = hf.AutoModelForCausalLM.from_config(config)
        else:
            model = OTHERS[family][2](config)
    model.tie_weights()
    seen: dict[int, str] = {}
    shapes = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen[id(tensor)] = name
            shapes[name] = tuple(tensor.shape)
    return shapes


@cache
def family(name: str) -> Made:
    """Names, shapes and saved config of a family's model with four layers."""
    config = config_of(name)
    saved = json.loads(config.to_json_string(use_diff=False))
    return Made(shapes_of(name, config), saved)
