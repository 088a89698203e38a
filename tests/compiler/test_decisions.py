"""Layers that are alike are decided once, which nobody can tell from the result."""

from __future__ import annotations

from typing import Any

import pytest

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.compiler import merge
from mergegraph.compiler.decisions import decided
from mergegraph.compiler.merge import Compiled
from mergegraph.graph.graph import SourceTensor
from mergegraph.tensorspec import DType
from tests.compiler.headers import compiled, index, problems, sources

IDLE = "[{filter: nowhere, value: 0.25}, {value: 0.5}]"
"""The value 0.5, by way of a filter that matches nothing: with one, every tensor is decided by itself."""
LAYERS = 6


def uneven(name: str) -> CheckpointIndex:
    """A model whose layers differ in dtypes, shapes, and in which models have what."""
    tensors: dict[str, Any] = {"embed_tokens.weight": (10, 8), "norm.weight": (8,)}
    for i in range(LAYERS):
        tensors[f"layers.{i}.up.weight"] = ((8, 8), DType.BF16 if i % 3 == 1 else DType.F32)
        tensors[f"layers.{i}.down.weight"] = (8, 4) if i < 4 else (8, 6)
        tensors[f"layers.{i}.ids"] = ((3,), DType.I64)
        tensors[f"layers.{i}.rotary_emb.inv_freq"] = (4,)
        if name != "c" or i % 2:
            tensors[f"layers.{i}.bias"] = (8,)
    return index(name, tensors, {})


def outcome(result: Compiled) -> tuple[Any, ...]:
    """All that is told of a compilation but its notes, which tell of idle filters."""
    report = result.report
    assigned = [a.as_dict() for a in report.parameters]
    return list(result.graph.outputs.items()), assigned, report.partial, report.dropped, result.config


def plan(method: str, weight: str, layout: str) -> str:
    base = "" if method in ("linear", "passthrough") else "base_model: a\n"
    names = ["a"] if method == "passthrough" else ["a", "b", "c"]
    name = "scale" if method == "passthrough" else "t" if method == "slerp" else "weight"
    names = names[:2] if method == "slerp" else names
    head = f"merge_method: {method}\n{base}parameters: {{{name}: {weight}, density: 0.5}}\nseed: 7\n"
    if layout == "models":
        return head + "models:\n" + "".join(f"  - model: {n}\n" for n in names)
    parts = ((0, 4), (1, 5)) if layout == "slices" else ((0, 3), (0, 3))
    text = head + "slices:\n"
    for i, (start, end) in enumerate(parts):
        listed = "".join(f"{{model: {n}, layer_range: [{start}, {end}]}}, " for n in names)
        # What the parts say differs, so that neither may be taken for the other.
        text += f"  - sources: [{listed}]\n" + (f"    parameters: {{{name}: 0.125}}\n" if i else "")
    return text


@pytest.mark.parametrize("layout", ["models", "slices", "repeated"])
@pytest.mark.parametrize(
    "method", ["linear", "ties", "task_arithmetic", "dare_ties", "della", "slerp", "passthrough"]
)
def test_deciding_once_gives_what_deciding_each_tensor_gives(method: str, layout: str) -> None:
    models = [uneven(name) for name in "abc"]
    once, each = (compiled(plan(method, weight, layout), *models) for weight in ("0.5", IDLE))
    assert any("nowhere" in note for note in each.report.notes)
    assert outcome(once) == outcome(each)
    assert once.graph.fingerprint == each.graph.fingerprint


@pytest.mark.parametrize(("weight", "each"), [("0.5", False), (IDLE, True), ("[0.5, 0.25]", True)])
def test_layers_are_decided_once_unless_parameters_may_tell_them_apart(
    weight: str, each: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def counted(group: Any, *args: Any, **options: Any) -> Any:
        seen.append(group.name)
        return decided(group, *args, **options)

    monkeypatch.setattr(merge, "decided", counted)
    models = [
        index(name, {f"layers.{i}.{kind}": (4, 4) for i in range(50) for kind in ("up", "down")}, {})
        for name in "abc"
    ]
    result = compiled(plan("ties", weight, "models"), *models)
    assert len(result.graph.outputs) == 100
    assert len(seen) == (100 if each else 2)


def test_a_position_dependent_method_decides_every_layer() -> None:
    """LiNeS scales by depth without a word of it in the plan."""
    models = [index(name, {f"layers.{i}.up": (4, 4) for i in range(4)}, {}) for name in "abc"]
    text = "merge_method: lines\nbase_model: a\nmodels: [{model: b}, {model: c}]\nparameters: {weight: 1}\n"
    result = compiled(text, *models)
    assert len({output.parts[0].expression.key for output in result.graph.outputs.values()}) == 4


@pytest.mark.parametrize("method", ["dare_ties", "della"])
def test_every_tensor_of_every_model_draws_from_a_stream_of_its_own(method: str) -> None:
    models = [uneven(name) for name in "abc"]
    graph = compiled(plan(method, "0.5", "models"), *models).graph
    streams = [s for output in graph.outputs.values() for s in output.parts[0].streams]
    assert len(streams) > 3 * LAYERS
    assert len(dict.fromkeys(streams)) == len(streams)


def test_each_layer_reads_its_own_tensors() -> None:
    models = [uneven(name) for name in "abc"]
    result = compiled(plan("linear", "0.5", "slices"), *models)
    # The second slice begins with layer 1 again.
    for number, source in enumerate((0, 1, 2, 3, 1, 2, 3, 4)):
        name = f"layers.{source}.up.weight"
        assert sources(result, f"layers.{number}.up.weight") == [(m, name) for m in "abc"]
    assert SourceTensor("c", "layers.0.bias") not in result.graph.sources()


def test_a_problem_of_many_layers_counts_all_of_them() -> None:
    shapes = {"a": (4, 4), "b": (4, 5), "c": (4, 4)}
    models = [index(n, {f"layers.{i}.up": shape for i in range(9)}, {}) for n, shape in shapes.items()]
    (problem,) = problems(plan("linear", "0.5", "models"), *models)
    assert "and 8 more tensors" in problem.message
