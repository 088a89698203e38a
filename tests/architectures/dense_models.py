"""Headers of small dense models, made without loading anything."""

from __future__ import annotations

from typing import Any

from mergegraph.architectures.dense import Dense
from mergegraph.tensorspec import DType, TensorSpec

HIDDEN, SIZE, HEAD_DIM, HEADS, KV_HEADS, VOCAB, LAYERS = 16, 24, 4, 4, 2, 32, 3
BASIC = {
    "hidden_size": HIDDEN,
    "intermediate_size": SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "vocab_size": VOCAB,
}


def dense(
    model_type: str,
    *,
    biases: str = "",
    size: int = SIZE,
    head_dim: int = HEAD_DIM,
    head: bool = True,
    drop: tuple[str, ...] = (),
    extra: dict[str, tuple[int, ...]] | None = None,
    **config: Any,
) -> Dense:
    """A model with Llama's names; `biases` names its biased projections, like ``"qkv"``."""
    rows = {"q": HEADS * head_dim, "k": KV_HEADS * head_dim, "v": KV_HEADS * head_dim, "o": HIDDEN}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for layer in range(config.get("num_hidden_layers", LAYERS)):
        start = f"model.layers.{layer}."
        shapes[start + "input_layernorm.weight"] = (HIDDEN,)
        for name, count in rows.items():
            columns = rows["q"] if name == "o" else HIDDEN
            shapes[f"{start}self_attn.{name}_proj.weight"] = (count, columns)
            if name in biases:
                shapes[f"{start}self_attn.{name}_proj.bias"] = (count,)
        shapes[start + "post_attention_layernorm.weight"] = (HIDDEN,)
        shapes[start + "mlp.gate_proj.weight"] = (size, HIDDEN)
        shapes[start + "mlp.up_proj.weight"] = (size, HIDDEN)
        shapes[start + "mlp.down_proj.weight"] = (HIDDEN, size)
    shapes["model.norm.weight"] = (HIDDEN,)
    if head:
        shapes["lm_head.weight"] = (VOCAB, HIDDEN)
    shapes |= extra or {}
    kept = {n: s for n, s in shapes.items() if n not in drop}
    settings = {"model_type": model_type, **BASIC, "head_dim": head_dim, "intermediate_size": size, **config}
    return Dense(
        {k: v for k, v in settings.items() if v != "absent"},
        {n: TensorSpec(s, DType.BF16) for n, s in kept.items()},
    )


def phi3(**config: Any) -> Dense:
    """A model whose projections are fused."""
    plain = dense("phi3", **config)
    shapes = {n: s for n, s in plain.tensors.items() if "_proj." not in n or "o_proj" in n or "down" in n}
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        qkv = (HEADS + 2 * KV_HEADS) * HEAD_DIM
        shapes[start + "self_attn.qkv_proj.weight"] = TensorSpec((qkv, HIDDEN), DType.BF16)
        shapes[start + "mlp.gate_up_proj.weight"] = TensorSpec((2 * SIZE, HIDDEN), DType.BF16)
    return Dense(plain.config, shapes)
