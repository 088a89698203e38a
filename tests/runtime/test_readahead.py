"""Reading ahead: in the order of work, never further ahead than the window, and never in the way."""

from __future__ import annotations

from threading import Event

from mergegraph.graph.graph import Graph, Output, Piece, SourceTensor, filled
from mergegraph.ops import load
from mergegraph.runtime.readahead import STEP, ReadAhead
from mergegraph.schedule.program import Program
from mergegraph.schedule.tiling import programs
from mergegraph.tensorspec import DType, TensorSpec

SPEC = TensorSpec((STEP // 2,), DType.BF16)  # one step of bytes


def copies(count: int) -> list[Program]:
    """Programs that copy a step of bytes each."""
    outputs = {
        f"out{i}": Output(SPEC, (Piece(load(0, SPEC), (SourceTensor("a", f"x{i}"),)),)) for i in range(count)
    }
    return programs(Graph(outputs))


class Disk:
    """Notes what it is asked for; `waited` is set when `count` ranges have been."""

    def __init__(self, count: int) -> None:
        self.asked: list[tuple[str, int, int | None]] = []
        self.waited, self._count = Event(), count

    def advise(self, source: str, tensor: str, offset: int = 0, length: int | None = None) -> None:
        """Note a range."""
        self.asked.append((tensor, offset, length))
        if len(self.asked) == self._count:
            self.waited.set()


def test_it_asks_for_what_comes_first_and_no_further_than_the_window() -> None:
    disk = Disk(3)
    with ReadAhead(copies(8), disk, window=3 * STEP):
        assert disk.waited.wait(10)
    assert disk.asked == [(f"x{i}", 0, STEP) for i in range(3)]


def test_it_goes_on_as_work_goes_on_and_leaves_out_what_is_behind() -> None:
    work, disk = copies(8), Disk(3)
    ahead = ReadAhead(work, disk, window=3 * STEP)
    ahead.reached(work[5])
    ahead.reached(work[1])  # work on several programs goes on at once
    with ahead:
        assert disk.waited.wait(10)
    assert disk.asked == [(f"x{i}", 0, STEP) for i in (5, 6, 7)]


def test_what_is_no_checkpoint_is_not_asked_for() -> None:
    disk = Disk(1)
    output = Output(SPEC, (Piece(load(0, SPEC), (filled(0.0),)),))
    with ReadAhead(programs(Graph({"zeros": output})), disk):
        pass
    assert disk.asked == []


def test_a_file_that_is_gone_is_left_to_whoever_reads_it() -> None:
    class Gone(Disk):
        def advise(self, source: str, tensor: str, offset: int = 0, length: int | None = None) -> None:
            raise OSError("gone")

    with ReadAhead(copies(2), Gone(1)):
        pass
