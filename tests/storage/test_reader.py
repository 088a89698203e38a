"""Any range of any tensor, into any buffer, from any thread; or an error that names the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.errors import CheckpointError
from mergegraph.storage.local import open_checkpoint
from mergegraph.storage.reader import Reader

MakeModel = Callable[..., Path]


@pytest.fixture
def index(model: Path) -> CheckpointIndex:
    return open_checkpoint(str(model), name="m")


@pytest.fixture
def reader(index: CheckpointIndex) -> Iterator[Reader]:
    with Reader({"s": index}) as reader:
        yield reader


def test_whole_tensors_come_out_as_safetensors_reads_them(
    reader: Reader, index: CheckpointIndex, model: Path
) -> None:
    for file in index.files:
        for name, expected in load_file(model / file).items():
            buffer = np.empty_like(expected)
            reader.read_into("s", name, 0, buffer)
            assert np.array_equal(buffer, expected)


def test_a_range_is_read_into_a_slice_of_a_larger_buffer(reader: Reader) -> None:
    buffer = bytearray(b"\xff" * 16)
    reader.read_into("s", "h.10.w", 4, memoryview(buffer)[4:12])
    assert np.frombuffer(buffer, np.float32)[1:3].tolist() == [1.0, 2.0]
    assert buffer[:4] == buffer[12:] == b"\xff" * 4


@pytest.mark.parametrize(("offset", "size"), [(-1, 4), (0, 49), (48, 1), (100, 0)])
def test_a_range_outside_the_tensor_is_the_callers_mistake(reader: Reader, offset: int, size: int) -> None:
    with pytest.raises(ValueError, match="not within 48"):
        reader.read_into("s", "h.10.w", offset, bytearray(size))


def test_a_system_that_reads_less_than_asked_is_asked_again(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: real(fd, [views[0][:5]], at))
    buffer = np.empty((3, 4), np.float32)
    reader.read_into("s", "h.10.w", 0, buffer)
    assert np.array_equal(buffer.ravel(), np.arange(12))


def test_threads_share_few_descriptors(make_model: MakeModel) -> None:
    shards = {f"{i}.safetensors": {f"t{i}": np.full(1000, i, np.int32)} for i in range(10)}
    index = open_checkpoint(str(make_model("many", shards)), name="m")

    def read(i: int) -> bool:
        buffer = np.empty(500, np.int32)
        reader.read_into("s", f"t{i % 10}", 2000, buffer)
        return bool((buffer == i % 10).all())

    with Reader({"s": index}, max_open=2) as reader, ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read, range(400)))


def test_advice_is_only_a_hint(reader: Reader) -> None:
    reader.advise("s", "h.10.w")
    reader.advise("s", "h.10.w", 4, 8)
    reader.advise("s", "empty")


def test_a_file_truncated_while_it_is_read_is_reported(reader: Reader, model: Path) -> None:
    file = model / "model-00001-of-00002.safetensors"
    reader.read_into("s", "h.2.w", 0, bytearray(8))
    os.truncate(file, file.stat().st_size - 20)
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.safetensors: ended at byte .* h\.10\.w"):
        reader.read_into("s", "h.10.w", 0, bytearray(48))


@pytest.mark.parametrize("change", ["touch", "grow", "shrink", "replace"])
def test_a_file_changed_after_planning_is_refused(reader: Reader, model: Path, change: str) -> None:
    file = model / "model-00001-of-00002.safetensors"
    info = file.stat()
    if change == "touch":
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    elif change in ("grow", "shrink"):
        os.truncate(file, info.st_size + (1 if change == "grow" else -1))
        os.utime(file, ns=(info.st_atime_ns, info.st_mtime_ns))
    else:
        data = file.read_bytes()
        file.unlink()
        file.write_bytes(data)
        os.utime(file, ns=(0, 0))
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.safetensors: has changed since planning"):
        reader.read_into("s", "h.10.w", 0, bytearray(4))


def test_a_file_removed_after_planning_is_reported(reader: Reader, model: Path) -> None:
    (model / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="can no longer be opened"):
        reader.read_into("s", "h.10.w", 0, bytearray(4))


def test_a_change_during_the_run_is_found_at_its_end(reader: Reader, model: Path) -> None:
    reader.read_into("s", "h.10.w", 0, bytearray(4))
    reader.check_unchanged()
    os.utime(model / "model-00001-of-00002.safetensors", ns=(0, 0))
    with pytest.raises(CheckpointError, match="has changed since planning"):
        reader.check_unchanged()
    (model / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="can no longer be opened"):
        reader.check_unchanged()


def test_a_file_from_the_hub_is_checked_by_size_alone(index: CheckpointIndex) -> None:
    files = {name: replace(file, stamp='"etag"') for name, file in index.files.items()}
    with Reader({"s": replace(index, files=files)}) as reader:
        reader.read_into("s", "h.10.w", 0, bytearray(4))


def test_a_failing_disk_is_reported_with_the_file(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(descriptor: int, views: object, at: int) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(CheckpointError, match="safetensors: cannot be read: Input/output error"):
        reader.read_into("s", "h.10.w", 0, bytearray(4))


def test_a_closed_reader_says_so(index: CheckpointIndex) -> None:
    with Reader({"s": index}) as reader:
        pass
    with pytest.raises(ValueError, match="after close"):
        reader.read_into("s", "h.10.w", 0, bytearray(4))
