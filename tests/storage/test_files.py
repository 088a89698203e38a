"""Descriptors are few, never closed under a reader, and never leaked."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mergegraph.storage.files import FilePool, byte_view, existing_parent, free_bytes


@pytest.fixture
def pool(tmp_path: Path) -> FilePool[int]:
    for i in range(20):
        (tmp_path / str(i)).write_text(str(i))
    return FilePool(lambda key: os.open(tmp_path / str(key), os.O_RDONLY), 3)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def test_no_more_than_the_limit_stay_open(pool: FilePool[int]) -> None:
    for i in [*range(20), 19]:
        with pool.use(i) as descriptor:
            assert os.pread(descriptor, 9, 0) == str(i).encode()
        assert len(pool) <= 3
    pool.close()
    assert len(pool) == 0


def test_the_least_recently_used_is_closed_first(pool: FilePool[int]) -> None:
    seen = {}
    for i in (0, 1, 2, 0, 3):
        with pool.use(i) as seen[i]:
            pass
    with pool.use(0) as again:
        assert again == seen[0]
    pool.close()


def test_a_descriptor_in_use_outlives_both_eviction_and_close(pool: FilePool[int]) -> None:
    with pool.use(0) as held:
        for i in range(1, 10):
            with pool.use(i):
                pass
        assert os.pread(held, 9, 0) == b"0"
        pool.close()
        assert os.pread(held, 9, 0) == b"0"
    assert len(pool) == 0
    with pytest.raises(ValueError, match="after close"), pool.use(0):
        pass


def test_nested_users_beyond_the_limit_are_served(pool: FilePool[int]) -> None:
    with pool.use(0), pool.use(1), pool.use(2), pool.use(3) as fourth:
        assert os.pread(fourth, 9, 0) == b"3"
        assert len(pool) == 4
    assert len(pool) == 3
    pool.close()


def test_many_threads_always_read_the_right_file(pool: FilePool[int]) -> None:
    def read(i: int) -> bool:
        with pool.use(i % 20) as descriptor:
            return os.pread(descriptor, 9, 0) == str(i % 20).encode()

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, range(2000)))
    pool.close()


def test_a_failed_open_leaves_nothing_behind(pool: FilePool[int]) -> None:
    for _ in range(3):
        with pytest.raises(FileNotFoundError), pool.use(99):
            pass
    assert len(pool) == 0


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "float16", "float32", "float64", "int64"])
def test_the_bytes_of_any_array_are_seen_without_a_copy(dtype: str) -> None:
    array = np.zeros((2, 3), dtype)
    view = byte_view(array)
    view[0] = 1
    assert len(view) == array.nbytes
    assert array.view(np.uint8).sum() == 1
    assert len(byte_view(np.zeros((0, 3), dtype))) == 0
    assert len(byte_view(np.zeros((), dtype))) == array.itemsize


def test_a_strided_array_is_not_silently_copied() -> None:
    with pytest.raises((TypeError, ValueError, BufferError)):
        byte_view(np.zeros((4, 4))[:, 1])


def test_free_space_is_asked_of_the_nearest_existing_directory(tmp_path: Path) -> None:
    assert existing_parent(tmp_path / "a" / "b") == tmp_path.resolve()
    assert free_bytes(tmp_path / "a" / "b") > 0
