"""Which tensors form a layer, and which layers are alike."""

from __future__ import annotations

from mergegraph.graph.graph import FILL, Graph, Output, Piece, filled
from mergegraph.graph.outline import LayerName, layer_name, moved, outline, ranges
from tests.graph.graphs import LABELS, linear, llama, load, output, stacked


def labels(graph: Graph) -> list[str]:
    return [group.label for group in outline(graph)]


def test_a_name_is_split_at_its_first_number() -> None:
    assert layer_name("a.b.7.mlp.3.w") == LayerName("a.b", 7, "mlp.3.w")
    assert layer_name("0.weight") == LayerName("", 0, "weight")
    assert layer_name("model.norm.weight") is None
    assert layer_name("conv1.weight") is None


def test_numbers_are_written_as_ranges() -> None:
    assert ranges([5, 0, 1, 2]) == "0–2, 5"
    assert ranges([]) == ""


def test_layers_that_are_computed_alike_are_one_group() -> None:
    assert labels(llama(22)) == ["lm_head", "model.embed_tokens", "model.layers.0–21", "model.norm"]


def test_a_gradient_does_not_pull_layers_apart() -> None:
    assert labels(llama(22, gradient=True)) == labels(llama(22))


def test_an_equal_weight_looks_like_two_different_ones() -> None:
    """(0.5, 0.5) is one constant used once, (0.4, 0.6) too: values never decide."""
    graph = Graph(
        {
            f"h.{i}.w": output(linear((4,), weights), ("key-a", f"h.{i}.w"), ("key-b", f"h.{i}.w"))
            for i, weights in enumerate([(0.5, 0.5), (0.4, 0.6)])
        }
    )
    assert labels(graph) == ["h.0–1"]


def test_slices_of_other_models_are_groups_that_say_where_they_come_from() -> None:
    """a 0–3, then b 2–5, then a 0–1 again: the last is shifted, so it is not the first."""
    groups = outline(stacked([("key-a", 0, 4), ("key-b", 2, 6), ("key-a", 0, 2)]))
    assert [group.label for group in groups] == ["model.layers.0–3", "model.layers.4–7", "model.layers.8–9"]
    assert [moved(group, LABELS) for group in groups] == ["", "from llama_b 2–5", "from llama_a 0–1"]


def test_alternating_layers_are_two_groups() -> None:
    graph = Graph({f"h.{i}.w": output(load(0, (4 + i % 2,)), ("key-a", f"h.{i}.w")) for i in range(6)})
    assert labels(graph) == ["h.0, 2, 4", "h.1, 3, 5"]


def test_a_group_counts_its_ops_bytes_and_inputs() -> None:
    group = outline(llama(3))[2]
    assert group.ops == {"load": 48, "gram": 24, "slerp": 24, "weighted_sum": 24, "cast": 24}
    assert group.sources == {"key-a": group.nbytes, "key-b": group.nbytes}
    assert group.kinds == {"merged": 24}
    assert group.count == 24


def test_many_tensors_outside_the_layers_are_joined() -> None:
    graph = Graph({f"vision.part_{i}.weight": output(load(0, (4,)), ("key-a", f"v{i}")) for i in range(30)})
    assert labels(graph) == ["vision"]


def test_router_rows_and_constants_do_not_pull_layers_apart() -> None:
    """Rows are named ``layers.7`` and a constant ``0.0``, which is no layer."""
    outputs = {}
    for i in range(3):
        outputs[f"h.{i}.gate"] = output(load(0, (2, 4)), ("rows", f"layers.{i}"))
        outputs[f"h.{i}.bias"] = Output(load(0, (2,)).spec, (Piece(load(0, (2,)), (filled(0.0),)),))
    (group,) = outline(Graph(outputs))
    assert group.label == "h.0–2"
    assert moved(group, {"rows": "router rows", FILL: "constant"}) == ""
