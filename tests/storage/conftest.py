"""Small checkpoints on disk, written by safetensors itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

Tensors = Mapping[str, np.ndarray]
MakeModel = Callable[..., Path]


@pytest.fixture
def make_model(tmp_path: Path) -> MakeModel:
    """``make_model("name", {file: tensors}, index=…, extra=…)`` writes a model directory."""

    def make(
        name: str,
        shards: Mapping[str, Tensors],
        *,
        index: bool | str = False,
        extra: Mapping[str, str] | None = None,
    ) -> Path:
        root = tmp_path / name
        root.mkdir()
        for file, tensors in shards.items():
            save_file(dict(tensors), root / file, metadata={"format": "pt"})
        if index:
            weight_map = {tensor: file for file, tensors in shards.items() for tensor in tensors}
            file = index if isinstance(index, str) else "model.safetensors.index.json"
            (root / file).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        for file, text in (extra or {}).items():
            (root / file).write_text(text)
        return root

    return make


@pytest.fixture
def model(make_model: MakeModel) -> Path:
    """Two shards, an index and a config; layer 10 is in the first."""
    return make_model(
        "model",
        {
            "model-00001-of-00002.safetensors": {
                "h.10.w": np.arange(12, dtype=np.float32).reshape(3, 4),
                "h.2.w": np.arange(6, dtype=np.int64),
            },
            "model-00002-of-00002.safetensors": {
                "scalar": np.array(7.5, dtype=np.float16),
                "empty": np.zeros((0, 3), dtype=np.float32),
            },
        },
        index=True,
        extra={"config.json": '{"model_type": "tiny"}', "tokenizer.json": "{}", "LICENSE": "free"},
    )
