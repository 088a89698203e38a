"""Workers read, compute and write their tiles; the pool hands jobs out and ends with its threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import pairwise
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mergegraph import ops
from mergegraph.errors import TensorValueError
from mergegraph.graph.node import Locality, Node, Op
from mergegraph.kernels.reduction import CHUNK
from mergegraph.runtime.executor import phase_functions, stored_checksum
from mergegraph.runtime.progress import Job, JobResult, Progress
from mergegraph.runtime.workers import Failure, Pool, Worker, checksum
from mergegraph.schedule.memory import JOB_TILES, TILE
from mergegraph.schedule.program import Program
from mergegraph.tensorspec import DType, TensorSpec
from tests.runtime.harness import Memory, normal, program_of

HALVED = Op(
    "halved", Locality.ROWWISE, lambda specs, _: TensorSpec(specs[0].shape, DType.F32), lambda x: x / 2
)


def half(x: Node) -> Node:
    return ops.cast(HALVED(x), dtype=x.spec.dtype.name)


class Setup:
    """A program over tensors in memory, and a worker for it."""

    def __init__(self, build: Callable[..., Node], *tensors: torch.Tensor, tile: int = TILE) -> None:
        specs = [TensorSpec(tuple(x.shape), DType[_NAMES[x.dtype]]) for x in tensors]
        expression = build(*(ops.load(i, spec) for i, spec in enumerate(specs)))
        self.program: Program = program_of(expression, len(tensors))
        self.memory = Memory({f"x{i}": x for i, x in enumerate(tensors)}, self.program.spec.nbytes)
        self.progress = Progress(self.program, tile)
        functions = phase_functions([self.program])
        self.worker = Worker(self.memory, self.memory, functions)

    def run(self) -> None:
        jobs = self.progress.start()
        while jobs:
            jobs = [follow for job in jobs for follow in self.progress.absorb(self.worker.execute(job))]

    def stored(self) -> int:
        def read(offset: int, buffer: memoryview) -> None:
            np.frombuffer(buffer, np.uint8)[:] = self.memory.output[offset : offset + len(buffer)]

        return stored_checksum(0, self.program.spec.nbytes, read)


_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32", torch.int64: "I64", torch.uint8: "U8"}


def identity(x: Node) -> Node:
    return x


def total(a: Node, b: Node) -> Node:
    return ops.cast(ops.weighted_sum(a, b, (1.0, 1.0)), dtype=a.spec.dtype.name)


# ---- checksums ----------------------------------------------------------------------------------------


@given(st.binary(min_size=0, max_size=200), st.lists(st.integers(0, 25), max_size=6))
def test_a_checksum_does_not_depend_on_how_the_bytes_are_cut(data: bytes, cuts: list[int]) -> None:
    whole = np.frombuffer(data, np.uint8)
    places = sorted({0, *(8 * c for c in cuts if 8 * c < len(data)), len(data)})
    parts = [(whole[a:b], a) for a, b in pairwise(places)]
    assert sum(checksum(part, at) for part, at in reversed(parts)) % 2**64 == checksum(whole, 0)


@given(st.binary(min_size=1, max_size=80), st.data())
def test_a_checksum_changes_with_any_bit(data: bytes, choice: st.DataObject) -> None:
    changed = bytearray(data)
    changed[choice.draw(st.integers(0, len(data) - 1))] ^= 1 << choice.draw(st.integers(0, 7))
    assert checksum(np.frombuffer(changed, np.uint8), 0) != checksum(np.frombuffer(data, np.uint8), 0)


def test_a_checksum_depends_on_the_place_of_zeros_too() -> None:
    zeros = [checksum(np.zeros(n, np.uint8), 0) for n in (0, 8, 16, 24)]
    assert len(set(zeros)) == 4


@pytest.mark.parametrize("tile", [1, TILE, 64 * CHUNK])
@pytest.mark.parametrize("shape", [(1,), (3, 7), (70_001,), (5, 40_009), (CHUNK,)])
@pytest.mark.parametrize("dtype", [DType.BF16, DType.F32])
def test_what_a_worker_sums_up_is_the_checksum_of_what_is_stored(
    shape: tuple[int, ...], dtype: DType, tile: int
) -> None:
    setup = Setup(total, normal(*shape, dtype=dtype), normal(*shape, dtype=dtype, seed=1), tile=tile)
    setup.run()
    assert setup.progress.tally.checksum == setup.stored()


@pytest.mark.parametrize("columns", [1, 3, 5, 7, 77])
def test_that_holds_for_rows_of_any_length(columns: int) -> None:
    """Tiles of whole rows need not begin at a multiple of eight bytes."""
    setup = Setup(half, normal(3 * TILE // columns, columns, dtype=DType.BF16))
    setup.run()
    assert setup.progress.tally.checksum == setup.stored()


def test_copies_have_checksums_like_everything_else() -> None:
    data = torch.arange(200_003) % 251
    setup = Setup(identity, data.to(torch.uint8))
    setup.run()
    np.testing.assert_array_equal(setup.memory.output, data.to(torch.uint8).numpy())
    assert setup.progress.tally.checksum == setup.stored()


# ---- work ------------------------------------------------------------------------------------------------


def test_a_job_touches_its_own_range_only() -> None:
    setup = Setup(total, torch.ones(4 * JOB_TILES * TILE), torch.ones(4 * JOB_TILES * TILE))
    jobs = setup.progress.start()
    assert len(jobs) == 4
    tally = setup.worker.execute(jobs[2]).tally
    touched = np.flatnonzero(setup.memory.written)
    assert (touched[0], touched[-1] + 1) == (4 * jobs[2].begin, 4 * jobs[2].end)
    assert tally.written == len(touched)
    assert tally.read == 2 * tally.written
    assert min(tally.read_seconds, tally.compute_seconds, tally.write_seconds) >= 0


def test_inputs_that_differ_in_one_byte_of_the_last_tile_are_told() -> None:
    a = torch.arange(300_000)
    b = a.clone()
    b[-1] += 1
    setup = Setup(lambda x, y: ops.IDENTICAL(x, y), a, b)
    with pytest.raises(TensorValueError, match=r"^out: .*int64 tensors cannot be merged"):
        setup.run()
    same = Setup(lambda x, y: ops.IDENTICAL(x, y), a, a.clone())
    same.run()
    assert same.memory.output.view(np.int64)[-1] == 299_999


# ---- threads ----------------------------------------------------------------------------------------------


def names() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mergegraph-")]


def test_a_pool_works_through_its_jobs_and_ends() -> None:
    setups = [Setup(total, torch.full((9,), float(i)), torch.ones(9)) for i in range(20)]
    workers = [setups[0].worker, setups[0].worker]
    for setup in setups:  # one table for all, as in a run
        setup.worker._functions = phase_functions([s.program for s in setups])
    with Pool([Everything(setups) for _ in workers]) as pool:
        assert len(names()) == 2
        for setup in setups:
            (job,) = setup.progress.start()
            pool.inbox.put(job)
        results = [pool.outbox.get(timeout=30) for _ in setups]
    assert names() == []
    assert all(isinstance(r, JobResult) for r in results)
    for i, setup in enumerate(setups):
        np.testing.assert_array_equal(setup.memory.output.view(np.float32), np.full(9, i + 1.0))


class Everything:
    """A worker that can do the jobs of all setups."""

    def __init__(self, setups: list[Setup]) -> None:
        self._by_program = {id(s.program): s.worker for s in setups}

    def work(self, inbox: SimpleQueue[Any], outbox: SimpleQueue[Any]) -> None:
        while (job := inbox.get()) is not None:
            assert isinstance(job, Job)
            outbox.put(self._by_program[id(job.program)].execute(job))


@pytest.mark.parametrize("error", [ValueError("v"), KeyboardInterrupt(), SystemExit(1), MemoryError()])
def test_a_job_that_raises_is_handed_back_and_the_worker_goes_on(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Setup(total, torch.ones(9), torch.ones(9))
    (job,) = broken.progress.start()
    real, fails = broken.memory.read_into, iter([error])

    def read_into(*args: Any) -> None:
        if (failure := next(fails, None)) is not None:
            raise failure
        real(*args)

    monkeypatch.setattr(broken.memory, "read_into", read_into)
    with Pool([broken.worker]) as pool:
        pool.inbox.put(job)
        pool.inbox.put(job)
        first, second = pool.outbox.get(timeout=30), pool.outbox.get(timeout=30)
    assert isinstance(first, Failure)
    assert first.error is error
    assert isinstance(second, JobResult)
    assert names() == []


def test_leaving_a_pool_by_an_error_joins_its_threads_too() -> None:
    setup = Setup(total, torch.ones(9), torch.ones(9))
    with pytest.raises(LookupError), Pool([setup.worker] * 3):
        raise LookupError
    assert names() == []
