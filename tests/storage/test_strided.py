"""Elements that lie apart are read and written where numpy would put them, and nothing else is touched."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergegraph.checkpoint.view import RowOrder, View
from mergegraph.storage.strided import read_view, write_view
from tests.checkpoint.views import places, views

SIZES = st.sampled_from((1, 2, 4, 8))
Bytes = npt.NDArray[np.uint8]


class Memory:
    """A stored tensor; every transfer must stay within it, and is counted."""

    def __init__(self, elements: int, size: int, seed: int = 0) -> None:
        self.data = np.random.default_rng(seed).integers(0, 256, elements * size, dtype=np.uint8)
        self.transfers = 0

    def read(self, offset: int, buffer: memoryview) -> None:
        assert offset >= 0 and offset + len(buffer) <= len(self.data)
        self.transfers += 1
        buffer[:] = self.data[offset : offset + len(buffer)].data

    def write(self, offset: int, buffer: memoryview) -> None:
        assert offset >= 0 and offset + len(buffer) <= len(self.data)
        self.transfers += 1
        self.data[offset : offset + len(buffer)] = np.frombuffer(buffer, np.uint8)


def elements(memory: Memory, size: int) -> Bytes:
    return memory.data.reshape(-1, size)


def drawn(data: st.DataObject, **kind: Any) -> tuple[View, int, Memory, int, int]:
    view, size = data.draw(views(**kind)), data.draw(SIZES)
    begin = data.draw(st.integers(0, view.numel))
    count = data.draw(st.integers(0, view.numel - begin))
    return view, size, Memory(int(places(view).max()) + 1, size), begin, count


@given(st.data())
def test_reading_gathers_what_indexing_gathers(data: st.DataObject) -> None:
    view, size, memory, begin, count = drawn(data)
    buffer = np.zeros(count * size, dtype=np.uint8)
    read_view(view, size, begin, buffer, memory.read)
    expected = elements(memory, size)[places(view)[begin : begin + count]]
    assert buffer.tobytes() == expected.tobytes()


@given(st.data())
def test_writing_scatters_what_indexing_scatters_and_leaves_the_rest(data: st.DataObject) -> None:
    view, size, memory, begin, count = drawn(data, writable=True)
    buffer = np.random.default_rng(1).integers(0, 256, count * size, dtype=np.uint8)
    expected = elements(memory, size).copy()
    expected[places(view)[begin : begin + count]] = buffer.reshape(-1, size)
    write_view(view, size, begin, buffer, memory.write)
    assert memory.data.tobytes() == expected.tobytes()


@given(st.data())
def test_what_was_written_is_read_again(data: st.DataObject) -> None:
    view, size, memory, begin, count = drawn(data, writable=True)
    buffer = np.random.default_rng(1).integers(0, 256, count * size, dtype=np.uint8)
    write_view(view, size, begin, buffer, memory.write)
    again = np.zeros_like(buffer)
    read_view(view, size, begin, again, memory.read)
    assert again.tobytes() == buffer.tobytes()


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_transposed_matrix_is_transposed(size: int) -> None:
    memory = Memory(20 * 30, size)
    buffer = np.zeros(20 * 30 * size, dtype=np.uint8)
    read_view(View(0, 30, 20, 1, 30), size, 0, buffer, memory.read)
    expected = elements(memory, size).reshape(20, 30, size).transpose(1, 0, 2)
    assert buffer.tobytes() == expected.tobytes()
    assert memory.transfers == 20


def test_a_transposed_matrix_is_written_along_its_columns() -> None:
    memory = Memory(20 * 30, 4)
    buffer = np.arange(600, dtype=np.uint32).view(np.uint8)
    write_view(View(0, 30, 20, 1, 30), 4, 0, buffer, memory.write)
    found = memory.data.view(np.uint32).reshape(20, 30)
    assert np.array_equal(found, np.arange(600).reshape(30, 20).T)


def test_a_head_of_other_pairs_is_read_in_its_own_order() -> None:
    memory = Memory(8, 2)
    buffer = np.zeros(16, dtype=np.uint8)
    read_view(View(0, 8, 1, 1, 1, RowOrder(4, 4, "interleaved")), 2, 0, buffer, memory.read)
    assert np.array_equal(buffer.reshape(8, 2), elements(memory, 2)[[0, 2, 1, 3, 4, 6, 5, 7]])


def test_writing_between_other_elements_is_refused() -> None:
    """Whole spans are transferred, so that would destroy what lies between."""
    memory = Memory(64, 4)
    with pytest.raises(ValueError, match="2 apart"):
        write_view(View(0, 4, 8, 16, 2), 4, 0, np.zeros(128, dtype=np.uint8), memory.write)


def test_a_range_without_elements_transfers_nothing() -> None:
    memory = Memory(64, 4)
    read_view(View(3, 4, 8, 16), 4, 8, np.zeros(0, dtype=np.uint8), memory.read)
    write_view(View(3, 4, 8, 16), 4, 8, np.zeros(0, dtype=np.uint8), memory.write)
    assert memory.transfers == 0
