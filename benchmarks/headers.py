"""Checkpoints of any size as headers over sparse files: planning reads nothing else.

They hold no weights (every element reads as zero) and next to no disk space, so that planning can be
measured for models that no disk here would hold.

    python -m benchmarks.headers bench/models tensors-100k deepseek-v3
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODELS = ("base", "tune1", "tune2")
_SIZES = {"BF16": 2, "F32": 4}
_SHARD_BYTES = 8_000_000_000
_SHARD_TENSORS = 5_000
_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Tensor:
    """One entry of a header."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "BF16"

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.prod(self.shape) * _SIZES[self.dtype]


@dataclass(frozen=True)
class Outline:
    """A checkpoint without weights: its tensors and its config."""

    tensors: Callable[[], Iterator[Tensor]]
    config: dict[str, Any]


def _llama(layers: int, width: int) -> Outline:
    """Nine tensors in each of `layers` layers, and three besides."""

    def tensors() -> Iterator[Tensor]:
        yield Tensor("model.embed_tokens.weight", (320, width))
        for i in range(layers):
            for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
                yield Tensor(f"model.layers.{i}.{name}.weight", (width, width))
            for name in ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
                yield Tensor(f"model.layers.{i}.{name}.weight", (width, width))
            for name in ("input_layernorm", "post_attention_layernorm"):
                yield Tensor(f"model.layers.{i}.{name}.weight", (width,))
        yield Tensor("model.norm.weight", (width,))
        yield Tensor("lm_head.weight", (320, width))

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": width,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": layers,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 320,
    }
    return Outline(tensors, config)


def _deepseek() -> Outline:
    """The names, shapes and shard sizes of DeepSeek-V3, its weights as bfloat16, its block scales as stored.

    61 layers, of which 58 have 256 routed experts and a shared one; a float32 scale for every 128 × 128
    block of a quantised weight.
    """
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "first_k_dense_replace": 3,
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "kv_lora_rank": 512,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_attention_heads": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 61,
        "num_key_value_heads": 128,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "v_head_dim": 128,
        "vocab_size": 129280,
    }
    return Outline(_deepseek_tensors, config)


def _deepseek_tensors() -> Iterator[Tensor]:
    yield Tensor("model.embed_tokens.weight", (129280, 7168))
    for i in range(61):
        yield from _deepseek_layer(f"model.layers.{i}.", dense=i < 3)
    yield Tensor("model.norm.weight", (7168,))
    yield Tensor("lm_head.weight", (129280, 7168))


def _deepseek_layer(prefix: str, dense: bool) -> Iterator[Tensor]:
    attention = {
        "q_a_proj": (1536, 7168),
        "q_b_proj": (24576, 1536),
        "kv_a_proj_with_mqa": (576, 7168),
        "kv_b_proj": (32768, 512),
        "o_proj": (7168, 16384),
    }
    for name, shape in attention.items():
        yield from _quantised(f"{prefix}self_attn.{name}", shape)
    yield Tensor(f"{prefix}self_attn.q_a_layernorm.weight", (1536,))
    yield Tensor(f"{prefix}self_attn.kv_a_layernorm.weight", (512,))
    if dense:
        yield from _mlp(f"{prefix}mlp", 18432)
    else:
        yield Tensor(f"{prefix}mlp.gate.weight", (256, 7168))
        yield Tensor(f"{prefix}mlp.gate.e_score_correction_bias", (256,), "F32")
        for expert in range(256):
            yield from _mlp(f"{prefix}mlp.experts.{expert}", 2048)
        yield from _mlp(f"{prefix}mlp.shared_experts", 2048)
    yield Tensor(f"{prefix}input_layernorm.weight", (7168,))
    yield Tensor(f"{prefix}post_attention_layernorm.weight", (7168,))


def _mlp(prefix: str, width: int) -> Iterator[Tensor]:
    for name, shape in {"gate": (width, 7168), "up": (width, 7168), "down": (7168, width)}.items():
        yield from _quantised(f"{prefix}.{name}_proj", shape)


def _quantised(name: str, shape: tuple[int, int]) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", shape)
    blocks = (-(-shape[0] // 128), -(-shape[1] // 128))
    yield Tensor(f"{name}.weight_scale_inv", blocks, "F32")


OUTLINES = {
    "tensors-1k": _llama(111, 64),
    "tensors-10k": _llama(1111, 64),
    "tensors-100k": _llama(11111, 64),
    "deepseek-v3": _deepseek(),
}
"""By name."""


def make(root: Path, name: str) -> Path:
    """Write the checkpoints of outline `name` below `root` that are not there yet; return their home."""
    outline = OUTLINES[name]
    home = root / name
    for model in MODELS:
        target, partial = home / model, home / f"{_PARTIAL}{model}"
        if not target.exists():
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
            partial.mkdir(parents=True)
            write(partial, outline)
            partial.rename(target)
    return home


def write(directory: Path, outline: Outline) -> None:
    """Write one checkpoint into an existing directory."""
    shards = list(_shards(outline.tensors()))
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(directory / name, shard)
        places |= {tensor.name: name for tensor in shard}
    total = sum(tensor.nbytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    for file, value in (("model.safetensors.index.json", index), ("config.json", outline.config)):
        (directory / file).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _shards(tensors: Iterator[Tensor]) -> Iterator[list[Tensor]]:
    shard: list[Tensor] = []
    used = 0
    for tensor in tensors:
        if shard and (used + tensor.nbytes > _SHARD_BYTES or len(shard) == _SHARD_TENSORS):
            yield shard
            shard, used = [], 0
        shard.append(tensor)
        used += tensor.nbytes
    yield shard


def _write_shard(path: Path, shard: list[Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    # The format's order: wider dtypes first, then names.
    for tensor in sorted(shard, key=lambda tensor: (-_SIZES[tensor.dtype], tensor.name)):
        end = begin + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + begin)


def main() -> None:
    """Make what is named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="where to: DIRECTORY/OUTLINE/base, …/tune1, …")
    parser.add_argument("outlines", nargs="+", metavar="OUTLINE", choices=OUTLINES, help=", ".join(OUTLINES))
    options = parser.parse_args()
    for name in options.outlines:
        print(make(options.directory, name), flush=True)


if __name__ == "__main__":
    main()
