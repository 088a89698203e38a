"""``--memory`` is a promise: measured in processes of their own, on tensors larger than the budget."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergegraph import compile_plan, run
from mergegraph.errors import MemoryBudgetError
from mergegraph.testing import write_checkpoint
from mergegraph.testing.tiny import to_bfloat16
from tests.engine.process import run_to_end
from tests.engine.scenario import MODELS, Scenario

MIB = 2**20
BUDGET = 176 * MIB
LARGE, SMALL = 600 * MIB, 200 * MIB


def write_large(directory: Path, size: int, seed: int) -> None:
    """A checkpoint of one bfloat16 tensor of `size` bytes, without ever holding it."""
    directory.mkdir(parents=True)
    entry = {"dtype": "BF16", "shape": [size // 2048, 1024], "data_offsets": [0, size]}
    header = json.dumps({"embed.weight": entry}).encode()
    header += b" " * (-len(header) % 8)
    block = to_bfloat16(np.random.default_rng(seed).standard_normal(2 * MIB, dtype=np.float32))
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for begin in range(0, size, block.nbytes):
            file.write(block.data.cast("B")[: size - begin])


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Scenario]]:
    scenarios = {}
    for size in (SMALL, LARGE):
        scenarios[size] = Scenario(tmp_path_factory.mktemp(f"large-{size}"))
        for seed, name in enumerate(MODELS):
            write_large(scenarios[size].model(name), size, seed)
    yield scenarios
    for scenario in scenarios.values():  # gigabytes are not left for whoever cleans up
        for path in scenario.root.rglob("*.safetensors"):
            path.unlink()


@pytest.mark.parametrize("method", ["slerp", "ties"])
def test_a_tensor_larger_than_the_budget_is_merged_within_it(large: dict[int, Scenario], method: str) -> None:
    """Larger than the budget: a few tiles of it are held, and three times the size needs nothing more.

    How many tiles were held at once depends on how the threads met, up to what the proof allows: so it is
    the proof that is compared between sizes, and the use that is compared with the size.
    """
    proven = {}
    for size in (SMALL, SMALL, LARGE):  # the first run compiles, which would hide what the size costs
        scenario = large[size]
        plan, out = scenario.plan(method), scenario.root / f"out-{method}"
        report = run_to_end(plan, out, run={"memory": BUDGET, "threads": 2})
        assert out.joinpath("model.safetensors").stat().st_size > size
        assert report["used"] <= report["plan_peak"] <= BUDGET == report["budget"]
        assert report["peak_working"] <= report["plan_peak"]
        proven[size] = report["plan_peak"]
        shutil.rmtree(out)
    assert report["used"] < LARGE // 8
    assert proven[LARGE] - proven[SMALL] < MIB


def test_the_first_run_which_compiles_its_code_stays_within_the_proven_peak_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three models and many combinations of four float types: each needs a loop of its own."""
    monkeypatch.setenv("MERGEGRAPH_CACHE", str(tmp_path / "nothing compiled yet"))
    kinds = ("bfloat16", "float16", "float32", "float64")
    combinations = dict(enumerate(list(product(kinds, repeat=3))[:36]))
    scenario = Scenario(tmp_path)
    for m, model in enumerate(MODELS):
        narrow = [f"{i}.weight" for i, kind in combinations.items() if kind[m] == "bfloat16"]
        stored = {f"{i}.weight": kind[m].replace("bfloat16", "float32") for i, kind in combinations.items()}
        tensors = {name: np.full(16, 0.5, kind) for name, kind in stored.items()}
        write_checkpoint(scenario.model(model), tensors, bfloat16=narrow)
    every = [{"model": str(scenario.model(m)), "parameters": {"weight": 0.5}} for m in MODELS]
    report = run_to_end(scenario.plan("linear", models=every), tmp_path / "out", run={"threads": 2})
    assert report["used"] <= report["plan_peak"]


def test_many_tensors_of_many_models_stay_within_the_proven_peak(tmp_path: Path) -> None:
    count, models = 1200, 12
    tensors: dict[str, np.ndarray[Any, Any]] = {
        f"model.layers.{i // 10}.some.block.of_a_usual_name.part{i % 10}.weight": np.ones(2, np.float32)
        for i in range(count)
    }
    listed = []
    for i in range(models):
        write_checkpoint(tmp_path / f"m{i}", tensors)
        listed.append({"model": str(tmp_path / f"m{i}"), "parameters": {"weight": 0.5}})
    plan = Scenario(tmp_path).plan("linear", models=listed)
    run(plan, tmp_path / "warm", threads=2)  # compiling has its own allowance, which would hide the rest
    report = run_to_end(plan, tmp_path / "out", run={"threads": 2})
    assert report["used"] <= report["plan_peak"]
    few = run_to_end(_first_layer_of(listed, tmp_path), tmp_path / "few", run={"threads": 2})
    growth = report["used"] - few["used"]
    assert growth <= report["plan_peak"] - few["plan_peak"], "what many tensors add is accounted for"


def _first_layer_of(listed: list[dict[str, Any]], root: Path) -> Path:
    """The same merge of a model that has only ten tensors."""
    models = []
    for entry in listed:
        name = Path(entry["model"]).name
        tensors = {
            f"model.layers.0.some.block.of_a_usual_name.part{i}.weight": np.ones(2, np.float32)
            for i in range(10)
        }
        write_checkpoint(root / "few-models" / name, tensors)
        models.append(entry | {"model": str(root / "few-models" / name)})
    return Scenario(root).plan("linear", name="few", models=models)


@pytest.mark.parametrize("method", ["linear", "slerp", "ties", "passthrough"])
def test_too_small_a_budget_is_refused_before_anything_is_written_and_the_advice_is_right(
    shared: Scenario, tmp_path: Path, method: str
) -> None:
    plan, out = shared.plan(method), tmp_path / "new" / "out"
    with pytest.raises(MemoryBudgetError) as caught:
        run(plan, out, memory="1MiB", threads=4)
    error = caught.value
    assert error.exit_code == 5
    assert error.tensor in compile_plan(plan).graph.outputs
    assert error.tensor in str(error)
    assert (error.budget, list(tmp_path.iterdir())) == (MIB, [])
    with pytest.raises(MemoryBudgetError):
        run(plan, out, memory=error.needed - 1, threads=4)
    enough = -(-error.needed // MIB)
    assert f"at least {enough} MiB" in str(error)
    report = run(plan, out, memory=f"{enough}MiB", threads=4)
    assert report.plan_peak <= error.needed + 2**20
    assert (report.threads, report.budget) == (1, enough * MIB)


def test_more_memory_allows_more_threads(shared: Scenario) -> None:
    plan = shared.plan("ties")
    peaks = [compile_plan(plan, threads=n).schedule.peak_bytes for n in (1, 2, 4, 8)]
    assert peaks == sorted(peaks)
    for threads, peak in zip((1, 2, 4, 8), peaks, strict=True):
        schedule = compile_plan(plan, threads=8, memory=peak).schedule
        assert schedule.workers >= threads
        assert schedule.peak_bytes <= peak
