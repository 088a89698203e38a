"""The loop of a GPU worker, on the processor: right results, in order, from slots that are used again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from mergegraph import ops
from mergegraph.errors import TensorValueError
from mergegraph.graph.graph import SourceTensor
from mergegraph.graph.node import Locality, Node, walk
from mergegraph.kernels import fused_rows, rows
from mergegraph.kernels.reduction import CHUNK
from mergegraph.methods import all_methods, get_method
from mergegraph.methods.base import MergeMethod
from mergegraph.runtime.lane import device_workers
from mergegraph.runtime.progress import Job, Progress
from mergegraph.runtime.streams import Device, Host
from mergegraph.runtime.workers import Worker, checksum
from mergegraph.schedule.program import Program
from mergegraph.schedule.vram import SLOTS, device_bytes, staging
from mergegraph.tensorspec import DType
from tests.methods.arguments import eager_merge, merge_expression, operand_count
from tests.runtime.harness import (
    Memory,
    Result,
    assert_same_bits,
    loads,
    normal,
    program_of,
    schedule_run,
    unraw,
)

METHODS = [pytest.param(method, id=name) for name, method in all_methods().items()]
COUNT = 5 * CHUNK + 1003


@pytest.fixture(autouse=True)
def rows_as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions of rows are compiled code on the processor; here they are what other devices get."""
    there = {
        fused_rows.row_arc: lambda x, y, t: rows.torch_row_arc(x, y, [t]),
        fused_rows.row_stock: rows.torch_row_stock,
        fused_rows.row_divergence: rows.torch_row_divergence,
    }
    monkeypatch.setattr(rows, "_row_by_row", lambda f, tensors, _, *stats: there[f](*tensors, *stats))


class Late:
    """A device whose copies are done when somebody has to wait for them, and no earlier."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.waits = 0
        self._queued: dict[str, list[tuple[Tensor, Tensor]]] = {"in": [], "kernels": [], "out": []}
        self._current = "kernels"

    def host(self, size: int) -> Tensor:
        return torch.full((size,), 0xA5, dtype=torch.uint8)

    memory = host

    @contextmanager
    def on(self, queue: str, after: Any = None) -> Iterator[None]:
        if after is not None:
            self._reach(after)
        self._current = queue
        yield
        self._current = "kernels"

    def copy(self, target: Tensor, source: Tensor) -> None:
        self._queued[self._current].append((target, source))

    def mark(self, queue: str) -> Any:
        return queue, len(self._queued[queue])

    def wait(self, mark: Any) -> None:
        self.waits += 1
        self._reach(mark)

    def synchronise(self) -> None:
        for queue in self._queued:
            self._reach(self.mark(queue))

    @property
    def idle(self) -> bool:
        return all(pair == (None, None) for queue in self._queued.values() for pair in queue)

    def _reach(self, mark: Any) -> None:
        queue, count = mark
        for i, (target, source) in enumerate(self._queued[queue][:count]):
            if target is not None:
                target.copy_(source)
            self._queued[queue][i] = (None, None)  # type: ignore[assignment]


def worker_for(program: Program, memory: Any, tile: int, device: Device | None = None) -> Worker:
    sizes = staging([program], tile)
    (worker,) = device_workers([device or Host()], [program], sizes, memory, memory)
    return worker


def lane_run(
    expression: Node, tensors: Sequence[Tensor], tile: int = 4 * CHUNK, device: Device | None = None
) -> Result:
    """Run `expression` through the loop, job after job."""
    program = program_of(expression, len(tensors))
    memory = Memory({f"x{i}": x for i, x in enumerate(tensors)}, program.spec.nbytes)
    worker = worker_for(program, memory, tile, device)
    progress = Progress(program, tile)
    jobs = progress.start()
    while jobs:
        jobs = [follow for job in jobs for follow in progress.absorb(worker.execute(job))]
    assert progress.done
    assert (memory.written == 1).all()
    return Result(unraw(memory.output, program.spec), progress.tally.nonfinite, progress.values)


def tensors_for(method: MergeMethod, *shape: int, models: int = 2) -> list[Tensor]:
    common = normal(*shape, dtype=DType.F64, seed=99)
    count = operand_count(method, models)
    return [(common + 0.1 * normal(*shape, dtype=DType.F64, seed=i)).bfloat16() for i in range(count)]


def exact(expression: Node) -> bool:
    """Whether no sum of floats goes into it: then a device has to give the same bits."""
    inexact = ("gram", "squares", "l1_norm", "column_products")
    whole = Locality.WHOLE
    return not any(n.op.name in inexact or n.is_row or n.op.locality is whole for n in walk([expression]))


class Held(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, of those that are made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._users: dict[int, int] = {}
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x not in self._seen:
                key, size = x.untyped_storage()._cdata, x.untyped_storage().nbytes()
                if key not in self._users and key in known:
                    continue  # a view of something that was there before
                self._seen[x] = True
                if key not in self._users:
                    self._now += size
                self._users[key] = self._users.get(key, 0) + 1
                weakref.finalize(x, self._gone, key, size)
        self.peak = max(self.peak, self._now)
        return result

    def _gone(self, key: int, size: int) -> None:
        self._users[key] -= 1
        if self._users[key] == 0:
            del self._users[key]
            self._now -= size


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_what_it_gives_on_the_processor(method: MergeMethod) -> None:
    """Generated code is compared with the same results elsewhere."""
    shape = (COUNT // 64, 64)
    tensors = tensors_for(method, *shape)
    expected = eager_merge(method, tensors, {}, DType.F32)
    expression = merge_expression(method, tensors, {}, DType.F32)
    found = lane_run(expression, tensors, device=Late())
    if exact(expression):
        assert_same_bits(found.tensor, expected)
    else:
        torch.testing.assert_close(found.tensor, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_bits_do_not_depend_on_tiles(method: MergeMethod) -> None:
    tensors = tensors_for(method, COUNT // 64, 64)
    expression = merge_expression(method, tensors, {}, DType.F32)
    few, many = (lane_run(expression, tensors, tile) for tile in (64 * CHUNK, CHUNK))
    assert_same_bits(few.tensor, many.tensor)
    assert {key: x.tobytes() for key, x in few.values.items()} == {
        key: x.tobytes() for key, x in many.values.items()
    }


@pytest.mark.parametrize("method", METHODS)
def test_what_is_held_on_the_device_is_within_what_was_proven(method: MergeMethod) -> None:
    tensors = tensors_for(method, 3 * CHUNK // 64, 64, models=3)
    expression = merge_expression(method, tensors, {}, DType.BF16)
    program, tile = program_of(expression, len(tensors)), 2 * CHUNK
    slot = staging([program], tile)
    beside = SLOTS * (slot.inputs + slot.outputs)  # the slots' buffers on the host are tensors here, too
    with Held() as held:
        lane_run(expression, tensors, tile)
    assert held.peak - beside <= device_bytes([program], tile)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 3), (3, 0), (5, 1), (1, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", ["ties", "della", "slerp", "tsv", "nuslerp"])
def test_any_shape_can_be_merged(name: str, shape: tuple[int, ...]) -> None:
    method = get_method(name)
    tensors = tensors_for(method, *shape)
    expected = eager_merge(method, tensors, {}, DType.BF16)
    found = lane_run(merge_expression(method, tensors, {}, DType.BF16), tensors, device=Late())
    torch.testing.assert_close(found.tensor, expected)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_numbers_that_are_not_finite_are_counted_as_they_are_stored(dtype: str) -> None:
    x = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf, 70000.0, 1e-30] * 30_000, dtype=torch.float64)
    found = lane_run(ops.cast(ops.scale(loads([x])[0], 1.5), dtype=dtype), [x], CHUNK, Late())
    assert found.nonfinite == {"F16": 4}.get(dtype, 3) * 30_000


def test_numbers_drawn_at_random_are_the_same_as_in_generated_code() -> None:
    x = torch.ones(3 * CHUNK + 5)
    expression = ops.drop(ops.delta(loads([x])[0], ops.scale(loads([x])[0], 0.0)), 0.3, ops.stream(0))
    assert_same_bits(lane_run(expression, [x], CHUNK, Late()).tensor, schedule_run(expression, [x]).tensor)


# ---- the loop ---------------------------------------------------------------------------------------------


def total(a: Node, b: Node) -> Node:
    return ops.cast(ops.weighted_sum(a, b, (1.0, 1.0)), dtype=a.spec.dtype.name)


def all_jobs(progress: Progress) -> Callable[[], Job | None]:
    jobs = iter(progress.start())
    return lambda: next(jobs, None)


def test_tiles_are_read_ahead_of_what_is_written_but_no_further_than_there_are_slots() -> None:
    """Of eight tiles in two jobs, at most three are on their way, at the end of a job too."""
    tensors = [normal(8 * CHUNK, seed=i) for i in range(2)]
    program = program_of(total(*loads(tensors)), 2)
    seen: list[str] = []

    class Watched(Memory):
        def read_into(self, source: str, tensor: str, offset: int, buffer: memoryview) -> None:
            seen.append("read") if tensor == "x0" else None
            super().read_into(source, tensor, offset, buffer)

        def write(self, tensor: str, offset: int, buffer: memoryview) -> None:
            seen.append("write")
            super().write(tensor, offset, buffer)

    memory = Watched({f"x{i}": x for i, x in enumerate(tensors)}, program.spec.nbytes)
    lane = worker_for(program, memory, CHUNK, Late())._lane
    assert lane is not None
    results = list(lane.run(all_jobs(Progress(program, CHUNK))))
    under_way = [seen[:i].count("read") - seen[:i].count("write") for i in range(len(seen) + 1)]
    assert max(under_way) == SLOTS
    assert under_way[SLOTS:-SLOTS] == [SLOTS, SLOTS - 1] * 5 + [SLOTS]
    assert [result.job.begin for result in results] == [0, 4 * CHUNK]
    assert_same_bits(unraw(memory.output, program.spec), tensors[0] + tensors[1])


def test_a_batch_of_small_programs_goes_through_together() -> None:
    """The kernels of one wait for the host while those of the next run; copies are done beside them."""
    setups = [[normal(999, seed=2 * i), normal(999, seed=2 * i + 1)] for i in range(7)]
    programs = [program_of(arc(*loads(tensors)), 2) for tensors in setups]
    count = torch.arange(30)
    programs.append(program_of(loads([count])[0], 1))
    memories = [Memory({"x0": a, "x1": b}, 999 * 4) for a, b in setups]
    memories.append(Memory({"x0": count}, 30 * 8))
    files = ByProgram(programs, memories)
    device = Late()
    (worker,) = device_workers([device], programs, staging(programs, CHUNK), files, files)
    batch = tuple(Progress(program, CHUNK) for program in programs)
    assert worker._drive(batch) == batch
    assert all(progress.done and not progress.values for progress in batch)
    for tensors, memory, program in zip(setups, memories, programs, strict=False):
        expected = schedule_run(arc(*loads(tensors)), tensors).tensor
        torch.testing.assert_close(unraw(memory.output, program.spec), expected)
    assert memories[-1].output.view(np.int64).tolist() == list(range(30))
    assert device.waits == 2 * 7  # two phases each; nothing is waited for twice


def arc(a: Node, b: Node) -> Node:
    return ops.weighted_sum(a, b, ops.slerp(ops.gram(a, b), 0.3))


class ByProgram:
    """Files of several programs, which are told apart by the order of their first reads."""

    def __init__(self, programs: Sequence[Program], memories: Sequence[Memory]) -> None:
        self._places = {}
        for i, (program, memory) in enumerate(zip(programs, memories, strict=True)):
            object.__setattr__(program, "tensor", f"out{i}")
            sources = tuple(SourceTensor(f"memory{i}", s.tensor) for s in program.sources)
            object.__setattr__(program, "sources", sources)
            self._places[f"out{i}"] = self._places[f"memory{i}"] = memory

    def read_into(self, source: str, tensor: str, offset: int, buffer: memoryview) -> None:
        self._places[source].read_into("memory", tensor, offset, buffer)

    def write(self, tensor: str, offset: int, buffer: memoryview) -> None:
        self._places[tensor].write(tensor, offset, buffer)


def test_inputs_that_have_to_be_equal_are_compared_on_the_host() -> None:
    a = torch.arange(300_000)
    b = a.clone()
    b[-1] += 1
    with pytest.raises(TensorValueError, match="int64 tensors cannot be merged"):
        lane_run(ops.IDENTICAL(*loads([a, b])), [a, b])
    assert torch.equal(lane_run(ops.IDENTICAL(*loads([a, a])), [a, a]).tensor, a)


def test_after_a_failure_nothing_is_on_its_way_and_the_next_job_is_right() -> None:
    tensors = [normal(8 * CHUNK, seed=i) for i in range(2)]
    program = program_of(total(*loads(tensors)), 2)
    memory = Memory({f"x{i}": x for i, x in enumerate(tensors)}, program.spec.nbytes)
    device = Late()
    worker = worker_for(program, memory, CHUNK, device)
    first, second = Progress(program, CHUNK).start()
    real, reads = memory.read_into, iter(range(100))

    def fails(*args: Any) -> None:
        if next(reads) == 4:
            raise OSError("gone")
        real(*args)

    memory.read_into = fails  # type: ignore[method-assign]
    with pytest.raises(OSError, match="gone"):
        worker.execute(first)
    assert device.idle
    memory.read_into = real  # type: ignore[method-assign]
    for job in (first, second):
        worker.execute(job)
    assert_same_bits(unraw(memory.output, program.spec), tensors[0] + tensors[1])


def test_what_was_written_has_the_checksum_that_the_job_reports() -> None:
    tensors = [normal(2 * CHUNK + 3, dtype=DType.BF16, seed=i) for i in range(2)]
    there = Progress(program := program_of(total(*loads(tensors)), 2), CHUNK)
    memory = Memory({f"x{i}": x for i, x in enumerate(tensors)}, program.spec.nbytes)
    worker = worker_for(program, memory, CHUNK)
    for job in there.start():
        there.absorb(worker.execute(job))
    assert there.tally.checksum == checksum(memory.output, 0)
    assert (there.tally.read, there.tally.written) == (8 * CHUNK + 12, 4 * CHUNK + 6)
