"""The tiny checkpoints that the parity plans merge, rebuilt bit for bit wherever the tests run.

Every value comes from a counter-based integer generator written out here, so neither the numpy version nor
the machine can change an input under a recorded output; `digest` proves it. Configs, tensor names and shapes
are those that transformers itself writes (`golden/blueprints.json`, made by `record.py`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors

from . import experts

GOLDEN = Path(__file__).parent / "golden"
F64 = npt.NDArray[np.float64]
_CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_NAMES = {code: name for name, code in _CODES.items()}


@dataclass(frozen=True)
class Model:
    """How one checkpoint is made: a base with `seed`, plus a small delta when `tune` is set.

    `frozen` names tensors (by substring) that the fine-tune left alone, `zeroed` tensors that are all zero,
    and `sign` -1 negates everything. `shards` is the number of files it is stored in. `stacked` ones hold
    their experts in stacked tensors, with the values that they have in the layout of one tensor per expert.
    """

    blueprint: str
    seed: int
    tune: int | None = None
    amount: float = 0.05
    dtype: str = "float32"
    frozen: tuple[str, ...] = ()
    zeroed: tuple[str, ...] = ()
    sign: float = 1.0
    shards: int = 1
    stacked: bool = False


def _llamas(seed: int, blueprint: str = "llama", dtype: str = "float32") -> tuple[Model, Model, Model, Model]:
    """A base and three fine-tunes; the second leaves layer 2 and the embedding as they were."""
    return (
        Model(blueprint, seed, dtype=dtype),
        Model(blueprint, seed, tune=1, dtype=dtype),
        Model(blueprint, seed, tune=2, dtype=dtype, frozen=("layers.2.", "embed_tokens")),
        Model(blueprint, seed, tune=3, dtype=dtype, frozen=("input_layernorm",), shards=3),
    )


_BASE, _A, _B, _C = _llamas(100)
_BF_BASE, _BF_A, _BF_B, _BF_C = _llamas(100, dtype="bfloat16")
_STILL = ("layers.1.self_attn", "model.norm")

MODELS: Mapping[str, Model] = {
    "llama_base": _BASE,
    "llama_a": _A,
    "llama_b": _B,
    "llama_c": _C,
    "llama_twin": _A,
    "llama_near": Model("llama", 100, tune=4, amount=0.002),
    "llama_other": Model("llama", 101),
    "llama_opposite": Model("llama", 100, sign=-1.0),
    "llama_long": Model("llama_long", 102),
    "llama_f64": Model("llama", 100, tune=5, dtype="float64"),
    "llama_f16": Model("llama", 100, tune=2, dtype="float16"),
    "bf16_base": _BF_BASE,
    "bf16_a": _BF_A,
    "bf16_b": _BF_B,
    "bf16_c": _BF_C,
    "tied_base": Model("llama_tied", 100),
    "tied_a": Model("llama_tied", 100, tune=1),
    "tied_b": Model("llama_tied", 100, tune=2, frozen=("embed_tokens",)),
    "llama_copy": _BASE,
    "llama_copy_again": _BASE,
    "llama_copy_more": _BASE,
    "llama_d": Model("llama", 100, tune=6),
    "llama_e": Model("llama", 100, tune=7, amount=0.1),
    "llama_wide_a": Model("llama", 100, tune=8, amount=0.4),
    "llama_wide_b": Model("llama", 100, tune=9, amount=0.4),
    "llama_mirror": Model("llama", 100, tune=1, amount=-0.05),
    "llama_tiny_a": Model("llama", 100, tune=1, amount=0.0004),
    "llama_tiny_b": Model("llama", 100, tune=2, amount=0.0004),
    "llama_still_a": Model("llama", 100, tune=1, frozen=_STILL),
    "llama_still_b": Model("llama", 100, tune=2, frozen=_STILL),
    "llama_still_c": Model("llama", 100, tune=3, frozen=_STILL),
    "bf16_far": Model("llama", 100, tune=8, amount=0.4, dtype="bfloat16"),
    "mixtral_base": Model("mixtral", 109),
    "mixtral_a": Model("mixtral", 109, tune=1),
    "mixtral_b": Model("mixtral", 109, tune=2, frozen=("experts.2.",), shards=2),
    "mixtral_c": Model("mixtral", 109, tune=3),
    "mixtral_bf16_base": Model("mixtral", 109, dtype="bfloat16"),
    "mixtral_bf16_a": Model("mixtral", 109, tune=1, dtype="bfloat16"),
    "mixtral_bf16_b": Model("mixtral", 109, tune=2, dtype="bfloat16"),
    "stacked_base": Model("mixtral", 109, stacked=True),
    "stacked_a": Model("mixtral", 109, tune=1, stacked=True, shards=2),
    "stacked_b": Model("mixtral", 109, tune=2, frozen=("experts.2.",), stacked=True),
    "stacked_bf16_base": Model("mixtral", 109, dtype="bfloat16", stacked=True),
    "stacked_bf16_a": Model("mixtral", 109, tune=1, dtype="bfloat16", stacked=True),
    "deep_base": Model("llama_deep", 103),
    "deep_a": Model("llama_deep", 103, tune=1),
    "deep_b": Model("llama_deep", 103, tune=2),
    "mistral_base": Model("mistral", 104),
    "mistral_bf16": Model("mistral", 104, dtype="bfloat16"),
    "mistral_a": Model("mistral", 104, tune=1),
    "mistral_b": Model("mistral", 104, tune=2),
    "qwen2_base": Model("qwen2", 105, zeroed=("layers.1.self_attn.k_proj.bias",)),
    "qwen2_a": Model("qwen2", 105, tune=1),
    "qwen2_b": Model("qwen2", 105, tune=2, zeroed=("layers.1.self_attn.k_proj.bias",)),
    "qwen3_base": Model("qwen3", 106),
    "qwen3_a": Model("qwen3", 106, tune=1),
    "qwen3_b": Model("qwen3", 106, tune=2),
    "gemma2_base": Model("gemma2", 107),
    "gemma2_a": Model("gemma2", 107, tune=1),
    "gemma2_b": Model("gemma2", 107, tune=2),
    "gpt2_base": Model("gpt2", 108),
    "gpt2_a": Model("gpt2", 108, tune=1),
    "gpt2_b": Model("gpt2", 108, tune=2),
}


@functools.cache
def blueprints() -> dict[str, dict[str, Any]]:
    """The config and the tensor shapes of each family, as transformers writes them."""
    loaded: dict[str, dict[str, Any]] = json.loads((GOLDEN / "blueprints.json").read_text())
    return loaded


def _noise(seed: int, name: str, count: int) -> F64:
    """Bell-shaped noise of unit variance: sums of four hashed 32-bit integers, so exact everywhere."""
    key = np.uint64(seed) << np.uint64(40) ^ np.uint64(zlib.crc32(name.encode())) << np.uint64(8)
    with np.errstate(over="ignore"):
        x = (np.arange(2 * count, dtype=np.uint64) + key + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    halves = (x & np.uint64(0xFFFFFFFF)) + (x >> np.uint64(32))
    total = halves[:count] + halves[count:]
    return (total.astype(np.float64) * 2.0**-32 - 2.0) * 1.7320508075688772


def _tensor(model: Model, name: str, shape: tuple[int, ...]) -> F64:
    count = int(np.prod(shape))
    if any(part in name for part in model.zeroed):
        return np.zeros(shape)
    noise = _noise(model.seed, name, count)
    norm = name.endswith("weight") and len(shape) == 1
    values = 1.0 + 0.1 * noise if norm else 0.25 * noise
    if model.tune is not None and not any(part in name for part in model.frozen):
        values = values + model.amount * _noise(1000 * model.tune + model.seed, name, count)
    return (model.sign * values).reshape(shape)


@functools.cache
def tensors(key: str) -> Mapping[str, F64]:
    """The values of checkpoint `key`, exactly as its files hold them, in float64."""
    model = MODELS[key]
    shapes = blueprints()[model.blueprint]["tensors"]
    made = {name: rounded(_tensor(model, name, tuple(shape)), model.dtype) for name, shape in shapes.items()}
    return experts.stacked(made) if model.stacked else made


def config(key: str) -> dict[str, Any]:
    """The config.json of checkpoint `key`."""
    model = MODELS[key]
    return {**blueprints()[model.blueprint]["config"], "dtype": model.dtype}


def rounded(values: F64, dtype: str) -> F64:
    """`values` rounded once, to nearest even, to `dtype`."""
    return decode(encode(values, dtype), dtype).reshape(values.shape)


def encode(values: F64, dtype: str) -> bytes:
    """The little-endian bytes of `values` in `dtype`."""
    if dtype != "bfloat16":
        return values.astype(np.dtype(dtype).newbyteorder("<")).tobytes()
    # Rounding to float32 first would round twice: force the sticky bit of the inexact ones.
    single = values.astype(np.float32)
    bits = single.view(np.uint32).copy()
    inexact = single.astype(np.float64) != values
    too_far = np.abs(single.astype(np.float64)) > np.abs(values)
    bits[inexact & too_far] -= np.uint32(1)
    bits[inexact] |= np.uint32(1)
    bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits >> np.uint32(16)).astype("<u2").tobytes()


def decode(data: bytes, dtype: str) -> F64:
    """The numbers stored in `data`, flat, in float64."""
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).astype(np.float64)


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: its dtype by torch name, its values in float64."""

    dtype: str
    values: F64


def read_safetensors(path: Path) -> dict[str, Stored]:
    """Read every tensor of a file through safetensors' own parser."""
    found: dict[str, Stored] = {}
    parse: Any = safetensors.deserialize
    for name, view in parse(path.read_bytes()):
        dtype = _NAMES[view["dtype"]]
        found[name] = Stored(dtype, decode(bytes(view["data"]), dtype).reshape(view["shape"]))
    return found


def read_checkpoint(folder: Path) -> dict[str, Stored]:
    """Read every tensor of a checkpoint directory, following its index when it has one."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return read_safetensors(folder / "model.safetensors")
    weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    shards = {file: read_safetensors(folder / file) for file in sorted(set(weight_map.values()))}
    return {name: shards[file][name] for name, file in weight_map.items()}


def _safetensors_bytes(values: Mapping[str, F64], dtype: str) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name in sorted(values):
        data = encode(values[name], dtype)
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": _CODES[dtype], "shape": list(values[name].shape), "data_offsets": offsets}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def _files(key: str) -> dict[str, bytes]:
    model, values = MODELS[key], tensors(key)
    files = {"config.json": (json.dumps(config(key), indent=2) + "\n").encode()}
    if model.shards == 1:
        return files | {"model.safetensors": _safetensors_bytes(values, model.dtype)}
    weight_map = {
        name: f"model-{i * model.shards // len(values) + 1:05}-of-{model.shards:05}.safetensors"
        for i, name in enumerate(values)
    }
    for file in sorted(set(weight_map.values())):
        held = {name: values[name] for name in values if weight_map[name] == file}
        files[file] = _safetensors_bytes(held, model.dtype)
    size = sum(len(encode(v, model.dtype)) for v in values.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    return files | {"model.safetensors.index.json": json.dumps(index, indent=2).encode()}


def digest(key: str) -> str:
    """A short digest of every byte of checkpoint `key`, recorded with the goldens."""
    hasher = hashlib.sha256()
    for name, data in sorted(_files(key).items()):
        hasher.update(name.encode() + b"\0" + data)
    return hasher.hexdigest()[:16]


def build(key: str, root: Path) -> Path:
    """Write checkpoint `key` to ``root/key`` unless it is there, and return that directory."""
    folder = root / key
    if not folder.exists():
        folder.mkdir(parents=True)
        for name, data in _files(key).items():
            (folder / name).write_bytes(data)
    return folder
