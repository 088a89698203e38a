"""Shards written in pieces, in any order, by any thread, are the files that save_file writes."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from mergegraph.checkpoint.layout import OutputLayout, build_layout
from mergegraph.errors import DiskFullError, OutputError
from mergegraph.storage.blocks import PAGE
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


def pieces(size: int, tensors: dict[str, np.ndarray] = TENSORS) -> list[tuple[str, int, int]]:
    return [
        (name, offset, min(size, array.nbytes - offset))
        for name, array in tensors.items()
        for offset in range(0, array.nbytes, size)
    ]


def assert_as_save_file(
    staging: Path, layout: OutputLayout, tensors: dict[str, np.ndarray] = TENSORS
) -> None:
    for shard in layout.shards:
        expected = staging.parent / "expected.safetensors"
        save_file({name: tensors[name] for name in shard.tensors}, expected, metadata={"format": "pt"})
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


# ---- past the page cache -----------------------------------------------------------------------------

MANY = {
    **{f"{i:02d}.{'long name ' * 12}": np.arange(i, dtype=np.int16) for i in range(70)},
    **{f"w{i}": np.random.default_rng(i).standard_normal(5000 + 617 * i, dtype=np.float32) for i in range(4)},
}
"""A header of several pages, a crowd in which many share a page, and tensors of several pages."""
MANY_LAYOUT = build_layout(
    {name: TensorSpec(x.shape, DType.I16 if x.dtype == np.int16 else DType.F32) for name, x in MANY.items()},
    70_000,
)
DIRECT: int = getattr(os, "O_DIRECT", 0)


def open_many(staging: Path, *, resume: bool = False, small: int = 1) -> OutputWriter:
    return OutputWriter(staging, MANY_LAYOUT, resume=resume, small=small)


def write_piece(writer: OutputWriter, job: tuple[str, int, int]) -> None:
    name, offset, size = job
    writer.write(name, offset, MANY[name].view(np.uint8)[offset : offset + size])


def goes_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & DIRECT)


def own_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("mergegraph-write")]


@pytest.fixture
def needs_direct(tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path / "probe", os.O_RDWR | os.O_CREAT | DIRECT))
    except OSError:
        pytest.skip("this file system has nothing but its cache")
    if not DIRECT:
        pytest.skip("this system has nothing but its cache")


@given(
    size=st.sampled_from([777, PAGE, 2 * PAGE + 10, 10**6]),
    small=st.sampled_from([1, 1000, PAGE, 10**6]),
    seed=st.integers(0, 1000),
    threads=st.integers(1, 3),
    done=st.floats(0, 1),
)
@settings(max_examples=25)
def test_any_mixture_of_ways_to_write_resumed_or_not_makes_the_same_files(
    tmp_path_factory: pytest.TempPathFactory, size: int, small: int, seed: int, threads: int, done: float
) -> None:
    jobs = pieces(size, MANY)
    Random(seed).shuffle(jobs)
    split = int(done * len(jobs))
    staging = tmp_path_factory.mktemp("mixture") / "staging"
    staging.mkdir()
    for resume, part in ((False, jobs[:split]), (True, jobs[split:])):
        with open_many(staging, resume=resume, small=small) as writer, ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda job: write_piece(writer, job), part))
    assert_as_save_file(staging, MANY_LAYOUT, MANY)
    shutil.rmtree(staging)
    assert own_threads() == []


@pytest.mark.usefixtures("needs_direct")
def test_only_whole_pages_go_past_the_cache_and_none_goes_both_ways(
    staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: dict[bool, set[tuple[int, int]]] = {True: set(), False: set()}
    real = os.pwrite

    def watched(descriptor: int, data: memoryview, position: int) -> int:
        direct, inode = goes_direct(descriptor), os.fstat(descriptor).st_ino
        if direct:
            assert position % PAGE == len(data) % PAGE == 0
        touched = range(position // PAGE, (position + len(data) - 1) // PAGE + 1)
        pages[direct].update((inode, page) for page in touched)
        return real(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", watched)
    jobs = pieces(3 * PAGE + 1, MANY)
    Random(1).shuffle(jobs)
    with open_many(staging) as writer, ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda job: write_piece(writer, job), jobs))
        writer.sync()
    assert_as_save_file(staging, MANY_LAYOUT, MANY)
    assert len(pages[True]) > 5
    assert pages[True].isdisjoint(pages[False])


def test_small_outputs_start_no_thread(staging: Path, layout: OutputLayout) -> None:
    with OutputWriter(staging, layout, resume=False) as writer:
        write_all(writer)
        assert own_threads() == []
        writer.sync()


def write_many(staging: Path) -> None:
    with open_many(staging) as writer:
        for job in pieces(3 * PAGE + 1, MANY):
            write_piece(writer, job)
        writer.sync()
    assert_as_save_file(staging, MANY_LAYOUT, MANY)


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_that_only_has_its_cache_is_used_through_it(
    staging: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & DIRECT:
            raise OSError(code, os.strerror(code))
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    write_many(staging)


def test_a_system_that_knows_of_nothing_but_the_cache_is_used_through_it(
    staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mergegraph.storage.writer._DIRECT", 0)
    write_many(staging)


@pytest.mark.usefixtures("needs_direct")
@pytest.mark.parametrize("after", [0, 3])
def test_a_file_system_that_refuses_when_it_comes_to_writing_is_used_through_its_cache(
    staging: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    real, accepted, refused = os.pwrite, iter(range(after)), []

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        if goes_direct(descriptor) and next(accepted, None) is None:
            refused.append(position)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    write_many(staging)
    # Two threads may be told at the same time, once per file.
    assert 1 <= len(refused) <= 2 * len(MANY_LAYOUT.shards)


@pytest.mark.usefixtures("needs_direct")
@pytest.mark.parametrize("taken", [PAGE, 700, PAGE + 700])
def test_a_system_that_takes_less_than_asked_is_asked_again(
    staging: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """Other than whole pages, which cannot be gone on from, end with the cache."""
    real = os.pwrite

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        if not goes_direct(descriptor):
            return real(descriptor, data, position)
        if not len(data[:taken]) % PAGE:
            return real(descriptor, data[:taken], position)
        plain = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
        try:
            return real(plain, data[:taken], position)
        finally:
            os.close(plain)

    monkeypatch.setattr(os, "pwrite", pwrite)
    write_many(staging)


def failing(code: int, *, direct: bool) -> Callable[..., int]:
    """An `os.pwrite` that fails for descriptors of one kind."""
    real = os.pwrite

    def pwrite(descriptor: int, data: memoryview, position: int) -> int:
        if goes_direct(descriptor) == direct:
            raise OSError(code, os.strerror(code))
        return real(descriptor, data, position)

    return pwrite


@pytest.mark.usefixtures("needs_direct")
@pytest.mark.parametrize(
    ("code", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EFBIG, DiskFullError), (errno.EIO, OutputError)]
)
@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("call", ["write", "flush", "sync", "read_back"])
def test_a_failure_in_the_background_is_typed_names_the_file_and_is_never_forgotten(
    staging: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception], direct: bool, call: str
) -> None:
    with open_many(staging) as writer:
        monkeypatch.setattr(os, "pwrite", failing(code, direct=direct))
        writer.write("w1", 3, MANY["w1"].view(np.uint8)[3:])
        writer.wait()
        monkeypatch.undo()
        calls: dict[str, Callable[[], None]] = {
            "write": lambda: writer.write("w2", 0, MANY["w2"]),
            "flush": writer.flush,
            "sync": writer.sync,
            "read_back": lambda: writer.read_back("w1", 0, np.empty_like(MANY["w1"])),
        }
        for _ in range(2):
            with pytest.raises(kind, match=r"model-\d+-of-\d+\.safetensors"):
                calls[call]()
        assert not writer.settled(writer.mark())
    assert own_threads() == []


def test_what_is_settled_is_in_the_files(staging: Path) -> None:
    with open_many(staging) as writer:
        before = writer.mark()
        assert writer.settled(before)
        writer.write("w1", 0, MANY["w1"])
        writer.wait()
        assert writer.settled(writer.mark())
        shard, begin = MANY_LAYOUT.locate("w1")
        stored = (staging / MANY_LAYOUT.shards[shard].file).read_bytes()[begin : begin + MANY["w1"].nbytes]
        assert stored == MANY["w1"].tobytes()
