"""Every method has a plan that compiles."""

from __future__ import annotations

from pathlib import Path

import pytest

import mergegraph
from benchmarks import shapes
from benchmarks.cases import METHODS, QUICK, case, example_case
from benchmarks.suites.moe import EXPERTS, expert_bytes, plan_text
from mergegraph.methods import all_methods
from mergegraph.testing import Llama

NAMES = shapes.find("quick").names


@pytest.mark.parametrize("method", METHODS)
def test_the_plan_of_a_method_compiles_and_reads_what_it_says(
    method: str, models: Path, tmp_path: Path
) -> None:
    made = case(method, NAMES)
    plan = tmp_path / "plan.yml"
    plan.write_text(made.plan(models / "quick"))
    compiled = mergegraph.compile_plan(plan)
    assert compiled.title == method
    assert sorted(Path(str(ref)).name for ref in compiled.inputs) == sorted(made.models)


@pytest.mark.parametrize("method", sorted(all_methods()))
def test_any_other_method_is_measured_with_its_example(method: str, models: Path, tmp_path: Path) -> None:
    made = example_case(method, all_methods()[method].example, NAMES)
    plan = tmp_path / "plan.yml"
    plan.write_text(made.plan(models / "quick"))
    assert mergegraph.compile_plan(plan).title == method
    assert not made.peer


def test_an_example_of_more_checkpoints_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="names 3 checkpoints; there are 2"):
        example_case("new", "models: [./model-a, ./model-b, ./base]", ("base", "tune1"))


def test_quick_mode_measures_known_methods() -> None:
    assert [name for name in QUICK if name not in METHODS] == []


def test_the_plan_of_experts_names_every_fine_tune(tmp_path: Path) -> None:
    text = plan_text(tmp_path, NAMES)
    assert text.count("source_model:") == EXPERTS
    assert all(str(tmp_path / name) in text for name in NAMES)


def test_experts_are_the_feed_forward_networks(models: Path) -> None:
    shape: Llama = shapes.find("quick").llama
    expected = 3 * shape.layers * shape.hidden * shape.intermediate * 2
    assert expert_bytes(models / "quick" / "base") == expected
