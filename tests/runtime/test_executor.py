"""The coordinator: everything once, in order, never too much at a time, and journalled when done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergegraph import Compiled, compile_plan
from mergegraph.runtime import executor
from mergegraph.runtime.executor import Outcomes, execute, phase_functions, piece_id, stored_checksum
from mergegraph.runtime.progress import Job
from mergegraph.runtime.workers import Pool, Worker
from mergegraph.schedule.memory import JOB_TILES, JOBS_PER_WORKER, TILE
from mergegraph.schedule.program import Program
from mergegraph.storage.blocks import PAGE
from mergegraph.storage.journal import Journal
from mergegraph.storage.reader import Reader
from mergegraph.storage.writer import OutputWriter
from mergegraph.testing import write_checkpoint

SMALL = {f"small.{i:03d}": (7 + i,) for i in range(150)}
SHAPES: dict[str, tuple[int, ...]] = {
    "large": (JOB_TILES * TILE + 5,),
    "nothing": (0,),
    "scalar": (),
    **SMALL,
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("a", "b")):
        random = np.random.default_rng(seed)
        tensors = {
            n: random.standard_normal(s, dtype=np.float32).reshape(s)
            if s
            else np.float32(seed + 1).reshape(())
            for n, s in SHAPES.items()
        }
        write_checkpoint(root / name, tensors | {"count": np.arange(5)})
    plan = root / "plan.yml"
    plan.write_text(
        f"merge_method: slerp\nbase_model: {root}/a\nmodels: [{{model: {root}/b}}]\nparameters: {{t: 0.4}}"
    )
    return compile_plan(plan, threads=2)


class Run:
    """The effects around one execution."""

    def __init__(self, compiled: Compiled, staging: Path) -> None:
        self.compiled, self.staging = compiled, staging
        self.steps: list[tuple[int, str]] = []

    @contextmanager
    def opened(self) -> Iterator[tuple[Reader, OutputWriter, Journal]]:
        models = self.compiled.inputs.values()
        with (
            Journal.open(self.staging, {}) as journal,
            OutputWriter(self.staging, self.compiled.layout, resume=journal.resumed) as writer,
            Reader({m.key: m.index for m in models}) as reader,
        ):
            yield reader, writer, journal

    def execute(self, *, workers: int = 2) -> Outcomes:
        schedule = replace(self.compiled.schedule, workers=workers)
        with self.opened() as (reader, writer, journal):
            return execute(schedule, reader, writer, journal, ("cpu",), self.progress)

    def progress(self, outcomes: Outcomes, program: Program) -> None:
        self.steps.append((outcomes.work_done, program.tensor))

    def journalled(self) -> dict[str, str]:
        with Journal.open(self.staging, {}) as journal:
            return journal.done


@pytest.fixture
def trial(compiled: Compiled, tmp_path: Path) -> Run:
    return Run(compiled, tmp_path / "staging")


def test_every_tensor_is_done_once_and_journalled_with_its_checksum(trial: Run) -> None:
    outcomes = trial.execute()
    names = {*SHAPES, "count"}
    assert outcomes.checksums.keys() == trial.journalled().keys() == names
    assert (outcomes.resumed, outcomes.nonfinite) == (0, {})
    schedule = trial.compiled.schedule
    assert outcomes.tally.read + outcomes.tally.written == schedule.work_bytes == trial.steps[-1][0]
    assert [done for done, _ in trial.steps] == sorted(done for done, _ in trial.steps)
    with trial.opened() as (_, writer, journal):
        for program in schedule.programs:
            found = stored_checksum(
                program.offset, program.spec.nbytes, partial(writer.read_back, program.tensor)
            )
            assert f"{found:016x}" == outcomes.checksums[program.tensor]
            assert journal.done[program.tensor] == f"{found:016x}:0"


def test_tiles_of_a_large_output_begin_at_pages_of_its_file(
    trial: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but what stands before its first page: only whole pages go past the cache."""
    begins: list[int] = []
    real = OutputWriter.write

    def write(self: OutputWriter, tensor: str, offset: int, buffer: Any) -> None:
        if tensor == "large":
            begins.append(self.position(tensor, offset))
        real(self, tensor, offset, buffer)

    monkeypatch.setattr(OutputWriter, "write", write)
    outcomes = trial.execute(workers=1)
    assert begins[0] % PAGE != 0, "a header of some length comes first"
    assert [begin % PAGE for begin in begins[1:]] == [0] * JOB_TILES
    assert outcomes.checksums.keys() == {*SHAPES, "count"}


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_no_checksum(
    trial: Run, compiled: Compiled, tmp_path: Path, workers: int
) -> None:
    assert Run(compiled, tmp_path / "other").execute(workers=workers).checksums == trial.execute().checksums


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_work_is_out_than_the_memory_proof_counts(
    trial: Run, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    out, most = [0], [0]

    class Counting(Pool):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.inbox, self.outbox = Queue(self.inbox, +1), Queue(self.outbox, -1)  # type: ignore[assignment]
            for thread, worker in zip(self._threads, args[0], strict=True):
                thread._args = (self.inbox._queue, self.outbox._queue)  # type: ignore[attr-defined]
                del worker

    class Queue:
        def __init__(self, queue: Any, step: int) -> None:
            self._queue, self._step = queue, step

        def put(self, item: Any) -> None:
            if item is not None:
                out[0] += self._step
                most[0] = max(most[0], out[0])
                elements = (
                    sum(p.program.spec.numel for p in item)
                    if isinstance(item, tuple)
                    else item.end - item.begin
                )
                assert elements <= JOB_TILES * TILE
            self._queue.put(item)

        def get(self) -> Any:
            item = self._queue.get()
            out[0] += self._step
            return item

    monkeypatch.setattr(executor, "Pool", Counting)
    trial.execute(workers=workers)
    assert out[0] == 0
    assert 0 < most[0] <= workers * JOBS_PER_WORKER


def test_small_tensors_go_out_in_batches_and_large_ones_in_parts(
    trial: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    jobs: list[str] = []
    drive, one = Worker._drive, Worker.execute

    def driven(self: Worker, batch: Any) -> Any:
        batches.append(len(batch))
        return drive(self, batch)

    def executed(self: Worker, job: Job) -> Any:
        jobs.append(job.program.tensor)
        return one(self, job)

    monkeypatch.setattr(Worker, "_drive", driven)
    monkeypatch.setattr(Worker, "execute", executed)
    trial.execute(workers=1)
    assert sum(batches) == len(SHAPES), "all but the large one, and the integers"
    assert max(batches) == executor.BATCH_PROGRAMS
    assert len(batches) <= 5
    assert jobs.count("large") == 4, "two parts, twice"
    assert jobs.count("nothing") == 0


def test_programs_run_in_the_order_of_the_schedule(trial: Run) -> None:
    trial.execute(workers=1)
    seen = list(dict.fromkeys(name for _, name in trial.steps))
    wanted = [p.tensor for p in trial.compiled.schedule.programs]
    assert seen == wanted
    assert seen[0] == "count", "what only compares its inputs comes first"


@pytest.mark.parametrize("workers", [1, 4])
def test_what_a_worker_raises_stops_the_run_and_what_was_done_stays_done(
    trial: Run, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    real, error = OutputWriter.write, RuntimeError("no luck")

    def write(self: OutputWriter, tensor: str, offset: int, buffer: Any) -> None:
        if tensor == "small.149":
            raise error
        real(self, tensor, offset, buffer)

    with monkeypatch.context() as patch:
        patch.setattr(OutputWriter, "write", write)
        with pytest.raises(RuntimeError) as caught:
            trial.execute(workers=workers)
    assert caught.value is error
    done = trial.journalled()
    assert "small.149" not in done
    assert len(done) > 50 or workers > 1, "what is handed out together with it may be lost"
    outcomes = trial.execute()
    assert outcomes.resumed == len(done)
    assert outcomes.checksums.keys() == {*SHAPES, "count"}


@pytest.mark.parametrize("fails", [False, True])
def test_only_what_the_files_hold_is_journalled(
    trial: Run, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Bytes that are still on their way would be lost with the process, and the journal would lie."""
    error = RuntimeError("no luck")

    def flush(self: OutputWriter) -> None:
        if fails:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(OutputWriter, "settled", lambda self, mark: False)
        patch.setattr(OutputWriter, "flush", flush)
        with pytest.raises(RuntimeError) if fails else nullcontext():
            trial.execute(workers=2)
    assert not trial.journalled()


def test_a_second_execution_finds_everything_done_and_writes_nothing(
    trial: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trial.execute()
    monkeypatch.setattr(OutputWriter, "write", None)
    monkeypatch.setattr(Reader, "read_into", None)
    second = trial.execute()
    assert second.resumed == len(SHAPES) + 1
    assert second.checksums == first.checksums
    assert (second.tally.read, second.tally.written) == (first.tally.read, first.tally.written)


def test_equal_expressions_share_one_compiled_function(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    real = executor.load_code

    def load(source: str, arguments: Any) -> Any:
        loaded.append(real(source, arguments))
        return loaded[-1]

    monkeypatch.setattr(executor, "load_code", load)
    table = phase_functions(list(compiled.schedule.programs))
    assert len(dict.fromkeys(map(id, loaded))) == 2, "measuring and combining, for any tensors and shapes"
    assert table.keys() == {id(phase) for p in compiled.schedule.programs for phase in p.phases}


def test_a_piece_is_named_by_its_tensor_and_beyond_the_first_by_its_offset(compiled: Compiled) -> None:
    program = compiled.schedule.programs[-1]
    assert piece_id(program) == program.tensor
    assert piece_id(replace(program, offset=64)) != piece_id(replace(program, offset=128)) != program.tensor
