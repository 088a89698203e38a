"""The order of work: comparisons first, then shard by shard, along the files that are read."""

from __future__ import annotations

import random

import pytest

from mergegraph import ops
from mergegraph.checkpoint.index import CheckpointIndex, FileEntry, TensorEntry
from mergegraph.checkpoint.layout import OutputLayout, build_layout
from mergegraph.graph.graph import Graph, Output, Piece, SourceTensor
from mergegraph.schedule.order import order
from mergegraph.schedule.program import Program
from mergegraph.schedule.tiling import programs
from mergegraph.tensorspec import DType, TensorSpec

SPEC = TensorSpec((10,), DType.BF16)
COUNT = TensorSpec((10,), DType.I64)
# Where the tensors lie in the input: not in the order of their names.
PLACES = {"a": ("2", 0), "b": ("1", 100), "c": ("1", 20), "d": ("2", 50), "e": ("1", 60), "f": ("1", 0)}


def index(places: dict[str, tuple[str, int]]) -> CheckpointIndex:
    tensors = {
        name: TensorEntry(COUNT if name == "count" else SPEC, file, begin, begin + 20)
        for name, (file, begin) in places.items()
    }
    files = {file: FileEntry(file, 1000, "", "") for file, _ in places.values()}
    return CheckpointIndex("m", "/m", tensors, files, {})


def planned(names: str, shard_tensors: int = 100) -> tuple[list[Program], OutputLayout]:
    a, b = (ops.load(i, SPEC) for i in range(2))
    merged = ops.cast(ops.weighted_sum(a, b, (1.0, 1.0)), dtype="BF16")
    outputs = {n: Output(SPEC, (Piece(merged, (SourceTensor("x", n), SourceTensor("y", n))),)) for n in names}
    layout = build_layout(dict.fromkeys(names, SPEC), shard_tensors * SPEC.nbytes)
    return programs(Graph(outputs)), layout


SOURCES = {"x": index(PLACES), "y": index(PLACES)}


def test_within_a_shard_programs_follow_their_sources_on_disk() -> None:
    listed, layout = planned("abcdef")
    assert "".join(p.tensor for p in order(listed, layout, SOURCES)) == "fcebad"


def test_one_output_file_is_finished_before_the_next_begins() -> None:
    listed, layout = planned("abcdef", shard_tensors=2)
    ordered = order(listed, layout, SOURCES)
    assert "".join(p.tensor for p in ordered) == "bacdfe"
    assert [layout.locate(p.tensor)[0] for p in ordered] == [0, 0, 1, 1, 2, 2]


def test_the_order_in_which_programs_are_given_is_of_no_importance() -> None:
    listed, layout = planned("abcdef", shard_tensors=4)
    expected = order(listed, layout, SOURCES)
    for seed in range(5):
        shuffled = list(listed)
        random.Random(seed).shuffle(shuffled)
        assert order(shuffled, layout, SOURCES) == expected


@pytest.mark.parametrize("models", [2, 3])
def test_what_only_compares_its_inputs_goes_first_even_if_it_is_in_the_last_shard(models: int) -> None:
    names = [f"m{i}" for i in range(models)]
    places = PLACES | {"count": ("3", 0)}
    loads = [ops.load(i, COUNT) for i in range(models)]
    compared = Output(COUNT, (Piece(ops.IDENTICAL(*loads), tuple(SourceTensor(m, "count") for m in names)),))
    copied = {n: Output(SPEC, (Piece(ops.load(0, SPEC), (SourceTensor("m0", n),)),)) for n in "ab"}
    graph = Graph({**copied, "count": compared})
    layout = build_layout({n: o.spec for n, o in graph.outputs.items()}, 1)
    ordered = order(programs(graph), layout, {m: index(places) for m in names})
    assert [p.tensor for p in ordered] == ["count", "a", "b"]


def test_a_plain_copy_of_integers_has_no_precedence() -> None:
    graph = Graph(
        {
            "a": Output(SPEC, (Piece(ops.load(0, SPEC), (SourceTensor("x", "a"),)),)),
            "count": Output(COUNT, (Piece(ops.load(0, COUNT), (SourceTensor("x", "count"),)),)),
        }
    )
    layout = build_layout({n: o.spec for n, o in graph.outputs.items()}, 1)
    sources = {"x": index(PLACES | {"count": ("1", 0)})}
    assert [p.tensor for p in order(programs(graph), layout, sources)] == ["a", "count"]


def test_the_pieces_of_a_tensor_stay_in_sequence() -> None:
    whole = TensorSpec((30,), DType.BF16)
    pieces = tuple(Piece(ops.load(0, SPEC), (SourceTensor("x", n),)) for n in "fce")
    graph = Graph({"stacked": Output(whole, pieces)})
    layout = build_layout({"stacked": whole}, 10**6)
    assert [p.offset for p in order(programs(graph), layout, SOURCES)] == [0, 20, 40]
