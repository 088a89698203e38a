"""Small, real checkpoints: sharded safetensors, index, config and tokenizer, as loaders expect.

Written with numpy alone and independently of the engine's own writer, so that a mistake there
cannot hide here. Tensors are generated and written in chunks: a checkpoint of any size takes a few
megabytes of memory. Values depend on the seed and the tensor's name only, never on sharding.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mergegraph.testing.tokenizer import write_tokenizer

Array = NDArray[Any]

CHUNK = 1 << 20
"""Elements generated at a time."""

# Stored dtypes and the numpy dtype that holds them, in the format's own order: inside a file wider
# dtypes come first, then names.
_STORAGE = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "uint16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}
_RANKS = list(_STORAGE)
_CODES = {held: code for code, held in _STORAGE.items() if code != "BF16"}
_CONFIG_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True, slots=True)
class Llama:
    """The shape of a Llama-like model."""

    layers: int = 2
    hidden: int = 64
    intermediate: int = 128
    heads: int = 4
    kv_heads: int = 2
    vocab: int = 320
    tied: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor with its shape, in the order a model lists them."""
        kv = self.hidden // self.heads * self.kv_heads
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for i in range(self.layers):
            prefix = f"model.layers.{i}."
            shapes |= {
                prefix + "self_attn.q_proj.weight": (self.hidden, self.hidden),
                prefix + "self_attn.k_proj.weight": (kv, self.hidden),
                prefix + "self_attn.v_proj.weight": (kv, self.hidden),
                prefix + "self_attn.o_proj.weight": (self.hidden, self.hidden),
                prefix + "mlp.gate_proj.weight": (self.intermediate, self.hidden),
                prefix + "mlp.up_proj.weight": (self.intermediate, self.hidden),
                prefix + "mlp.down_proj.weight": (self.hidden, self.intermediate),
                prefix + "input_layernorm.weight": (self.hidden,),
                prefix + "post_attention_layernorm.weight": (self.hidden,),
            }
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, self.hidden)
        return shapes

    def config(self, dtype: str) -> dict[str, Any]:
        """The contents of ``config.json``."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "head_dim": self.hidden // self.heads,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate,
            "max_position_embeddings": 2048,
            "mlp_bias": False,
            "model_type": "llama",
            "num_attention_heads": self.heads,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "tie_word_embeddings": self.tied,
            "torch_dtype": _CONFIG_DTYPES[dtype],
            "vocab_size": self.vocab,
        }


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[Array]]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(_STORAGE[self.dtype]).itemsize


def write_llama(
    directory: Path,
    shape: Llama = Llama(),
    *,
    seed: int = 0,
    dtype: str = "BF16",
    shard_size: int | None = None,
    finetune_of: Path | None = None,
) -> Path:
    """Write a Llama-shaped checkpoint with random weights that `transformers` loads.

    Args:
        directory: where to; made if it is not there.
        shape: the model's dimensions.
        seed: decides the weights.
        dtype: ``BF16``, ``F16`` or ``F32``.
        shard_size: most bytes of tensors in one file; None for a single file.
        finetune_of: a checkpoint of the same shape and dtype that this one is a small change of.

    Returns:
        `directory`.
    """
    base = _locate(finetune_of) if finetune_of is not None else {}

    tensors = []
    for name, size in shape.shapes().items():
        chunks = partial(_weights, name, math.prod(size), seed=seed, dtype=dtype, base=base.get(name))
        tensors.append(_Tensor(name, dtype, size, chunks))
    _write(directory, tensors, shard_size)
    _write_json(directory / "config.json", shape.config(dtype))
    _write_json(directory / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    write_tokenizer(directory, shape.vocab)
    return directory


def write_checkpoint(
    directory: Path,
    tensors: Mapping[str, Array],
    *,
    bfloat16: Iterable[str] = (),
    shard_size: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write given arrays as a checkpoint.

    Args:
        directory: where to; made if it is not there.
        tensors: the arrays, in model order.
        bfloat16: names of tensors to round to bfloat16; the others keep their numpy dtype.
        shard_size: most bytes of tensors in one file; None for a single file.
        config: the contents of ``config.json``; None writes none.

    Returns:
        `directory`.
    """
    narrow = tuple(bfloat16)
    listed = [
        _Tensor(
            name,
            "BF16" if name in narrow else _CODES[x.dtype.name],
            x.shape,
            partial(_whole, x, name in narrow),
        )
        for name, x in tensors.items()
    ]
    _write(directory, listed, shard_size)
    if config is not None:
        _write_json(directory / "config.json", config)
    return directory


def _whole(x: Array, narrow: bool) -> list[Array]:
    return [to_bfloat16(x) if narrow else x]


def to_bfloat16(x: Array) -> NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16, ties to even, as its bits. NaN stays NaN."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    narrow = rounded.astype(np.uint16)
    nan = np.isnan(x)
    if nan.any():
        narrow[nan] = 0x7FC0
    return narrow


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Widen bfloat16 bits to float32; always exact."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


# ---- values ------------------------------------------------------------------------------------


def _weights(name: str, count: int, *, seed: int, dtype: str, base: _Range | None) -> Iterator[Array]:
    """Yield a tensor's stored values: random ones, or those of `base` and a small change."""
    random = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    centre = 1.0 if "norm" in name else 0.0
    # The spread of a usual initialisation; a fine-tune moves weights by a tenth of it.
    spread = np.float32(0.02 if base is None else 0.002)
    for start in range(0, count, CHUNK):
        size = min(CHUNK, count - start)
        values = random.standard_normal(size, dtype=np.float32)
        values *= spread
        values += centre if base is None else base.read(start, size)
        yield to_bfloat16(values) if dtype == "BF16" else values.astype(_STORAGE[dtype])


@dataclass(frozen=True, slots=True)
class _Range:
    """One stored tensor: where its elements begin in a file."""

    file: Path
    begin: int
    dtype: str

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        kind = np.dtype(_STORAGE[self.dtype])
        offset = self.begin + start * kind.itemsize
        stored = np.fromfile(self.file, dtype=kind, count=count, offset=offset)
        return from_bfloat16(stored) if self.dtype == "BF16" else stored.astype(np.float32)


def _locate(directory: Path) -> dict[str, _Range]:
    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                found[name] = _Range(path, 8 + length + entry["data_offsets"][0], entry["dtype"])
    return found


# ---- files -------------------------------------------------------------------------------------


def _write(directory: Path, tensors: list[_Tensor], shard_size: int | None) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    shards = _shards(tensors, shard_size)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (directory / name).open("wb") as file:
            _write_shard(file, shard)
        weight_map |= {tensor.name: name for tensor in shard}
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        _write_json(directory / "model.safetensors.index.json", index)


def _shards(tensors: list[_Tensor], shard_size: int | None) -> list[list[_Tensor]]:
    """Fill one file after the other, in model order."""
    shards: list[list[_Tensor]] = [[]]
    room = math.inf if shard_size is None else shard_size
    used = 0
    for tensor in tensors:
        if shards[-1] and used + tensor.nbytes > room:
            shards.append([])
            used = 0
        shards[-1].append(tensor)
        used += tensor.nbytes
    return shards


def _write_shard(file: BinaryIO, shard: list[_Tensor]) -> None:
    ordered = sorted(shard, key=lambda tensor: (-_RANKS.index(tensor.dtype), tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in ordered:
        end = begin + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    file.write(len(raw).to_bytes(8, "little") + raw)
    for tensor in ordered:
        for chunk in tensor.chunks():
            file.write(np.ascontiguousarray(chunk).data.cast("B") if chunk.size else b"")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
