"""Checkpoints, plans and outputs that the tests of whole runs share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergegraph.testing import write_checkpoint

METHODS = ("linear", "slerp", "ties", "passthrough")
MODELS = ("base", "chat", "code")
CONFIG = {"model_type": "tiny", "architectures": ["Tiny"], "num_hidden_layers": 2}

MEDIUM: dict[str, tuple[int, ...]] = {"a.weight": (300, 517), "b.weight": (300, 517), "c.norm": (517,)}
"""Two tensors of two tiles and a small one, for tests that need models of their own."""

# One tensor of several jobs, some of several tiles, and everything small that a checkpoint may hold.
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (1100, 1024),
    "model.layers.0.mlp.weight": (300, 517),
    "model.layers.0.norm.weight": (517,),
    "model.layers.1.mlp.weight": (300, 517),
    "model.layers.1.norm.weight": (517,),
    "model.norm.scale": (),
    "model.nothing": (0, 7),
    "lm_head.weight": (1, 33),
}


def values(seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, np.ndarray[Any, Any]]:
    """Random float32 tensors; those of another seed are near them, like a fine-tune's."""
    common, own = np.random.default_rng(7), np.random.default_rng(seed)
    return {
        name: np.asarray(common.standard_normal(shape) + 0.1 * own.standard_normal(shape), dtype=np.float32)
        for name, shape in shapes.items()
    }


@dataclass(frozen=True)
class Scenario:
    """A directory with models ``base``, ``chat`` and ``code``, and a plan for each method."""

    root: Path

    def model(self, name: str) -> Path:
        """The directory of a model."""
        return self.root / name

    def plan(self, method: str, *, name: str | None = None, **changes: Any) -> Path:
        """Write the plan of `method` (JSON is YAML) with `changes` on top, and return its path."""
        path = self.root / f"{name or method}.yml"
        path.write_text(json.dumps(self._plan(method) | changes))
        return path

    def _plan(self, method: str) -> dict[str, Any]:
        base, chat, code = (str(self.model(name)) for name in MODELS)
        weighted = [
            {"model": chat, "parameters": {"weight": 0.6}},
            {"model": code, "parameters": {"weight": 0.7}},
        ]
        plan: dict[str, Any] = {"merge_method": method}
        match method:
            case "linear":
                return plan | {"models": weighted}
            case "slerp":
                return plan | {"base_model": base, "models": [{"model": chat}], "parameters": {"t": 0.3}}
            case "ties":
                return plan | {"base_model": base, "models": weighted, "parameters": {"density": 0.4}}
        return plan | {"models": [{"model": chat}]}


def make(
    root: Path,
    tensors: Mapping[str, Mapping[str, np.ndarray[Any, Any]]] | None = None,
    *,
    shapes: Mapping[str, tuple[int, ...]] = SHAPES,
    shard_size: int | None = 700_000,
    narrow: bool = True,
) -> Scenario:
    """Write the models; float32 tensors are rounded to bfloat16 if `narrow`. Each has integers, too."""
    for seed, name in enumerate(MODELS):
        held = dict(values(seed, shapes)) if tensors is None else dict(tensors[name])
        if tensors is None:
            held["model.layers.0.steps"] = np.arange(1000, dtype=np.int64)
        write_checkpoint(
            root / name,
            held,
            bfloat16=[n for n, x in held.items() if narrow and x.dtype == np.float32],
            shard_size=shard_size,
            config=CONFIG,
        )
        (root / name / "tokenizer.json").write_text(f'{{"of": "{name}"}}')
    return Scenario(root)


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` with its bytes."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def tensors_of(directory: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint, as safetensors itself reads it."""
    from safetensors.torch import load_file

    return {
        name: tensor
        for path in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def tensor_bytes(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor, whatever file it is in."""
    import torch

    return {
        name: (
            str(x.dtype),
            tuple(x.shape),
            x.reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b"",
        )
        for name, x in sorted(tensors_of(directory).items())
    }
