"""Graphs: expressions over slots, what is bound to them, and a fingerprint of all that decides a result."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mergegraph import ops
from mergegraph.graph.graph import Graph, Output, Piece, SourceTensor
from mergegraph.graph.node import Node, walk
from mergegraph.tensorspec import DType, TensorSpec

SPEC = TensorSpec((4, 8), DType.BF16)


def average(weights: tuple[float, float] = (0.5, 0.5), dtype: str = "BF16") -> Node:
    return ops.cast(ops.weighted_sum(ops.load(0, SPEC), ops.load(1, SPEC), weights), dtype=dtype)


def output(expression: Node, *sources: str) -> Output:
    bound = tuple(SourceTensor(*source.split("/")) for source in sources)
    return Output(TensorSpec(expression.spec.shape, expression.spec.dtype), (Piece(expression, bound),))


def graph() -> Graph:
    """x = average(a/x, b/x); y = average(a/y, b/y); z = a/z"""
    return Graph(
        {
            "x": output(average(), "a/x", "b/x"),
            "y": output(average(), "a/y", "b/y"),
            "z": output(ops.load(0, SPEC), "a/z"),
        }
    )


def test_binding_names_the_checkpoint_tensors_and_changes_nothing_else() -> None:
    bound = graph().outputs["x"].pieces[0]
    kinds = [n.op.name for n in walk([bound])]
    assert kinds == [n.op.name for n in walk([average()])]
    assert bound.spec == average().spec
    sources = [n.attributes for n in walk([bound]) if n.op.name == "load"]
    assert [(s["source"], s["tensor"]) for s in sources] == [("a", "x"), ("b", "x")]
    assert all("slot" not in s for s in sources)


def test_expressions_are_shared_and_bound_ones_are_not() -> None:
    x, y = graph().outputs["x"], graph().outputs["y"]
    assert x.parts[0].expression == y.parts[0].expression
    assert x.pieces[0] != y.pieces[0]
    assert x.pieces[0] == graph().outputs["x"].pieces[0]


def test_two_slots_bound_to_one_tensor_are_one_value() -> None:
    bound = output(average(), "a/x", "a/x").pieces[0]
    assert [n.op.name for n in walk([bound])].count("load") == 1


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        (ops.load(0, SPEC), "copied"),
        (ops.IDENTICAL(ops.load(0, SPEC), ops.load(1, SPEC)), "checked"),
        (average(), "merged"),
        (ops.cast(ops.load(0, SPEC), dtype="F32"), "merged"),
    ],
    ids=["load", "identical", "average", "cast"],
)
def test_an_output_is_copied_checked_or_merged(expression: Node, kind: str) -> None:
    assert output(expression, "a/x", "b/x").kind == kind


def test_pieces_decide_together() -> None:
    copied, checked = output(ops.load(0, SPEC), "a/x"), output(ops.IDENTICAL(*[ops.load(0, SPEC)] * 2), "a/x")
    merged = output(average(), "a/x", "b/x")
    spec = TensorSpec((8, 8), DType.BF16)
    assert Output(spec, copied.parts + copied.parts).kind == "copied"
    assert Output(spec, copied.parts + checked.parts).kind == "checked"
    assert Output(spec, copied.parts + merged.parts).kind == "merged"


def test_the_same_graph_has_the_same_fingerprint() -> None:
    assert graph().fingerprint == graph().fingerprint
    assert len(graph().fingerprint) == 32


def changed(**outputs: Output) -> Graph:
    return Graph({**graph().outputs, **outputs})


def without(name: str) -> Graph:
    return Graph({k: v for k, v in graph().outputs.items() if k != name})


@pytest.mark.parametrize(
    "other",
    [
        lambda: changed(x=output(average(), "a/x", "c/x")),
        lambda: changed(x=output(average(), "a/x", "b/y")),
        lambda: changed(x=output(average(), "b/x", "a/x")),
        lambda: changed(x=output(average((0.5, 0.6)), "a/x", "b/x")),
        lambda: changed(x=output(average(dtype="F16"), "a/x", "b/x")),
        lambda: changed(w=output(ops.load(0, SPEC), "a/z")),
        lambda: without("z"),
        lambda: Graph({("xx" if k == "x" else k): v for k, v in graph().outputs.items()}),
        lambda: changed(x=Output(TensorSpec((32,), DType.BF16), graph().outputs["x"].parts)),
        lambda: changed(x=Output(SPEC, graph().outputs["x"].parts * 2)),
    ],
    ids=[
        "checkpoint",
        "tensor",
        "order of sources",
        "weights",
        "dtype",
        "one output more",
        "one less",
        "name",
        "shape",
        "pieces",
    ],
)
def test_the_fingerprint_covers_everything_that_decides_an_output(other: Callable[[], Graph]) -> None:
    assert other().fingerprint != graph().fingerprint


def test_tasks_are_counted_per_output_and_loads_per_tensor() -> None:
    assert graph().tasks() == {"load": 5, "weighted_sum": 2, "cast": 2}
    assert changed(w=output(ops.load(0, SPEC), "a/z")).tasks()["load"] == 5
    assert Graph({}).tasks() == {"load": 0}


def test_sources_are_listed_once_in_the_order_of_their_first_use() -> None:
    found = [f"{s.checkpoint}/{s.tensor}" for s in changed(w=output(average(), "b/y", "a/x")).sources()]
    assert found == ["a/x", "b/x", "a/y", "b/y", "a/z"]
