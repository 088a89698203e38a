"""Same plan, same bytes: whatever the threads, the budget, the tiles, the shards or the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergegraph import compile_plan, run
from mergegraph.errors import MemoryBudgetError
from mergegraph.runtime import executor, progress
from mergegraph.schedule import memory
from tests.engine.scenario import MEDIUM, METHODS, Scenario, contents, make, tensor_bytes


@pytest.fixture(scope="module")
def references(shared: Scenario, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What each method gives with one thread and the usual settings."""
    made = {}
    for method in METHODS:
        made[method] = tmp_path_factory.mktemp(f"reference-{method}") / "out"
        run(shared.plan(method), made[method], threads=1, shard_size=1_000_000)
    return made


def least_memory(plan: Path, threads: int = 1) -> int:
    with pytest.raises(MemoryBudgetError) as caught:
        compile_plan(plan, memory=1, threads=threads)
    return caught.value.needed


@pytest.mark.parametrize("method", METHODS)
def test_threads_and_memory_change_nothing_at_all(
    shared: Scenario, references: dict[str, Path], tmp_path: Path, method: str
) -> None:
    plan = shared.plan(method)
    expected = contents(references[method])
    for threads in (1, 2, 3, 4):
        for budget in (least_memory(plan), 2**30):
            out = tmp_path / f"{threads}-{budget}" / "out"
            report = run(plan, out, threads=threads, memory=budget, shard_size=1_000_000)
            assert report.threads <= threads
            assert contents(out) == expected, f"{threads} threads, {budget:,} bytes"


@pytest.mark.parametrize("method", METHODS)
def test_tiles_jobs_and_batches_change_nothing_at_all(
    shared: Scenario,
    references: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    for tile, job_tiles, batch in ((1, 1, 1), (3 * memory.CHUNK, 2, 3), (64 * memory.CHUNK, 1, 1000)):
        monkeypatch.setattr(memory, "TILE", tile)
        for module in (memory, progress, executor):
            monkeypatch.setattr(module, "JOB_TILES", job_tiles)
        monkeypatch.setattr(executor, "BATCH_PROGRAMS", batch)
        out = tmp_path / str(tile) / "out"
        run(shared.plan(method), out, threads=3, shard_size=1_000_000)
        assert contents(out) == contents(references[method]), f"tiles of {tile}"


@pytest.mark.parametrize("method", METHODS)
def test_the_size_of_shards_changes_no_tensor(
    shared: Scenario, references: dict[str, Path], tmp_path: Path, method: str
) -> None:
    expected = tensor_bytes(references[method])
    counts = []
    for size in (1, 400_000, "5GB"):
        out = tmp_path / str(size)
        run(shared.plan(method), out, threads=2, shard_size=size)
        assert tensor_bytes(out) == expected
        counts.append(len(list(out.glob("*.safetensors"))))
    assert counts[0] == len(expected), "a tensor for each file"
    assert counts[-1] == 1


def test_how_the_inputs_are_sharded_changes_no_tensor(tmp_path: Path) -> None:
    results = []
    for size in (None, 1, 350_000):
        scenario = make(tmp_path / str(size), shapes=MEDIUM, shard_size=size)
        run(scenario.plan("ties"), scenario.root / "out", threads=2)
        results.append(tensor_bytes(scenario.root / "out"))
    assert results[0] == results[1] == results[2]


def test_two_runs_of_one_plan_write_identical_files_and_force_replaces_with_the_same(
    shared: Scenario, tmp_path: Path
) -> None:
    plan, out = shared.plan("ties"), tmp_path / "a" / "out"
    run(plan, out, threads=2, shard_size=500_000)
    first = contents(out)
    assert {"mergegraph.json", "README.md", "config.json", "tokenizer.json"} <= first.keys()
    run(plan, tmp_path / "b" / "out", threads=1, shard_size=500_000)
    assert contents(tmp_path / "b" / "out") == first
    run(plan, out, threads=4, shard_size=500_000, force=True)
    assert contents(out) == first
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["out"]
