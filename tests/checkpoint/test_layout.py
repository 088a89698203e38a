"""The layout is decided before anything runs, and is the one that safetensors would choose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mergegraph.checkpoint.index import parse_header
from mergegraph.checkpoint.layout import OutputLayout, build_layout
from mergegraph.errors import CheckpointError
from mergegraph.tensorspec import DType, TensorSpec

# Of the format's types, torch has no plain tensor of the 6-bit ones and packs the 4-bit one.
DTYPES = [dtype for dtype in DType if dtype.bits >= 8]


def random_tensor(spec: TensorSpec) -> torch.Tensor:
    data = torch.arange(1, spec.nbytes + 1, dtype=torch.int64) % 251
    if spec.dtype is DType.BOOL:
        data %= 2
    flat = data.to(torch.uint8).view(getattr(torch, spec.dtype.torch_name)) if spec.nbytes else None
    if flat is None:
        return torch.empty(spec.shape, dtype=getattr(torch, spec.dtype.torch_name))
    return flat.reshape(spec.shape)


def assemble(layout: OutputLayout, shard: int, tensors: dict[str, torch.Tensor]) -> bytes:
    """The file that writing each tensor at its offset gives."""
    file = bytearray(layout.shards[shard].size)
    file[: len(layout.shards[shard].header)] = layout.shards[shard].header
    for name, offset in layout.shards[shard].tensors.items():
        data = tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes() if tensors[name].numel() else b""
        file[offset : offset + len(data)] = data
    return bytes(file)


_specs = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda n: n != "__metadata__"),
    st.builds(TensorSpec, st.lists(st.integers(0, 4), max_size=3).map(tuple), st.sampled_from(DTYPES)),
    max_size=8,
)


@given(specs=_specs)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_is_byte_for_byte_what_save_file_writes(specs: dict[str, TensorSpec], tmp_path: Path) -> None:
    tensors = {name: random_tensor(spec) for name, spec in specs.items()}
    save_file(tensors, tmp_path / "expected.safetensors", metadata={"format": "pt"})
    layout = build_layout(specs, 10**9)
    assert assemble(layout, 0, tensors) == (tmp_path / "expected.safetensors").read_bytes()


def test_packed_4_bit_tensors_are_laid_out_by_their_logical_shape(tmp_path: Path) -> None:
    packed = torch.arange(6, dtype=torch.uint8).reshape(2, 3).view(torch.float4_e2m1fn_x2)
    tensors = {"f4": packed, "u8": torch.ones(3, dtype=torch.uint8), "b": torch.ones(1, dtype=torch.bool)}
    save_file(tensors, tmp_path / "expected.safetensors", metadata={"format": "pt"})
    specs = {
        "f4": TensorSpec((2, 6), DType.F4),
        "u8": TensorSpec((3,), DType.U8),
        "b": TensorSpec((1,), DType.BOOL),
    }
    assert assemble(build_layout(specs, 100), 0, tensors) == (tmp_path / "expected.safetensors").read_bytes()


def test_dtypes_rank_as_safetensors_ranks_them(tmp_path: Path) -> None:
    path = tmp_path / "all.safetensors"
    save_file({d.name: random_tensor(TensorSpec((8,), d)) for d in DTYPES}, path)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = parse_header(raw[8 : 8 + length], path.name, len(raw), str(path))
    in_file = sorted(header, key=lambda name: header[name].begin)
    assert in_file == [d.name for d in reversed(DTYPES)]
    assert all(header[name].spec.dtype.name == name for name in in_file)


@given(specs=_specs, shard_size=st.integers(1, 200))
def test_every_tensor_has_one_place_and_headers_know_it(
    specs: dict[str, TensorSpec], shard_size: int
) -> None:
    layout = build_layout(specs, shard_size)
    found = {}
    for i, shard in enumerate(layout.shards):
        entries = parse_header(shard.header[8:], shard.file, shard.size, shard.file)
        for name, entry in entries.items():
            assert layout.locate(name) == (i, entry.begin)
            found[name] = entry.spec
        data = sum(entry.end - entry.begin for entry in entries.values())
        assert data <= shard_size or len(entries) == 1
        assert data == shard.size - len(shard.header)
    assert found == specs
    assert layout.total_bytes + sum(len(s.header) for s in layout.shards) == layout.file_bytes


def test_shards_fill_in_order_and_a_tensor_too_large_for_any_is_alone() -> None:
    sizes = {"a": 4, "b": 6, "c": 1, "big": 50, "empty": 0, "d": 10}
    layout = build_layout({name: TensorSpec((n,), DType.U8) for name, n in sizes.items()}, 10)
    assert [(s.file, list(s.tensors)) for s in layout.shards] == [
        ("model-00001-of-00004.safetensors", ["a", "b"]),
        ("model-00002-of-00004.safetensors", ["c"]),
        ("model-00003-of-00004.safetensors", ["big"]),
        ("model-00004-of-00004.safetensors", ["d", "empty"]),
    ]


def test_the_index_maps_every_tensor_and_a_single_file_has_none() -> None:
    specs = {f"t.{i}": TensorSpec((4,), DType.F32) for i in (1, 2, 10)}
    assert build_layout(specs, 1000).index_json() is None
    index = build_layout(specs, 32).index_json()
    assert index is not None
    assert json.loads(index) == {
        "metadata": {"total_size": 48},
        "weight_map": {
            "t.1": "model-00001-of-00002.safetensors",
            "t.10": "model-00002-of-00002.safetensors",
            "t.2": "model-00001-of-00002.safetensors",
        },
    }


def test_no_tensors_make_one_empty_file() -> None:
    layout = build_layout({}, 1)
    assert [shard.file for shard in layout.shards] == ["model.safetensors"]
    assert layout.total_bytes == 0


def test_what_cannot_be_laid_out_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="shard_size"):
        build_layout({}, 0)
    with pytest.raises(CheckpointError, match="__metadata__"):
        build_layout({"__metadata__": TensorSpec((1,), DType.F32)}, 10)
    monkeypatch.setattr("mergegraph.checkpoint.layout.HEADER_LIMIT", 100)
    with pytest.raises(CheckpointError, match="smaller --shard-size"):
        build_layout({f"tensor{i}": TensorSpec((1,), DType.F32) for i in range(3)}, 10**9)
