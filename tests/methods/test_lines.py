"""Where a tensor lies decides how much of its change is taken."""

from __future__ import annotations

import pytest

from mergegraph.compiler.merge import Compiled
from mergegraph.graph.node import walk
from mergegraph.testing import Llama
from tests.compiler.headers import compiled, llama

Q = "self_attn.q_proj.weight"
EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
PLAN = """\
merge_method: lines
base_model: a
models: [{model: b, parameters: {weight: 1}}]
parameters: {alpha: 0.25, beta: 0.75}
"""


def factors(result: Compiled) -> dict[str, float]:
    """What the merged task vector of each output is multiplied by."""
    found = {}
    for name, output in result.graph.outputs.items():
        (applied,) = [n for n in walk([output.parts[0].expression]) if n.op.name == "apply_delta"]
        found[name] = applied.inputs[2].attributes["values"][0]
    return found


def test_the_factor_grows_from_the_first_layer_to_the_last() -> None:
    """::

    embeddings · 0 · 1 · 2 · 3 · norm and head
    """
    at = factors(compiled(PLAN, llama("a"), llama("b")))
    assert [at[f"model.layers.{i}.{Q}"] for i in range(4)] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert (at[EMBEDDING], at[NORM], at[HEAD]) == (0.25, 1.0, 1.0)


def test_depth_is_that_in_the_output_and_not_in_a_slice() -> None:
    slices = "\n".join(
        f"  - sources: [{{model: a, layer_range: [{i}, {j}]}}, {{model: b, layer_range: [{i}, {j}]}}]"
        for i, j in ((0, 2), (1, 4))
    )
    head = "merge_method: lines\nbase_model: a\nparameters: {weight: 1, alpha: 0, beta: 1}\nslices:\n"
    at = factors(compiled(head + slices, llama("a"), llama("b")))
    assert [at[f"model.layers.{i}.{Q}"] for i in range(5)] == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert (at[EMBEDDING], at[NORM]) == (0.0, 1.0)


def test_gradients_still_run_over_each_slice() -> None:
    at = factors(compiled(PLAN.replace("alpha: 0.25", "alpha: [0, 3]"), llama("a"), llama("b")))
    assert [at[f"model.layers.{i}.{Q}"] for i in range(4)] == pytest.approx([0.0, 1.25, 2.5, 3.75])


def test_a_single_layer_is_the_last_one() -> None:
    shape = Llama(layers=1, hidden=8, intermediate=12, heads=2, kv_heads=1, vocab=10)
    at = factors(compiled(PLAN, llama("a", shape), llama("b", shape)))
    assert at[f"model.layers.0.{Q}"] == 1.0


def test_the_position_is_part_of_what_is_recorded_for_each_tensor() -> None:
    result = compiled(PLAN, llama("a"), llama("b"))
    positions = {name: a.shared.position for a in result.report.parameters for name in a.tensors}
    assert positions[f"model.layers.0.{Q}"] == positions[EMBEDDING] == 0.0
    assert positions[HEAD] == 1.0


def test_methods_that_do_not_ask_for_positions_share_values_between_layers() -> None:
    plan = PLAN.replace("lines", "task_arithmetic").replace("alpha: 0.25, beta: 0.75", "lambda: 1")
    assert len(compiled(plan, llama("a"), llama("b")).report.parameters) == 1
