"""Dense families as data: what their models have, and what their classes assume if a config is silent.

A key that ``config.json`` leaves out has the value that the dense family's class gives it, and the class
of a mixture may give it another: so every value that the forward pass depends on stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Windows = Literal["none", "all", "after", "but every fourth"]
"""Where attention slides if there is a window and ``layer_types`` does not say: nowhere; in all layers; in
those from ``max_window_layers`` on; in all but every fourth."""


@dataclass(frozen=True, slots=True)
class DenseFamily:
    """A dense family.

    Attributes:
        model_types: the config's ``model_type`` values it covers.
        has: its traits, beside those that depend on the config.
        defaults: values of its class for config keys.
        theta: its class's rotary base; None: no rotary embedding.
        rotated: the part of each head that is rotated.
        interleaved: rotated rows are paired with their neighbours, not half the rows apart.
        windows: where its attention slides.
        mlp: names of the gate, up and down projections in a layer.
        fused_mlp: name of a projection that holds gate rows, then up rows.
        fused_qkv: name of a projection that holds query, key and value rows.
        biased: its class has attention biases if the config does not say.
        prefers: mixtures that fit it best, the best first.
        wrapped: model types of multimodal models that hold one.
    """

    model_types: tuple[str, ...]
    has: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    theta: float | None = 10000.0
    rotated: float = 1.0
    interleaved: bool = False
    windows: Windows = "none"
    mlp: tuple[str, str, str] = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
    fused_mlp: str | None = None
    fused_qkv: str | None = None
    biased: bool = False
    prefers: tuple[str, ...] = ()
    wrapped: tuple[str, ...] = ()


def _values(bos: int | None, eos: Any, pad: int | None, positions: int, **more: Any) -> dict[str, Any]:
    return {
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "max_position_embeddings": positions,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.02,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        **more,
    }


_FEED_FORWARD = (
    "feed_forward.gate_proj.weight",
    "feed_forward.up_proj.weight",
    "feed_forward.down_proj.weight",
)
_GRANITE = {
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
_GLM_END = [151329, 151336, 151338]
_MISTRAL = ("mixtral",)

DENSE: tuple[DenseFamily, ...] = (
    DenseFamily(("llama",), defaults=_values(1, 2, None, 2048), prefers=("mixtral",)),
    DenseFamily(
        ("mistral",),
        defaults=_values(1, 2, None, 131072, sliding_window=4096),
        windows="all",
        prefers=_MISTRAL,
    ),
    DenseFamily(
        ("ministral",),
        defaults=_values(1, 2, None, 131072, sliding_window=4096),
        windows="all",
        prefers=_MISTRAL,
    ),
    DenseFamily(
        ("ministral3",),
        defaults=_values(1, 2, 11, 262144, rms_norm_eps=1e-5, head_dim=128, sliding_window=None),
        theta=1e6,
        windows="all",
        prefers=_MISTRAL,
    ),
    DenseFamily(
        ("phi3",),
        defaults=_values(1, 32000, 32000, 4096, rms_norm_eps=1e-5, sliding_window=None),
        windows="all",
        fused_mlp="mlp.gate_up_proj.weight",
        fused_qkv="self_attn.qkv_proj.weight",
        prefers=_MISTRAL,
    ),
    DenseFamily(
        ("gemma",),
        ("scaled_embedding",),
        _values(2, 1, 0, 8192, hidden_act="gelu_pytorch_tanh", head_dim=256, tie_word_embeddings=True),
        prefers=("mixtral",),
    ),
    DenseFamily(
        ("ernie4_5",),
        defaults=_values(1, 2, 0, 131072, rms_norm_eps=1e-5, head_dim=128, tie_word_embeddings=True),
        theta=500000.0,
        interleaved=True,
        prefers=("ernie4_5_moe",),
    ),
    DenseFamily(
        ("helium",),
        defaults=_values(1, 2, 3, 4096, rms_norm_eps=1e-8, head_dim=128),
        theta=100000.0,
        interleaved=True,
        prefers=("mixtral",),
    ),
    DenseFamily(
        ("qwen2",),
        defaults=_values(
            None, None, None, 32768, use_sliding_window=False, sliding_window=4096, max_window_layers=28
        ),
        windows="after",
        biased=True,
        prefers=("qwen2_moe",),
    ),
    DenseFamily(
        ("seed_oss",),
        defaults=_values(0, 2, 1, 524288, head_dim=128, attention_dropout=0.1),
        biased=True,
        prefers=("glm4_moe", "qwen2_moe"),
    ),
    DenseFamily(
        ("qwen3",),
        ("qk_norm",),
        _values(
            None,
            None,
            None,
            32768,
            head_dim=128,
            use_sliding_window=False,
            sliding_window=4096,
            max_window_layers=28,
        ),
        windows="after",
        prefers=("qwen3_moe",),
    ),
    DenseFamily(
        ("glm",),
        defaults=_values(None, _GLM_END, 151329, 131072, rms_norm_eps=1.5625e-07, head_dim=128),
        rotated=0.5,
        interleaved=True,
        fused_mlp="mlp.gate_up_proj.weight",
        biased=True,
        prefers=("glm4_moe",),
    ),
    DenseFamily(
        ("granite",), ("multipliers",), _values(1, 2, None, 2048, **_GRANITE), prefers=("granitemoe",)
    ),
    DenseFamily(
        ("smollm3",),
        defaults=_values(
            128000,
            128001,
            128004,
            32768,
            tie_word_embeddings=True,
            use_sliding_window=False,
            sliding_window=None,
            no_rope_layer_interval=4,
        ),
        theta=2e6,
        windows="all",
        prefers=("llama4_text",),
    ),
    DenseFamily(
        ("olmo2",),
        ("post_norm", "qk_norm_full"),
        _values(None, 50279, 1, 2048, rms_norm_eps=1e-5),
        prefers=("flex_olmo",),
    ),
    DenseFamily(
        ("olmo3",),
        ("post_norm", "qk_norm_full"),
        _values(None, 50279, 1, 2048, rms_norm_eps=1e-5, sliding_window=4096),
        theta=500000.0,
        windows="but every fourth",
        prefers=("flex_olmo",),
    ),
    DenseFamily(
        ("cohere2",),
        ("cohere2_block",),
        _values(
            5,
            255001,
            0,
            8192,
            layer_norm_eps=1e-5,
            logit_scale=0.0625,
            head_dim=128,
            sliding_window=4096,
            tie_word_embeddings=True,
        ),
        interleaved=True,
        windows="but every fourth",
        prefers=("cohere2_moe",),
    ),
    DenseFamily(
        ("hunyuan_v1_dense",),
        ("qk_norm_after_rope",),
        _values(1, 2, 0, 2048, rms_norm_eps=1e-5),
        prefers=("hunyuan_v1_moe",),
    ),
    DenseFamily(
        ("lfm2",),
        ("short_conv",),
        _values(1, 2, 0, 128000, norm_eps=1e-5, conv_bias=False, conv_L_cache=3, tie_word_embeddings=True),
        theta=1e6,
        mlp=("feed_forward.w1.weight", "feed_forward.w3.weight", "feed_forward.w2.weight"),
        prefers=("lfm2_moe",),
    ),
    DenseFamily(
        ("qwen3_5_text",),
        ("linear_attention",),
        _values(
            None,
            None,
            None,
            32768,
            head_dim=256,
            linear_conv_kernel_dim=4,
            linear_key_head_dim=128,
            linear_value_head_dim=128,
            linear_num_key_heads=16,
            linear_num_value_heads=32,
        ),
        rotated=0.25,
        prefers=("qwen3_5_moe_text",),
        wrapped=("qwen3_5",),
    ),
    DenseFamily(
        ("gemma4_text",),
        ("gemma4_block",),
        {"tie_word_embeddings": True, "hidden_activation": "gelu_pytorch_tanh"},
        theta=None,
        prefers=("gemma4_text",),
        wrapped=("gemma4",),
    ),
    DenseFamily(
        ("deepseek_v2",), ("mla",), _values(1, 2, None, 2048), interleaved=True, prefers=("deepseek_v2",)
    ),
    DenseFamily(
        ("deepseek_v3",),
        ("mla_yarn",),
        _values(0, 1, None, 4096, rope_interleave=True),
        interleaved=True,
        prefers=("deepseek_v3",),
    ),
    DenseFamily(
        ("jamba",), ("mamba",), _values(1, 2, 0, 262144), theta=None, mlp=_FEED_FORWARD, prefers=("jamba",)
    ),
    # What no family of mixtures can hold; only the reason is needed.
    DenseFamily(("gemma2",), ("scaled_embedding", "sandwich_norm", "softcap")),
    DenseFamily(("gemma3_text", "gemma3"), ("scaled_embedding", "sandwich_norm", "qk_norm")),
    DenseFamily(("glm4",), ("sandwich_norm",)),
    DenseFamily(("exaone4",), ("post_norm", "qk_norm")),
    DenseFamily(("olmo",), ("no_norm_weights",)),
    DenseFamily(("cohere", "stablelm"), ("layer_norm",)),
    DenseFamily(("phi", "falcon", "gpt_neox", "starcoder2"), ("layer_norm", "ungated")),
    DenseFamily(("gpt2", "opt", "mpt", "bloom"), ("layer_norm", "ungated", "learned_positions")),
    DenseFamily(("arcee", "nemotron", "apertus"), ("ungated",)),
    DenseFamily(("mamba", "mamba2", "falcon_mamba"), ("state_space",)),
)


def dense_family(model_type: str | None) -> DenseFamily | None:
    """The dense family of `model_type`, looking through multimodal models; None if it is not known."""
    return next((f for f in DENSE if model_type in f.model_types or model_type in f.wrapped), None)
