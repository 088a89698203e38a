"""Whatever is put comes out where it belongs, with bounded memory, and no failure goes unheard."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from random import Random
from threading import Event, Lock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergegraph.errors import DiskFullError
from mergegraph.schedule.memory import WRITE_BYTES
from mergegraph.storage.blocks import BLOCK_BYTES, BLOCKS, PAGE, BlockQueue

DEADLINE = 60
"""Seconds after which something that should have happened long ago is taken for a hang."""


class Files:
    """Files in memory that can be told to wait or to fail.

    Attributes:
        gate: writes wait until it is set.
        broken: writes at these positions fail.
        written: (file, position, size) of each write that ended well, in that order.
    """

    def __init__(self, size: int = 0, count: int = 1) -> None:
        self.contents = [bytearray(size) for _ in range(count)]
        self.gate = Event()
        self.gate.set()
        self.entered = Event()
        self.broken: tuple[int, ...] = ()
        self.written: list[tuple[int, int, int]] = []
        self.lock = Lock()

    def store(self, file: int, view: memoryview, position: int) -> None:
        self.entered.set()
        assert self.gate.wait(DEADLINE)
        if position in self.broken:
            raise DiskFullError(f"no room at {position}")
        address = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
        assert (address - position) % PAGE == 0, "whole pages of the file are whole pages in memory"
        with self.lock:
            self.contents[file][position : position + len(view)] = view
            self.written.append((file, position, len(view)))


def view(data: bytes) -> memoryview:
    return memoryview(data)


def own_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("mergegraph-write")]


@pytest.fixture(autouse=True)
def threads_end() -> Iterator[None]:
    yield
    assert own_threads() == []


@given(
    cuts=st.lists(st.integers(0, 5 * PAGE), max_size=12),
    seed=st.integers(0, 1000),
    blocks=st.integers(1, 4),
    pages=st.integers(1, 3),
    threads=st.integers(1, 3),
)
def test_pieces_of_any_size_in_any_order_from_many_threads_come_together(
    cuts: list[int], seed: int, blocks: int, pages: int, threads: int
) -> None:
    size = 5 * PAGE
    expected = [np.random.default_rng(seed + i).integers(0, 256, size, np.uint8).tobytes() for i in (0, 1)]
    edges = sorted({0, size, *cuts})
    jobs = [(file, a, b) for file in (0, 1) for a, b in pairwise(edges)]
    Random(seed).shuffle(jobs)
    files = Files(size, 2)
    queue = BlockQueue(files.store, blocks=blocks, block_bytes=pages * PAGE, threads=threads)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda job: queue.put(job[0], job[1], view(expected[job[0]])[job[1] : job[2]]), jobs))
    queue.flush()
    queue.close()
    assert [bytes(c) for c in files.contents] == expected
    assert sum(n for _, _, n in files.written) == 2 * size, "every byte is written once"


def test_a_long_piece_is_cut_at_pages() -> None:
    files = Files(4 * PAGE)
    queue = BlockQueue(files.store, blocks=9, block_bytes=2 * PAGE, threads=1)
    queue.put(0, 100, view(bytes(3 * PAGE)))
    queue.close()
    assert files.written == [(0, 100, 2 * PAGE - 100), (0, 2 * PAGE, PAGE + 100)]


def test_what_was_put_may_change_at_once() -> None:
    files = Files(8)
    files.gate.clear()
    queue = BlockQueue(files.store)
    data = bytearray(b"precious")
    queue.put(0, 0, memoryview(data))
    data[:] = b"reused.."
    files.gate.set()
    queue.close()
    assert files.contents == [bytearray(b"precious")]


def test_no_more_copies_exist_than_allowed_and_they_are_within_the_proven_memory() -> None:
    files = Files(100 * PAGE)
    most = 0

    def store(file: int, data: memoryview, position: int) -> None:
        nonlocal most
        with files.lock:
            most = max(most, queue.mark() - len(files.written))
        files.store(file, data, position)

    queue = BlockQueue(store, blocks=3, block_bytes=PAGE, threads=2)
    for i in range(100):
        queue.put(0, i * PAGE, view(bytes(PAGE)))
    queue.close()
    assert 1 <= most <= 3
    assert len(files.written) == 100
    assert BLOCKS * BLOCK_BYTES <= WRITE_BYTES


def test_nothing_is_started_for_nothing() -> None:
    queue = BlockQueue(Files().store)
    assert own_threads() == []
    queue.put(0, 5, view(b""))
    queue.flush()
    assert queue.settled(queue.mark())
    assert own_threads() == []
    queue.close()


def test_little_to_write_takes_one_thread() -> None:
    queue = BlockQueue(Files(8).store, threads=4)
    for i in range(5):
        queue.put(0, i, view(b"x"))
        queue.flush()
    assert own_threads() == ["mergegraph-write-0"]
    queue.close()


@pytest.mark.parametrize("allowed", [0, 1])
def test_threads_that_the_system_does_not_give_are_done_without_or_an_error(
    monkeypatch: pytest.MonkeyPatch, allowed: int
) -> None:
    """Nothing hangs: who waits must not wait for a thread that never was."""
    files, left, real = Files(8), iter(range(allowed)), threading.Thread.start

    def start(self: threading.Thread) -> None:
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        real(self)

    files.gate.clear()
    queue = BlockQueue(files.store, threads=2)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        for i in range(3 if allowed else 1):
            if allowed:
                queue.put(0, i, view(b"x"))
            else:
                with pytest.raises(RuntimeError, match="new thread"):
                    queue.put(0, i, view(b"x"))
    files.gate.set()
    queue.flush()
    assert bytes(files.contents[0][:3]) == (b"xxx" if allowed else bytes(3))
    queue.close()


def test_a_point_in_time_is_settled_when_all_before_it_is_written() -> None:
    slow = Event()
    second = Event()

    def store(file: int, data: memoryview, position: int) -> None:
        if position == 0:
            assert slow.wait(DEADLINE)
        else:
            second.set()

    queue = BlockQueue(store, threads=2)
    assert queue.settled(queue.mark())
    before = queue.mark()
    queue.put(0, 0, view(b"x"))
    middle = queue.mark()
    queue.put(0, 1, view(b"y"))
    assert second.wait(DEADLINE), "the other thread goes on meanwhile"
    after = queue.mark()
    assert [queue.settled(mark) for mark in (before, middle, after)] == [True, False, False]
    slow.set()
    queue.flush()
    assert [queue.settled(mark) for mark in (before, middle, after)] == [True, True, True]
    queue.close()


def test_closing_writes_what_waits_and_ends_the_threads() -> None:
    files = Files(6)
    files.gate.clear()
    queue = BlockQueue(files.store, threads=1)
    for i in range(6):
        queue.put(0, i, view(b"x"))
    files.gate.set()
    queue.close()
    assert files.contents == [bytearray(b"xxxxxx")]
    with pytest.raises(ValueError, match="used after close"):
        queue.put(0, 0, view(b"y"))
    with pytest.raises(ValueError, match="used after close"):
        queue.flush()
    queue.close()


def test_a_failure_is_told_by_every_call_that_promises_anything() -> None:
    files = Files(9)
    files.broken = (1,)
    queue = BlockQueue(files.store, threads=1)
    queue.put(0, 0, view(b"x"))
    good = queue.mark()
    queue.flush()
    queue.put(0, 1, view(b"x"))
    queue.wait()
    for _ in range(2):
        with pytest.raises(DiskFullError, match="no room at 1"):
            queue.flush()
        with pytest.raises(DiskFullError, match="no room at 1"):
            queue.put(0, 2, view(b"x"))
    assert queue.settled(good)
    assert not queue.settled(queue.mark())
    queue.close()
    assert files.contents == [bytearray(b"x" + bytes(8))]


def test_after_a_failure_what_waits_is_given_up_and_who_waits_is_told() -> None:
    files = Files(9)
    files.broken = (0,)
    files.gate.clear()
    queue = BlockQueue(files.store, blocks=2, threads=1)
    queue.put(0, 0, view(b"x"))
    queue.put(0, 1, view(b"x"))
    with ThreadPoolExecutor(3) as pool:
        more = [pool.submit(queue.put, 0, 2, view(b"x")), pool.submit(queue.flush)]
        files.gate.set()
        for future in more:
            assert isinstance(future.exception(DEADLINE), DiskFullError)
    queue.close()
    assert files.written == []


def test_a_failure_that_is_no_error_of_ours_comes_out_unchanged() -> None:
    error = OSError(errno.EIO, "odd")

    def store(*_: object) -> None:
        raise error

    queue = BlockQueue(store)
    queue.put(0, 0, view(b"x"))
    with pytest.raises(OSError, match="odd") as caught:
        queue.flush()
    assert caught.value is error
    queue.close()


def test_one_that_waits_for_a_block_is_told_of_the_end() -> None:
    files = Files(9)
    files.gate.clear()
    queue = BlockQueue(files.store, blocks=1, threads=1)
    queue.put(0, 0, view(b"x"))
    with ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(queue.put, 0, 1, view(b"x"))
        closing = pool.submit(queue.close)
        files.gate.set()
        assert closing.exception(DEADLINE) is None
        told = waiting.exception(DEADLINE)
    assert told is None or "used after close" in str(told)
    assert (0, 0, 1) in files.written


@pytest.mark.parametrize(
    "wrong", [{"blocks": 0}, {"threads": 0}, {"block_bytes": 0}, {"block_bytes": PAGE + 1}]
)
def test_impossible_settings_are_a_mistake_of_the_caller(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="blocks of"):
        BlockQueue(Files().store, **wrong)
