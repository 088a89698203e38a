"""What will be in a checkpoint: every header byte and tensor offset, fixed before anything runs.

Offsets are known in advance, so tiles may be written in any order, by any number of threads, and
the file still comes out as ``safetensors.torch.save_file`` would have written it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from json.encoder import encode_basestring

from mergegraph.checkpoint.index import HEADER_LIMIT, METADATA_KEY
from mergegraph.errors import CheckpointError
from mergegraph.tensorspec import DType, TensorSpec

INDEX_FILE = "model.safetensors.index.json"
_ALIGNMENT = 8


@dataclass(frozen=True)
class ShardLayout:
    """One output file.

    Attributes:
        file: its name.
        header: the 8-byte length and the padded JSON, ready to write at offset 0.
        tensors: absolute byte offset of each tensor, in the order in which they lie in the file.
        size: size of the file in bytes.
    """

    file: str
    header: bytes
    tensors: Mapping[str, int]
    size: int


@dataclass(frozen=True)
class OutputLayout:
    """All output files, and the specs of the tensors in them (in natural order)."""

    shards: tuple[ShardLayout, ...]
    specs: Mapping[str, TensorSpec]

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        return {
            name: (i, offset) for i, shard in enumerate(self.shards) for name, offset in shard.tensors.items()
        }

    def locate(self, name: str) -> tuple[int, int]:
        """Return the index of the shard that holds `name`, and its absolute byte offset there."""
        return self._places[name]

    @cached_property
    def total_bytes(self) -> int:
        """Size of all tensor data in bytes."""
        return sum(_sizes(self.specs).values())

    @property
    def file_bytes(self) -> int:
        """Size of all files in bytes, headers included."""
        return sum(shard.size for shard in self.shards)

    def index_json(self) -> bytes | None:
        """Return the contents of `INDEX_FILE`; a single file needs none."""
        if len(self.shards) == 1:
            return None
        weight_map = {name: self.shards[self.locate(name)[0]].file for name in sorted(self.specs)}
        index = {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map}
        return (json.dumps(index, indent=2, ensure_ascii=False) + "\n").encode()


def build_layout(specs: Mapping[str, TensorSpec], shard_size: int) -> OutputLayout:
    """Place tensors in files, filling each in the given order up to `shard_size` data bytes.

    A tensor larger than `shard_size` has a file to itself.

    Raises:
        CheckpointError: a header would be longer than the format allows.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size must be positive, not {shard_size}")
    groups: list[list[str]] = [[]]
    filled = 0
    sizes = _sizes(specs)
    for name, size in sizes.items():
        if groups[-1] and filled + size > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    count = len(groups)
    return OutputLayout(
        tuple(_shard(shard_name(i, count), group, specs, sizes) for i, group in enumerate(groups)), specs
    )


def _sizes(specs: Mapping[str, TensorSpec]) -> dict[str, int]:
    """Bytes of each tensor; models repeat few distinct specs, so each of those is asked once."""
    known: dict[int, int] = {}
    for spec in specs.values():
        if id(spec) not in known:
            known[id(spec)] = spec.nbytes
    return {name: known[id(spec)] for name, spec in specs.items()}


def shard_name(index: int, count: int) -> str:
    """Return the conventional file name of shard `index` (from 0) of `count`."""
    if count == 1:
        return "model.safetensors"
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _shard(
    file: str, names: list[str], specs: Mapping[str, TensorSpec], sizes: Mapping[str, int]
) -> ShardLayout:
    by_spec: dict[int, list[str]] = {}
    for name in names:
        by_spec.setdefault(id(specs[name]), []).append(name)
    by_dtype: dict[DType, list[str]] = {}
    for alike in by_spec.values():
        by_dtype.setdefault(specs[alike[0]].dtype, []).extend(alike)
    # The format's own order: widest dtype first keeps every tensor aligned, then by name.
    widest_first = sorted(by_dtype, key=lambda dtype: -dtype.rank)
    ordered = [name for dtype in widest_first for name in sorted(by_dtype[dtype])]
    # Put together by hand, as `json.dumps` would: it is asked about few specs, not about every tensor.
    spelt = {key: _spelt(specs[alike[0]]) for key, alike in by_spec.items()}
    lines = [f'"{METADATA_KEY}":{{"format":"pt"}}']
    starts: dict[str, int] = {}
    position = 0
    for name in ordered:
        if name == METADATA_KEY:
            raise CheckpointError(f"a tensor cannot be called {METADATA_KEY}", path=file)
        end = position + sizes[name]
        lines.append(
            f'{encode_basestring(name)}:{{{spelt[id(specs[name])]},"data_offsets":[{position},{end}]}}'
        )
        starts[name] = position
        position = end
    text = f"{{{','.join(lines)}}}".encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > HEADER_LIMIT:
        raise CheckpointError(
            f"would need a header of {len(text):,} bytes; the format allows {HEADER_LIMIT:,}",
            path=file,
            hint="use a smaller --shard-size",
        )
    header = len(text).to_bytes(8, "little") + text
    begin = len(header)
    return ShardLayout(file, header, {k: begin + v for k, v in starts.items()}, begin + position)


def _spelt(spec: TensorSpec) -> str:
    """What the header says of every tensor of `spec`."""
    return f'"dtype":"{spec.dtype.name}","shape":{json.dumps(spec.shape, separators=(",", ":"))}'
