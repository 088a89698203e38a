"""Blocks of output on their way to disk, so that whoever computed them goes on computing."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable
from threading import Condition, Lock, Thread

import numpy as np
import numpy.typing as npt

PAGE = mmap.PAGESIZE
BLOCK_BYTES = (1 << 20) + PAGE
"""Size of a block: a tile of a mebibyte fits wherever in a page it begins; more gains nothing (measured)."""
BLOCKS = 15
"""Copies at most. `mergegraph.schedule.memory` counts them, as WRITE_BYTES, for pages of up to 64 KiB."""
THREADS = 2
"""Writing threads: the next write is with the system before the last one returns."""

Bytes = npt.NDArray[np.uint8]
Store = Callable[[int, memoryview, int], None]
"""(file number, bytes, position): writes them, or raises a typed error."""


class BlockQueue:
    """Copies of what is to be written, and the threads that write them, in about the order they came in.

    At most `blocks` copies exist: whoever has more to write waits until one is written. Nothing is
    allocated and no thread started before the first `put`.

    After a failed write nothing more is written, and `put` and `flush` raise its error: there is
    a hole in the output from then on, so nobody may be told that all is well.

    Args:
        store: writes bytes. In memory they lie as they do in the file, relative to the start of a page.
    """

    def __init__(
        self,
        store: Store,
        *,
        blocks: int = BLOCKS,
        block_bytes: int = BLOCK_BYTES,
        threads: int = THREADS,
    ) -> None:
        if block_bytes % PAGE or min(blocks, block_bytes, threads) < 1:
            raise ValueError(f"{blocks} blocks of {block_bytes} bytes for {threads} threads")
        self._store = store
        self._blocks, self._block_bytes, self._limit = blocks, block_bytes, threads
        self._free: list[Bytes] = []
        self._made = 0
        self._waiting: deque[tuple[int, int, int, Bytes, memoryview]] = deque()
        self._handed = 0
        self._unwritten: dict[int, None] = {}  # numbers of blocks, oldest first
        self._busy = 0
        self._error: BaseException | None = None
        self._closed = False
        self._threads: list[Thread] = []
        self._lock = Lock()
        self._work = Condition(self._lock)  # for the threads: there is something to do
        self._progress = Condition(self._lock)  # for everyone else: something was done

    def put(self, file: int, position: int, data: memoryview) -> None:
        """Have `data` written at `position` of `file`; it may change once this returns. Thread-safe."""
        source = np.frombuffer(data, dtype=np.uint8)
        while len(source):
            at = position % PAGE
            part = source[: self._block_bytes - at]
            block = self._take()
            view = block[at : at + len(part)]
            view[:] = part  # by numpy, which lets other threads run meanwhile
            self._hand_over(file, position, block, view.data)
            source = source[len(part) :]
            position += len(part)

    def mark(self) -> int:
        """A point in time, to ask `settled` about."""
        with self._lock:
            return self._handed

    def settled(self, mark: int) -> bool:
        """Whether all that was put before `mark` is written."""
        with self._lock:
            return next(iter(self._unwritten), mark + 1) > mark

    def wait(self) -> None:
        """Return once everything that was put is written, or given up after an error."""
        with self._lock:
            while self._waiting or self._busy:
                self._progress.wait()

    def flush(self) -> None:
        """Return once everything that was put is written; raise what went wrong with any of it."""
        self.wait()
        with self._lock:
            self._check()

    def close(self) -> None:
        """Write what is waiting and join the threads. An error that nobody heard of stays unheard."""
        with self._lock:
            self._closed = True
            self._work.notify_all()
            self._progress.notify_all()
        for thread in self._threads:
            thread.join()
        self._free.clear()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._closed:
            raise ValueError("used after close()")

    def _take(self) -> Bytes:
        with self._lock:
            self._check()
            while not self._free and self._made == self._blocks:
                self._progress.wait()
                self._check()
            if self._free:
                return self._free.pop()
            # Whole pages that belong to nothing else, as writing past the page cache demands.
            block = np.frombuffer(mmap.mmap(-1, self._block_bytes), dtype=np.uint8)
            self._made += 1
            return block

    def _hand_over(self, file: int, position: int, block: Bytes, view: memoryview) -> None:
        with self._lock:
            if self._error is not None or self._closed:
                self._free.append(block)
            self._check()
            if len(self._threads) < min(self._limit, len(self._waiting) + self._busy + 1):
                self._start(block)
            self._handed += 1
            self._unwritten[self._handed] = None
            self._waiting.append((self._handed, file, position, block, view))
            self._work.notify()

    def _start(self, block: Bytes) -> None:
        """Start one more thread, before there is anything that only it would write."""
        thread = Thread(target=self._drain, name=f"mergegraph-write-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the system has no more
            if not self._threads:
                self._free.append(block)
                raise
        else:
            self._threads.append(thread)

    def _drain(self) -> None:
        while (item := self._next()) is not None:
            number, file, position, block, view = item
            error = None
            try:
                self._store(file, view, position)
            except BaseException as raised:
                error = raised
            self._done(number, block, error)

    def _next(self) -> tuple[int, int, int, Bytes, memoryview] | None:
        with self._lock:
            while not self._waiting:
                if self._closed:
                    return None
                self._work.wait()
            self._busy += 1
            return self._waiting.popleft()

    def _done(self, number: int, block: Bytes, error: BaseException | None) -> None:
        with self._lock:
            self._busy -= 1
            self._free.append(block)
            if error is None:
                del self._unwritten[number]
            else:
                # It stays among the unwritten, and so does all that came after it.
                self._error = self._error or error
                self._free.extend(item[3] for item in self._waiting)
                self._waiting.clear()
            self._progress.notify_all()
