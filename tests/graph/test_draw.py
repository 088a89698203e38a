"""Every drawing holds the whole graph, and nothing that a tensor's name could break."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import pytest

from mergegraph.graph.digraph import to_networkx
from mergegraph.graph.draw import FORMATS
from mergegraph.graph.graph import Graph
from tests.graph.graphs import LABELS, linear, llama, output

HOSTILE = "a\"b<script>alert(1)</script>&'\\\x07]]>"


def drawn(ending: str, graph: Graph, title: str = "plan.yml") -> str:
    return FORMATS[ending](graph, title, LABELS)


def page_data(text: str) -> Any:
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    return json.loads(match[1])


@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_graph_gives_the_same_drawing(ending: str) -> None:
    assert drawn(ending, llama()) == drawn(ending, llama())


@pytest.mark.parametrize("ending", FORMATS)
def test_a_graph_without_outputs_can_be_drawn(ending: str) -> None:
    assert drawn(ending, Graph({}))


def test_the_overview_has_one_box_per_group_and_one_per_input() -> None:
    root = ElementTree.fromstring(drawn("svg", llama(22)))
    kinds = [element.get("class") for element in root.iter("{http://www.w3.org/2000/svg}g")]
    assert (kinds.count("group"), kinds.count("source")) == (4, 2)
    text = " ".join(root.itertext())
    assert "8 tensors × 22 layers" in text
    assert "gram 176" in text


def test_the_overview_draws_no_hairball() -> None:
    names = [f"stack_{i}.{j}.w" for i in range(60) for j in range(2)]
    graph = Graph({n: output(linear((4,)), ("key-a", n), ("key-b", n)) for n in names})
    assert "class='ribbon'" not in drawn("svg", graph)
    assert "class='ribbon'" in drawn("svg", llama())


def test_the_page_holds_every_tensor_and_needs_no_network() -> None:
    text = drawn("html", llama(22, gradient=True))
    data = page_data(text)
    names = [t[0] for group in data["groups"] for layer in group["layers"] for t in layer["tensors"]]
    assert sorted(names) == sorted(llama(22).outputs)
    assert re.findall(r"(?:src|href)=", text) == []
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == []


def test_the_page_stores_equal_expressions_once() -> None:
    data = page_data(drawn("html", llama(22)))
    # Six shapes in the layers, then lm_head, the copied embedding, and the norm.
    shapes = {tuple(output.spec.shape) for name, output in llama(1).outputs.items() if ".layers." in name}
    assert len(data["expressions"]) == len(shapes) + 3
    assert len(data["bindings"]) == 2


def test_the_page_stays_small_for_a_large_model() -> None:
    layers, names = 40, [f"mlp.experts.{e}.w{w}.weight" for e in range(60) for w in (1, 2)]
    shared = linear((64, 64))
    graph = Graph(
        {
            f"model.layers.{i}.{n}": output(
                shared, ("key-a", f"model.layers.{i}.{n}"), ("key-b", f"model.layers.{i}.{n}")
            )
            for i in range(layers)
            for n in names
        }
    )
    text = drawn("html", graph)
    assert len(text) < 30_000 + 110 * len(graph.outputs)


def test_a_hostile_name_stays_a_name() -> None:
    graph = Graph({HOSTILE: output(linear((4,)), ("key-a", HOSTILE), ("key-b", HOSTILE))})
    page = drawn("html", graph, HOSTILE)
    tags: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: object) -> None:
            tags.append(tag)

    Tags().feed(page)
    assert tags.count("script") == 2
    assert page_data(page)["groups"][0]["layers"][0]["tensors"][0][0] == HOSTILE
    ElementTree.fromstring(drawn("svg", graph, HOSTILE))
    assert nx.parse_graphml(drawn("graphml", graph, HOSTILE)).number_of_nodes() == 6
    assert '\\"b<script>' in drawn("dot", graph, HOSTILE)


def test_dot_has_every_value_in_the_cluster_of_its_layer() -> None:
    text = drawn("dot", llama(2))
    assert re.findall(r'    label="(.*)";', text) == [
        "lm_head",
        "model.embed_tokens",
        "model.layers.0",
        "model.layers.1",
        "model.norm",
    ]
    assert text.count("shape=box3d") == len(llama(2).outputs)
    assert 'label="slerp; 0.5\\nfloat64[2] stat"' in text
    assert text.count("{") == text.count("}")


def test_graphml_reads_back_as_the_same_graph() -> None:
    graph = llama(2)
    read = nx.parse_graphml(drawn("graphml", graph))
    made = to_networkx(graph, LABELS)
    assert set(read.edges) == set(made.edges)
    assert dict(read.nodes(data=True)) == dict(made.nodes(data=True))


def test_the_digraph_is_acyclic_and_ends_in_the_outputs() -> None:
    found = to_networkx(llama(2))
    assert nx.is_directed_acyclic_graph(found)
    ends = [n for n, degree in found.out_degree() if degree == 0]
    assert sorted(ends) == sorted(f"output:{name}" for name in llama(2).outputs)
    assert all(found.nodes[n]["op"] in ("load", "constant") for n, d in found.in_degree() if d == 0)
