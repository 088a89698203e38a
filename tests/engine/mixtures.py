"""Small mixtures of experts in every layout that checkpoints store them in, and plans over them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mergegraph.testing import write_checkpoint

Array = npt.NDArray[Any]
Tensors = dict[str, Array]

LAYERS, EXPERTS, HIDDEN, INNER = 3, 4, 24, 40
CONFIG = {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_hidden_layers": LAYERS,
    "num_local_experts": EXPERTS,
    "torch_dtype": "float32",
}
_EXPERT = re.compile(r"(.*)block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight")
_STACK = re.compile(r"(.*)mlp\.experts\.(gate_up|down)_proj")


def mixtral(seed: int, *, layers: int = LAYERS, experts: int = EXPERTS, inner: int = INNER) -> Tensors:
    """A model with a tensor for each expert's matrix; seeds are fine-tunes of one model."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (50, HIDDEN)}
    for i in range(layers):
        layer = f"model.layers.{i}."
        shapes[layer + "block_sparse_moe.gate.weight"] = (experts, HIDDEN)
        for e in range(experts):
            for role, shape in (("w1", (inner, HIDDEN)), ("w2", (HIDDEN, inner)), ("w3", (inner, HIDDEN))):
                shapes[f"{layer}block_sparse_moe.experts.{e}.{role}.weight"] = shape
        shapes[layer + "input_layernorm.weight"] = (HIDDEN,)
    shapes["lm_head.weight"] = (50, HIDDEN)
    return {name: _values(name, seed, shape) for name, shape in shapes.items()}


def _values(name: str, seed: int, shape: tuple[int, ...]) -> Array:
    common = np.random.default_rng([7, *name.encode()]).standard_normal(shape)
    own = np.random.default_rng([seed, *name.encode()]).standard_normal(shape)
    return (common + 0.1 * seed * own).astype(np.float32)


def stacked(tensors: Mapping[str, Array]) -> Tensors:
    """The same model with the experts of a layer in two tensors, under the names beside those."""
    found: Tensors = {}
    experts: dict[str, dict[tuple[int, str], Array]] = {}
    for name, x in tensors.items():
        match = _EXPERT.fullmatch(name)
        if match is None:
            found[name.replace("block_sparse_moe.", "mlp.")] = x
        else:
            experts.setdefault(match[1], {})[int(match[2]), match[3]] = x
    for layer, parts in experts.items():
        count = 1 + max(e for e, _ in parts)
        halves = [np.concatenate([parts[e, "w1"], parts[e, "w3"]]) for e in range(count)]
        found[f"{layer}mlp.experts.gate_up_proj"] = np.stack(halves)
        found[f"{layer}mlp.experts.down_proj"] = np.stack([parts[e, "w2"] for e in range(count)])
    return found


def separate(tensors: Mapping[str, Array]) -> Tensors:
    """A model with a tensor for each expert's matrix again, whichever layout it is in."""
    found: Tensors = {}
    for name, x in tensors.items():
        match = _STACK.fullmatch(name)
        if match is None:
            found[name.replace("mlp.gate.", "block_sparse_moe.gate.")] = x
            continue
        for e, part in enumerate(x):
            expert = f"{match[1]}block_sparse_moe.experts.{e}."
            if match[2] == "down":
                found[f"{expert}w2.weight"] = part
            else:
                found[f"{expert}w1.weight"], found[f"{expert}w3.weight"] = np.split(part, 2)
    return found


def llama4(seed: int, *, layers: int = 2) -> Tensors:
    """A model whose experts are stacked and transposed, with a dense layer before."""
    found: Tensors = {"model.embed_tokens.weight": _values("embed", seed, (50, HIDDEN))}
    for i in range(layers):
        ffn = f"model.layers.{i}.feed_forward."
        if i == 0:
            found[ffn + "gate_proj.weight"] = _values(ffn + "gate", seed, (INNER, HIDDEN))
            continue
        found[ffn + "experts.gate_up_proj"] = _values(ffn + "both", seed, (EXPERTS, HIDDEN, 2 * INNER))
        found[ffn + "experts.down_proj"] = _values(ffn + "down", seed, (EXPERTS, INNER, HIDDEN))
        found[ffn + "router.weight"] = _values(ffn + "router", seed, (EXPERTS, HIDDEN))
        found[ffn + "shared_expert.up_proj.weight"] = _values(ffn + "shared", seed, (INNER, HIDDEN))
    return found


def read(directory: Path) -> Tensors:
    """Every tensor of a checkpoint; bfloat16 as its bits."""
    import torch
    from safetensors.torch import load_file

    found: Tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        for name, x in load_file(path).items():
            found[name] = (x.view(torch.int16) if x.dtype is torch.bfloat16 else x).numpy()
    return found


def same_bits(a: Mapping[str, Array], b: Mapping[str, Array]) -> None:
    """Fail unless two checkpoints hold the same tensors, bit for bit."""
    assert sorted(a) == sorted(b)
    for name, x in a.items():
        assert (x.shape, x.dtype) == (b[name].shape, b[name].dtype), name
        assert np.ascontiguousarray(x).tobytes() == np.ascontiguousarray(b[name]).tobytes(), name


@dataclass(frozen=True)
class Mixtures:
    """Models ``base``, ``a`` and ``b`` below ``separate/``, ``stacked/`` and others, and plans over them."""

    root: Path

    def write(self, name: str, tensors: Mapping[str, Array], *, narrow: bool = False, **config: Any) -> Path:
        """Write a model; its float32 tensors are rounded to bfloat16 if `narrow`, correction biases not."""
        round_these = [
            n for n, x in tensors.items() if narrow and x.dtype == np.float32 and "correction" not in n
        ]
        return write_checkpoint(self.root / name, tensors, bfloat16=round_these, config=CONFIG | config)

    def plan(self, method: str, *models: str, base: str | None = None, **changes: Any) -> Path:
        """Write a plan over models of this directory, each with a weight of its own."""
        weights = (0.6, 0.7, 0.4)
        listed = [
            {"model": str(self.root / name), "parameters": {"weight": weight}}
            for name, weight in zip(models, weights, strict=False)
        ]
        plan: dict[str, Any] = {"merge_method": method, "models": listed}
        if base is not None:
            plan["base_model"] = str(self.root / base)
        path = self.root / f"{method}-{'-'.join(models).replace('/', '_')}.yml"
        path.write_text(json.dumps(plan | changes))
        return path
