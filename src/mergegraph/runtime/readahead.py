"""Asking the disk for what will be needed next, while the processors work on what is there.

Workers read several files a tile at a time, which a system's own read-ahead takes for random access. So a
thread walks along the schedule, a bounded way ahead of the work, and names the ranges to come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Condition, Thread
from types import TracebackType
from typing import Protocol, Self

from mergegraph.schedule.program import Program

WINDOW = 256 << 20
"""Bytes that may be asked for ahead of the work; they are in the page cache, not in the process."""
STEP = 4 << 20
"""Bytes asked for at a time from one file."""
SMALL = 1 << 17
"""Tensors of fewer bytes are left to the system's own read-ahead: their neighbours are read next."""


class Advises(Protocol):
    """What can be told of reads to come."""

    def advise(self, source: str, tensor: str, offset: int = 0, length: int | None = None) -> None:
        """Expect that a range of a tensor is read."""


class ReadAhead:
    """Walks ahead of the work along `programs`, inside a ``with`` block.

    Args:
        programs: in the order of work.
        reader: is told what to expect.
    """

    def __init__(self, programs: Sequence[Program], reader: Advises, window: int = WINDOW) -> None:
        self._programs = programs
        self._reader = reader
        self._window = window
        self._starts = {id(p): start for p, start in zip(programs, _starts(programs), strict=True)}
        self._reached = 0
        self._stopped = False
        self._changed = Condition()
        self._thread = Thread(target=self._walk, name="read-ahead", daemon=True)

    def reached(self, program: Program, share: float = 0.0) -> None:
        """Say that work has come to `program`, or to a share of it."""
        at = self._starts.get(id(program))
        if at is None:
            return
        at += int(share * _size(program))
        if at > self._reached:
            with self._changed:
                self._reached = at
                self._changed.notify()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()

    def _walk(self) -> None:
        for at, source, tensor, offset, length in self._ranges():
            if not self._wait_for(at):
                return
            if at >= self._reached:  # what is behind was read, or is being read
                try:
                    self._reader.advise(source, tensor, offset, length)
                except Exception:
                    return  # whoever reads it next says what is wrong

    def _wait_for(self, at: int) -> bool:
        """Wait until position `at` is near enough; False: the work is over."""
        with self._changed:
            while not self._stopped and at >= self._reached + self._window:
                self._changed.wait()
            return not self._stopped

    def _ranges(self) -> Iterator[tuple[int, str, str, int, int]]:
        """Yield (position, checkpoint, tensor, offset, length), files taking turns as they do in the work."""
        at = 0
        for program in self._programs:
            loads = [load for load in program.phases[0].loads if program.source(load).filled is None]
            size = max((load.spec.nbytes for load in loads), default=0)
            if size < SMALL:
                at += _size(program)
                continue
            for offset in range(0, size, STEP):
                for load in loads:
                    source, length = program.source(load), min(STEP, load.spec.nbytes - offset)
                    if length <= 0:
                        continue
                    first = 0 if source.view is None else source.view.offset * load.spec.dtype.bits // 8
                    yield at, source.checkpoint, source.tensor, first + offset, length
                    at += length


def _starts(programs: Sequence[Program]) -> Iterator[int]:
    at = 0
    for program in programs:
        yield at
        at += _size(program)


def _size(program: Program) -> int:
    """Bytes that the first phase of a program reads."""
    loads = program.phases[0].loads
    return sum(load.spec.nbytes for load in loads if program.source(load).filled is None)
