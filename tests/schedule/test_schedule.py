"""A schedule says what will run and how much it reads, writes and holds, from headers alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mergegraph import compile_plan
from mergegraph.errors import MemoryBudgetError
from mergegraph.schedule.memory import TILE
from mergegraph.schedule.schedule import Schedule

GIB = 2**30


def write_header(directory: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """A checkpoint of any size that takes no room on disk: its data is a hole in the file."""
    table, end = {}, 0
    for name, (rows, columns) in shapes.items():
        begin, end = end, end + 2 * rows * columns
        table[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, end]}
    raw = json.dumps(table).encode()
    directory.mkdir()
    with open(directory / "model.safetensors", "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


def planned(root: Path, shapes: dict[str, tuple[int, ...]], method: str, **options: object) -> Schedule:
    for name in "abc":
        if not (root / name).exists():
            write_header(root / name, shapes)
    weighted = [{"model": str(root / n), "parameters": {"weight": 0.5}} for n in "bc"]
    plan: dict[str, object] = {
        "merge_method": method,
        "base_model": str(root / "a"),
        "models": weighted,
        "parameters": {"density": 0.5},
    }
    if method == "slerp":
        plan |= {"models": [{"model": str(root / "b")}], "parameters": {"t": 0.5}}
    (root / "plan.yml").write_text(json.dumps(plan))
    return compile_plan(root / "plan.yml", **options).schedule  # type: ignore[arg-type]


SHAPES = {"embed.weight": (128_256, 8192), "layer.weight": (8192, 8192), "layer.norm": (1, 8192)}
BYTES = 2 * sum(rows * columns for rows, columns in SHAPES.values())


def test_marks_of_rows_are_charged_and_given_up_before_a_worker_is(tmp_path: Path) -> None:
    shapes = {"embed.weight": (32_000, 2048), "layer.weight": (4096, 4096)}

    def marks(memory: str) -> tuple[bool, int, int]:
        found = planned(tmp_path, shapes, "della", memory=memory, threads=2)
        return any(p.marks for x in found.programs for p in x.phases), found.workers, found.peak_bytes

    marking, workers, most = marks("1GiB")
    assert (marking, workers) == (True, 2)
    marking, workers, smaller = marks(str(most - 1))
    assert (marking, workers) == (True, 2), "smaller tiles do"
    marking, workers, least = marks(str(smaller - 1))
    assert (marking, workers) == (False, 2)
    assert smaller > 2 * 2 * 2 * 32_000 * 2048 // 8, "of two models, for two jobs of each of two workers"
    assert least < smaller


def test_bytes_are_counted_over_every_pass(tmp_path: Path) -> None:
    slerp = planned(tmp_path, SHAPES, "slerp")
    assert slerp.streamed_bytes == 2 * 2 * BYTES, "two models, measured and then combined"
    assert slerp.work_bytes == slerp.streamed_bytes + BYTES
    ties = planned(tmp_path, SHAPES, "ties")
    assert ties.work_bytes == ties.streamed_bytes + BYTES
    assert ties.streamed_bytes >= 2 * 3 * BYTES


@pytest.mark.parametrize("method", ["slerp", "ties"])
def test_the_proven_peak_of_tensors_ten_times_as_large_is_hardly_larger(tmp_path: Path, method: str) -> None:
    peaks = []
    for factor in (1, 10):
        root = tmp_path / str(factor)
        root.mkdir()
        shapes = {name: (rows * factor, columns) for name, (rows, columns) in SHAPES.items()}
        peaks.append(planned(root, shapes, method, threads=2, memory="8GiB").peak_bytes)
    assert peaks[1] < GIB // 2
    assert peaks[1] - peaks[0] < GIB // 32, "for 18 GB more"


def test_a_budget_is_kept_by_smaller_tiles_and_fewer_workers(tmp_path: Path) -> None:
    roomy = planned(tmp_path, SHAPES, "ties", threads=8, memory="8GiB")
    assert (roomy.workers, roomy.tile, roomy.budget) == (8, TILE, 8 * GIB)
    with pytest.raises(MemoryBudgetError) as caught:
        planned(tmp_path, SHAPES, "ties", threads=8, memory="1MiB")
    tight = planned(tmp_path, SHAPES, "ties", threads=8, memory=caught.value.needed)
    assert tight.workers == 1
    assert tight.tile < TILE
    assert tight.peak_bytes <= tight.budget
    assert [p.tensor for p in tight.programs] == [p.tensor for p in roomy.programs]
    assert tight.work_bytes == roomy.work_bytes


def test_a_plan_is_scheduled_the_same_way_every_time(tmp_path: Path) -> None:
    first, second = (planned(tmp_path, SHAPES, "ties", threads=3) for _ in range(2))
    assert [(p.tensor, p.offset, p.sources) for p in first.programs] == [
        (p.tensor, p.offset, p.sources) for p in second.programs
    ]
    assert first.peak_bytes == second.peak_bytes


def test_every_output_has_its_program_once(tmp_path: Path) -> None:
    assert sorted(p.tensor for p in planned(tmp_path, SHAPES, "slerp").programs) == sorted(SHAPES)
