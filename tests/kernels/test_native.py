"""Compiled functions, called without their compiler: right arguments, right results, refusals."""

from __future__ import annotations

import inspect
import threading
from typing import Any

import numpy as np
import pytest

from mergegraph.kernels import fused
from mergegraph.kernels.native import Argument, Call, Code, Native, undefined


def run(count: Any, x: Any, table: Any, out: Any) -> Any:
    total = 0
    for i in range(count):
        out[i] = x[i] * table[i % table.shape[0], 1]
        total += x.shape[0]
    return total


TAKES = (Argument(), Argument("float32", 1), Argument("float64", 2), Argument("uint16", 1))


@pytest.fixture(scope="module")
def code() -> Code:
    return fused.object_code(inspect.getsource(run), TAKES)


@pytest.fixture(scope="module")
def function(code: Code) -> Native:
    return Native(code, TAKES)


def test_arrays_of_any_rank_and_type_go_in_and_out(function: Native) -> None:
    x, out = np.arange(5, dtype=np.float32), np.zeros(4, np.uint16)
    table = np.array([[0.0, 2.0], [0.0, 3.0]])
    assert function(4, x, table, out) == 4 * 5
    assert out.tolist() == [0, 3, 4, 9]


def test_it_is_the_same_as_the_compiler_calls(function: Native) -> None:
    x, table = np.arange(100, dtype=np.float32), np.random.default_rng(1).random((7, 2)) * 600
    mine, theirs = np.zeros(100, np.uint16), np.zeros(100, np.uint16)
    assert function(100, x, table, mine) == fused.helper(run)(100, x, table, theirs)
    assert mine.tolist() == theirs.tolist()


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (1, np.zeros(4)),
        (1, np.zeros((4, 1), np.float32)),
        (1, np.zeros(8, np.float32)[::2]),
        (2, np.zeros((2, 4)).T),
        (3, np.zeros(4, np.int16)),
    ],
    ids=["wide", "matrix", "strided", "transposed", "signed"],
)
def test_memory_that_would_be_misread_is_refused(function: Native, place: int, wrong: Any) -> None:
    arguments: list[Any] = [0, np.zeros(4, np.float32), np.zeros((2, 2)), np.zeros(4, np.uint16)]
    arguments[place] = wrong
    with pytest.raises(TypeError, match="contiguous"):
        function(*arguments)


def test_a_missing_argument_is_an_error(function: Native) -> None:
    with pytest.raises(TypeError, match="2 arguments instead of 4"):
        function(1, np.zeros(4, np.float32))


def test_a_call_is_made_again_with_some_arguments_changed(function: Native) -> None:
    table, out = np.array([[0.0, 2.0], [0.0, 3.0]]), np.zeros(4, np.uint16)
    call = Call(function, (4, None, table, out))
    for first in range(3):
        x = np.arange(first, first + 4 + first, dtype=np.float32)
        x.flags.writeable = first != 1
        call.set(1, x)
        again = np.zeros(4, np.uint16)
        assert call() == function(4, x, table, again)
        assert out.tolist() == again.tolist()
    call.set(0, 0)
    call.set(1, np.zeros(0, np.float32))
    assert call() == 0
    with pytest.raises(TypeError, match="contiguous"):
        call.set(1, np.zeros(4))


def test_an_object_can_be_loaded_any_number_of_times(code: Code) -> None:
    x, table = np.ones(3, np.float32), np.ones((1, 2))
    for _ in range(3):
        out = np.zeros(3, np.uint16)
        assert Native(code, TAKES)(3, x, table, out) == 9
        assert out.tolist() == [1, 1, 1]


SCRATCH = """
import numpy as np
def run(count):
    held = np.empty(count, np.int64)
    for i in range(count):
        held[i] = i
    return held.sum()
"""


def test_functions_may_allocate_scratch_memory() -> None:
    function = Native(fused.object_code(SCRATCH, (Argument(),)), (Argument(),))
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(function(1000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [499_500] * 4


def test_memory_that_is_not_there_is_an_error() -> None:
    function = Native(fused.object_code(SCRATCH, (Argument(),)), (Argument(),))
    with pytest.raises(MemoryError):
        function(1 << 60)


def test_functions_may_take_more_than_a_foreign_call_can() -> None:
    """A merge of many models: each has tensors, thresholds and states of its own."""
    names = [f"x{i}" for i in range(600)]
    source = f"def run({', '.join(names)}):\n    return {' + '.join(f'{n}[0]' for n in names)}\n"
    takes = [Argument("int64", 1)] * len(names)
    function = Native(fused.object_code(source, takes), takes)
    assert function(*(np.array([i]) for i in range(600))) == 600 * 599 // 2


def test_what_only_the_compiler_has_is_named() -> None:
    known = ["malloc", "NRT_MemInfo_alloc_aligned"]
    only_there = ["numba_gil_ensure", "__svml_log8", "NRT_no_such_thing"]
    assert undefined([*known, *only_there]) == only_there
