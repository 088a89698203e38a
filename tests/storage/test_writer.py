"""Shards written in pieces, in any order, by any thread, are the files that save_file writes."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random

import numpy as np
import pytest
from safetensors.numpy import save_file

from mergegraph.checkpoint.layout import OutputLayout, build_layout
from mergegraph.errors import DiskFullError, OutputError
from mergegraph.storage.writer import OutputWriter
from mergegraph.tensorspec import DType, TensorSpec

TENSORS = {
    "a": np.arange(1000, dtype=np.float32).reshape(10, 100),
    "b": np.arange(777, dtype=np.int16),
    "c": np.arange(400, dtype=np.float64),
    "empty": np.zeros((0, 4), dtype=np.float16),
    "scalar": np.array(3, dtype=np.int64),
}
SPECS = {
    "a": TensorSpec((10, 100), DType.F32),
    "b": TensorSpec((777,), DType.I16),
    "c": TensorSpec((400,), DType.F64),
    "empty": TensorSpec((0, 4), DType.F16),
    "scalar": TensorSpec((), DType.I64),
}


@pytest.fixture
def layout() -> OutputLayout:
    return build_layout(SPECS, 4000)


def pieces(size: int) -> list[tuple[str, int, int]]:
    return [
        (name, offset, min(size, array.nbytes - offset))
        for name, array in TENSORS.items()
        for offset in range(0, array.nbytes, size)
    ]


def assert_as_save_file(staging: Path, layout: OutputLayout) -> None:
    for shard in layout.shards:
        expected = staging.parent / "expected.safetensors"
        save_file({name: TENSORS[name] for name in shard.tensors}, expected, metadata={"format": "pt"})
        assert (staging / shard.file).read_bytes() == expected.read_bytes()
        expected.unlink()


def write_all(writer: OutputWriter) -> None:
    for name, array in TENSORS.items():
        writer.write(name, 0, array)


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    path = tmp_path / "staging"
    path.mkdir()
    return path


def test_shuffled_pieces_from_many_threads_make_the_same_files(staging: Path, layout: OutputLayout) -> None:
    jobs = pieces(100)
    Random(0).shuffle(jobs)

    def write(job: tuple[str, int, int]) -> None:
        name, offset, size = job
        writer.write(name, offset, TENSORS[name].reshape(-1).view(np.uint8)[offset : offset + size])

    assert len(layout.shards) == 3
    with OutputWriter(staging, layout, resume=False, max_open=1) as writer, ThreadPoolExecutor(4) as threads:
        list(threads.map(write, jobs))
        for name in TENSORS:
            writer.flush_hint(name)
        writer.sync()
    assert_as_save_file(staging, layout)


def test_a_system_that_writes_less_than_asked_is_asked_again(
    staging: Path, layout: OutputLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: real(fd, view[:7], at))
    with OutputWriter(staging, layout, resume=False) as writer:
        write_all(writer)
    assert_as_save_file(staging, layout)


def test_files_have_their_full_size_before_the_first_tensor(staging: Path, layout: OutputLayout) -> None:
    with OutputWriter(staging, layout, resume=False):
        for shard in layout.shards:
            info = (staging / shard.file).stat()
            assert info.st_size == shard.size
            assert info.st_blocks * 512 >= shard.size


def test_a_resumed_run_keeps_what_is_there_and_repairs_the_rest(staging: Path, layout: OutputLayout) -> None:
    with OutputWriter(staging, layout, resume=False) as writer:
        write_all(writer)
    first, second, _ = (staging / shard.file for shard in layout.shards)
    first.write_bytes(b"\0" * 4 + first.read_bytes()[4:] + b"left over")
    second.unlink()
    with OutputWriter(staging, layout, resume=True) as writer:
        for name in layout.shards[1].tensors:
            writer.write(name, 0, TENSORS[name])
    assert_as_save_file(staging, layout)


def test_a_fresh_run_keeps_nothing(staging: Path, layout: OutputLayout) -> None:
    with OutputWriter(staging, layout, resume=False) as writer:
        write_all(writer)
    with OutputWriter(staging, layout, resume=False) as writer:
        buffer = np.ones_like(TENSORS["a"])
        writer.read_back("a", 0, buffer)
        assert not buffer.any()


def test_a_link_in_place_of_a_shard_is_not_written_through(staging: Path, layout: OutputLayout) -> None:
    victim = staging.parent / "victim"
    victim.write_text("precious")
    (staging / layout.shards[0].file).symlink_to(victim)
    with pytest.raises(OutputError):
        OutputWriter(staging, layout, resume=True)
    with OutputWriter(staging, layout, resume=False) as writer:
        write_all(writer)
    assert victim.read_text() == "precious"


def test_what_was_written_can_be_read_back(staging: Path, layout: OutputLayout) -> None:
    with OutputWriter(staging, layout, resume=False) as writer:
        write_all(writer)
        for name, array in TENSORS.items():
            buffer = np.zeros_like(array)
            writer.read_back(name, 0, buffer)
            assert np.array_equal(buffer, array)
        os.truncate(staging / layout.shards[0].file, 300)
        with pytest.raises(OutputError, match="too short"):
            writer.read_back("a", 0, np.zeros_like(TENSORS["a"]))


@pytest.mark.parametrize(("offset", "size"), [(-1, 4), (0, 4001), (4000, 1)])
def test_a_range_outside_the_tensor_is_a_mistake_of_the_caller(
    staging: Path, layout: OutputLayout, offset: int, size: int
) -> None:
    with OutputWriter(staging, layout, resume=False) as writer:
        with pytest.raises(ValueError, match="not within 4000"):
            writer.write("a", offset, bytes(size))
        with pytest.raises(ValueError, match="not within 4000"):
            writer.read_back("a", offset, bytearray(size))


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the kernel itself refuse to make any file of this process longer than `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_real_limit_of_the_system_is_met_before_anything_is_computed(
    staging: Path, layout: OutputLayout
) -> None:
    with (
        pytest.raises(DiskFullError, match=r"does not allow a file this large.*shard-size"),
        file_size_limit(3000),
    ):
        OutputWriter(staging, layout, resume=False)
    assert list(staging.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_during_allocation_is_left_as_it_was(
    staging: Path, layout: OutputLayout, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real, calls = os.posix_fallocate, []

    def full(descriptor: int, offset: int, size: int) -> None:
        calls.append(size)
        if len(calls) == 2:
            raise OSError(code, os.strerror(code))
        real(descriptor, offset, size)

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiskFullError, match=r"no room left: .* needed, .* free — free some space"):
        OutputWriter(staging, layout, resume=False)
    assert len(calls) == 2
    assert list(staging.iterdir()) == []


def test_a_resumed_run_that_finds_no_room_keeps_what_was_finished(
    staging: Path, layout: OutputLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    with OutputWriter(staging, layout, resume=False) as writer:
        write_all(writer)
    (staging / layout.shards[2].file).unlink()
    monkeypatch.setattr("mergegraph.storage.writer.free_bytes", lambda path: 10)
    with pytest.raises(DiskFullError, match="needed"):
        OutputWriter(staging, layout, resume=True)
    assert sorted(p.name for p in staging.iterdir()) == [shard.file for shard in layout.shards[:2]]


def test_too_little_free_space_is_noticed_before_any_is_taken(
    staging: Path, layout: OutputLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mergegraph.storage.writer.free_bytes", lambda path: layout.file_bytes - 1)
    with pytest.raises(DiskFullError, match="needed"):
        OutputWriter(staging, layout, resume=False)
    assert list(staging.iterdir()) == []


def test_a_file_system_that_cannot_reserve_is_used_all_the_same(
    staging: Path, layout: OutputLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    with OutputWriter(staging, layout, resume=False) as writer:
        write_all(writer)
    assert_as_save_file(staging, layout)


@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, OutputError)]
)
@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_write_that_fails_is_typed_and_names_the_file(
    staging: Path,
    layout: OutputLayout,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    kind: type[Exception],
    call: str,
) -> None:
    def broken(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    with OutputWriter(staging, layout, resume=False) as writer:
        monkeypatch.setattr(os, call, broken)
        with pytest.raises(kind, match=r"model-00001-of-00003\.safetensors"):
            writer.write("a", 0, TENSORS["a"])
            writer.sync()
