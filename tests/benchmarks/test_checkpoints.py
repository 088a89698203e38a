"""What the benchmarks merge is made once, completely, and is what it is called."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import headers, shapes
from mergegraph.storage.local import open_checkpoint


def test_checkpoints_that_are_there_are_not_made_again(models: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in models.rglob("*")}
    said = list(shapes.make(models, "quick"))
    assert said == [f"{models / 'quick' / name} is there" for name in shapes.find("quick").names]
    assert files == {path: path.stat().st_mtime_ns for path in models.rglob("*")}


def test_half_a_checkpoint_of_a_killed_run_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "quick" / ".partial-base").mkdir(parents=True)
    (tmp_path / "quick" / ".partial-base" / "model.safetensors").write_bytes(b"half")
    list(shapes.make(tmp_path, "quick", models=1))
    assert sorted(path.name for path in (tmp_path / "quick").iterdir()) == ["base", "shape.json"]
    assert open_checkpoint(str(tmp_path / "quick" / "base"), name="base").tensors


def test_checkpoints_of_other_dimensions_are_refused(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "quick", replace(shapes.find("quick"), dtype="F16"))
    with pytest.raises(ValueError, match="other dimensions"):
        list(shapes.make(models, "quick"))


def test_an_unknown_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no shape 'huge'"):
        list(shapes.make(tmp_path, "huge"))


def test_headers_over_sparse_files_are_checkpoints_that_take_no_space(tmp_path: Path) -> None:
    home = headers.make(tmp_path, "tensors-1k")
    index = open_checkpoint(str(home / "base"), name="base")
    assert len(index.tensors) == 111 * 9 + 3
    held = sum(path.stat().st_blocks * 512 for path in (home / "base").glob("*.safetensors"))
    assert held < shapes.weights(home / "base") / 10


def test_the_outline_of_deepseek_v3_has_its_tensors() -> None:
    tensors = {tensor.name: tensor for tensor in headers.OUTLINES["deepseek-v3"].tensors()}
    # 58 layers of 256 routed experts, each of three weights with scales, and the rest of the model.
    assert len(tensors) == 90_427
    assert tensors["model.layers.60.mlp.experts.255.down_proj.weight_scale_inv"].shape == (56, 16)
    assert "model.layers.2.mlp.up_proj.weight" in tensors
