"""One program under way, step by step: which jobs there are, and what its values are in the end.

No thread and no file: the results that workers would bring are made up here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mergegraph import ops
from mergegraph.graph.node import Node
from mergegraph.kernels.reduction import CHUNK
from mergegraph.ops.selection import SAMPLE
from mergegraph.runtime import progress as module
from mergegraph.runtime.progress import Job, JobResult, Progress, Tally
from mergegraph.schedule.memory import JOB_TILES, TILE, arity
from mergegraph.tensorspec import DType, TensorSpec
from tests.runtime.harness import program_of

LARGE = (3, JOB_TILES * TILE + 7)
"""Four jobs, the last of them shorter."""


def average(shape: tuple[int, ...]) -> Node:
    a, b = (ops.load(i, TensorSpec(shape, DType.BF16)) for i in range(2))
    return ops.cast(ops.weighted_sum(a, b, (0.5, 0.5)), dtype="BF16")


def slerp(shape: tuple[int, ...]) -> Node:
    a, b = (ops.load(i, TensorSpec(shape, DType.BF16)) for i in range(2))
    return ops.cast(ops.weighted_sum(a, b, ops.slerp(ops.gram(a, b), 0.3)), dtype="BF16")


def trim(shape: tuple[int, ...]) -> Node:
    a, b = (ops.load(i, TensorSpec(shape, DType.BF16)) for i in range(2))
    return ops.cast(ops.apply_delta(a, ops.keep_largest(ops.delta(b, a), 0.2), 1.0), dtype="BF16")


BUILDS: list[Callable[[tuple[int, ...]], Node]] = [average, slerp, trim]


def result(job: Job) -> JobResult:
    """What a worker would hand back, its state rows filled with a number of its own."""
    states = []
    for i, reduction in enumerate(job.phase.reductions):
        kernel = reduction.op.implementation
        state = kernel.empty(
            arity(reduction), reduction.attributes, kernel.rows(job.end - job.begin, job.phase.chunk)
        )
        state += np.asarray(1 + i + job.begin // CHUNK).astype(state.dtype)
        states.append(state)
    return JobResult(job, Tally(read=job.end - job.begin, written=1, checksum=2**63, nonfinite=1), states)


def drive(expression: Node, *, last_first: bool = False) -> tuple[Progress, list[list[Job]]]:
    """Run to the end; return the jobs of each phase."""
    under_way = Progress(program_of(expression, 2), TILE)
    jobs, phases = under_way.start(), []
    while jobs:
        phases.append(jobs)
        following: list[Job] = []
        for job in reversed(jobs) if last_first else jobs:
            assert not following, "a phase begins when the one before it is complete"
            following = under_way.absorb(result(job))
        jobs = following
    return under_way, phases


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("shape", [(), (1,), (CHUNK,), (CHUNK + 1,), (JOB_TILES * TILE,), LARGE])
def test_the_jobs_of_every_phase_cover_the_tensor_once(
    build: Callable[..., Node], shape: tuple[int, ...]
) -> None:
    under_way, phases = drive(build(shape))
    program = under_way.program
    assert len(phases) == len(program.phases)
    for jobs, phase in zip(phases, program.phases, strict=True):
        ends = [0, *(job.end for job in jobs)]
        assert [job.begin for job in jobs] == ends[:-1]
        assert ends[-1] == program.spec.numel
        for job in jobs:
            assert (job.program, job.phase) == (program, phase)
            assert job.begin % phase.chunk == 0
            assert 0 < job.end - job.begin <= JOB_TILES * job.tile * phase.sample
    assert under_way.done
    assert under_way.pending == 0


@pytest.mark.parametrize("build", BUILDS)
def test_the_order_in_which_results_come_in_changes_no_value(build: Callable[..., Node]) -> None:
    one, _ = drive(build(LARGE))
    other, _ = drive(build(LARGE), last_first=True)
    assert one.values.keys() == other.values.keys()
    for key, value in one.values.items():
        np.testing.assert_array_equal(value, other.values[key])


def test_a_later_phase_knows_what_an_earlier_one_measured() -> None:
    under_way, phases = drive(slerp((4 * CHUNK,)))
    (weights,) = under_way.program.phases[1].stats
    assert weights.key in phases[1][0].values
    assert [job.values is under_way.values for job in phases[1]] == [True] * len(phases[1])


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
def test_an_empty_tensor_is_done_before_any_job(build: Callable[..., Node], shape: tuple[int, ...]) -> None:
    under_way = Progress(program_of(build(shape), 2), TILE)
    assert under_way.start() == []
    assert under_way.done
    assert under_way.tally == Tally()


def test_what_nothing_uses_any_more_is_let_go() -> None:
    under_way, _ = drive(slerp((4 * CHUNK,)))
    (gram,) = under_way.program.phases[0].reductions
    assert gram.key not in under_way.values


def test_tallies_add_up_and_checksums_wrap_around() -> None:
    under_way, phases = drive(slerp(LARGE))
    jobs = sum(map(len, phases))
    assert under_way.tally.read == 2 * under_way.program.spec.numel
    assert under_way.tally.written == under_way.tally.nonfinite == jobs
    assert under_way.tally.checksum == jobs % 2 * 2**63
    total = Tally()
    total.add(Tally(1, 2, 2**64 - 1, 3, 0.5, 0.25, 0.125))
    total.add(Tally(1, 2, 5, 3, 0.5, 0.25, 0.125))
    assert total == Tally(2, 4, 4, 6, 1.0, 0.5, 0.25)


def test_counts_of_a_tensor_may_exceed_those_of_a_job() -> None:
    """Jobs count in 32 bits, tensors in 64: two billion equal elements must not overflow."""
    under_way = Progress(program_of(trim((3, SAMPLE * JOB_TILES * TILE + 7)), 2), TILE)
    jobs = under_way.start()
    assert len(jobs) == 4
    for job in jobs[:-1]:
        made = result(job)
        made.states[0][:] = 2**30
        under_way.absorb(made)
    counts: Any = under_way.states[0]
    assert counts.dtype == np.int64
    assert counts.max() > 2**31


def test_jobs_are_as_large_as_the_memory_proof_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "JOB_TILES", 1)
    under_way = Progress(program_of(average((5 * CHUNK,)), 2), 1)
    assert [(job.begin, job.end) for job in under_way.start()] == [
        (i * CHUNK, (i + 1) * CHUNK) for i in range(5)
    ]
