"""A dense model in parts: together they have every neuron once."""

from __future__ import annotations

import pytest

from mergegraph.compiler.inputs import Input
from mergegraph.compiler.models import Model, checkpoint_model
from mergegraph.compiler.shards import shards
from mergegraph.errors import GraphError
from mergegraph.plan.values import parse_model_ref
from tests.compiler.headers import CONFIG, LLAMA, index, llama

GATE, DOWN = "model.layers.1.mlp.gate_proj.weight", "model.layers.1.mlp.down_proj.weight"


def model(**changes: object) -> Model:
    return checkpoint_model(Input(parse_model_ref("a"), "a", llama("a", **changes)))


def test_one_part_is_the_model_itself() -> None:
    whole = model(model_type="mystery")
    assert shards(whole, 1) == [whole]


def test_parts_have_every_neuron_once_in_order() -> None:
    whole = model()
    parts = shards(whole, 3)
    size = LLAMA.intermediate // 3
    rows, columns = [], []
    for part in parts:
        assert part.outputs[GATE].spec.shape == (size, LLAMA.hidden)
        assert part.outputs[DOWN].spec.shape == (LLAMA.hidden, size)
        (piece,) = part.outputs[GATE].parts
        (view,) = (source.view for source in piece.sources)
        assert view is not None
        rows += [run.start + k for run in view.runs(0, view.numel) for k in range(run.length)]
        (piece,) = part.outputs[DOWN].parts
        (view,) = (source.view for source in piece.sources)
        assert view is not None
        first = next(iter(view.runs(0, size)))
        columns += [first.start + k for k in range(first.length)]
        assert [run.start - first.start for run in view.runs(0, view.numel)] == [
            row * LLAMA.intermediate for row in range(LLAMA.hidden)
        ]
    assert rows == list(range(LLAMA.intermediate * LLAMA.hidden))
    assert columns == list(range(LLAMA.intermediate))


def test_only_mlps_are_split_and_sizes_follow() -> None:
    whole = model()
    for number, part in enumerate(shards(whole, 4), start=1):
        assert part.config == {**CONFIG, "intermediate_size": LLAMA.intermediate // 4}
        assert part.name == f"a (part {number} of 4)"
        others = [name for name in whole.outputs if ".mlp." not in name]
        assert all(part.outputs[name] == whole.outputs[name] for name in others)
        assert part.outputs.keys() == whole.outputs.keys()


def test_neurons_that_do_not_divide_are_said() -> None:
    with pytest.raises(GraphError, match="12 neurons cannot be split into 5 equal parts"):
        shards(model(), 5)


def test_a_family_that_is_not_known_is_not_split() -> None:
    with pytest.raises(GraphError, match="the family of a is not known"):
        shards(model(model_type="mystery"), 2)


def test_fused_projections_are_not_split() -> None:
    fused = {
        n.replace("gate_proj", "gate_up_proj"): (2 * s[0], *s[1:]) if "gate_proj" in n else s
        for n, s in LLAMA.shapes().items()
        if "up_proj" not in n
    }
    source = index("a", fused, {**CONFIG, "model_type": "phi3"})
    phi = checkpoint_model(Input(parse_model_ref("a"), "a", source))
    with pytest.raises(GraphError, match="stores gate and up projections in one tensor"):
        shards(phi, 2)
