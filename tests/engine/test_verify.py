"""A published merge can be checked against its own manifest at any time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mergegraph import run, verify
from mergegraph.errors import CheckpointError
from tests.engine.scenario import MODELS, SHAPES, Scenario, make


@pytest.fixture
def merged(shared: Scenario, tmp_path: Path) -> Path:
    run(shared.plan("ties"), tmp_path / "out", threads=2, shard_size=500_000)
    return tmp_path / "out"


def place_of(out: Path, tensor: str) -> tuple[Path, int, int]:
    for path in out.glob("*.safetensors"):
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        entry = json.loads(raw[8 : 8 + length]).get(tensor)
        if entry:
            begin, end = entry["data_offsets"]
            return path, 8 + length + begin, 8 + length + end
    raise AssertionError(tensor)


def flip(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1]))


def rewrite(path: Path, change: Any) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
    index = path.parent / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    table["weight_map"] = {n: f.name for f in path.parent.glob("*.safetensors") for n in load_file(f)}
    index.write_text(json.dumps(table))


def test_what_was_written_is_as_it_was_written(merged: Path) -> None:
    assert verify(merged) == []


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize(
    "tensor", [n for n, shape in SHAPES.items() if 0 not in shape] + ["model.layers.0.steps"]
)
def test_one_flipped_bit_is_found_wherever_it_is(merged: Path, tensor: str, where: str) -> None:
    path, begin, end = place_of(merged, tensor)
    flip(path, {"first": begin, "middle": (begin + end) // 2, "last": end - 1}[where])
    assert verify(merged) == [tensor]


def test_exchanged_values_are_found(merged: Path) -> None:
    path, begin, end = place_of(merged, "model.layers.0.norm.weight")
    data = bytearray(path.read_bytes())
    data[begin:end] = data[begin + 8 : end] + data[begin : begin + 8]
    path.write_bytes(data)
    assert verify(merged) == ["model.layers.0.norm.weight"]


def test_missing_and_unexpected_tensors_are_found(merged: Path) -> None:
    path, _, _ = place_of(merged, "model.layers.0.norm.weight")
    rewrite(path, lambda t: t.update(extra=t.pop("model.layers.0.norm.weight")))
    assert verify(merged) == ["extra", "model.layers.0.norm.weight"]


@pytest.mark.parametrize("size", [516, 518])
def test_a_tensor_of_another_length_is_found(merged: Path, size: int) -> None:
    name = "model.layers.0.norm.weight"
    path, _, _ = place_of(merged, name)
    rewrite(path, lambda t: t.update({name: t[name].new_zeros(518).copy_(t[name].new_zeros(518))[:size]}))
    assert verify(merged) == [name]


def test_zeros_that_were_cut_off_or_added_are_found(tmp_path: Path) -> None:
    scenario = make(tmp_path, {n: {"w": np.zeros(64, np.float32)} for n in MODELS})
    for size in (0, 60, 68):
        out = tmp_path / f"out{size}"
        run(scenario.plan("linear"), out)
        save_file({"w": load_file(out / "model.safetensors")["w"].new_zeros(size)}, out / "model.safetensors")
        assert verify(out) == ["w"], size


def test_a_name_may_hold_anything(tmp_path: Path) -> None:
    names = ("a\nb", "a\n7", "a", "\n")
    tensors = {m: {n: np.full(3, i, np.float32) for n in names} for i, m in enumerate(MODELS)}
    scenario = make(tmp_path, tensors, shard_size=None)
    run(scenario.plan("linear"), tmp_path / "out")
    assert verify(tmp_path / "out") == []
    path, begin, _ = place_of(tmp_path / "out", "a\n7")
    flip(path, begin)
    assert verify(tmp_path / "out") == ["a\n7"]


def test_a_missing_shard_or_index_is_an_error_of_the_checkpoint(merged: Path) -> None:
    path, _, _ = place_of(merged, "model.layers.0.norm.weight")
    path.unlink()
    with pytest.raises(CheckpointError, match=path.name):
        verify(merged)


@pytest.mark.parametrize(
    "text",
    [None, "", "{", "[]", "null", '{"versions": {}}', '{"checksums": []}', '{"checksums": null}', "\xff"],
)
def test_without_a_readable_manifest_there_is_nothing_to_verify(merged: Path, text: str | None) -> None:
    manifest = merged / "mergegraph.json"
    if text is None:
        manifest.unlink()
    else:
        manifest.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"mergegraph\.json: no readable manifest"):
        verify(merged)


def test_an_input_is_no_merge(shared: Scenario, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no readable manifest"):
        verify(shared.model("base"))
    with pytest.raises(CheckpointError, match="no such file"):
        verify(tmp_path / "nowhere")


def test_the_manifest_names_every_tensor_and_nothing_of_this_machine(merged: Path) -> None:
    manifest = json.loads((merged / "mergegraph.json").read_text())
    assert manifest["checksums"].keys() == {*SHAPES, "model.layers.0.steps"}
    assert all(len(value) == 16 and int(value, 16) >= 0 for value in manifest["checksums"].values())
    assert len(manifest["inputs"]) == 3
    assert str(merged) not in json.dumps(manifest)
