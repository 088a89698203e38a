"""Extraction plans over headers: what is read from where, what is told, what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from mergegraph.checkpoint.view import View
from mergegraph.compiler.experts import spelling_for
from mergegraph.compiler.extract import compile_extract
from mergegraph.compiler.inputs import Input
from mergegraph.compiler.merge import Compiled
from mergegraph.errors import PlanError, Problem
from mergegraph.graph.graph import SourceTensor
from mergegraph.plan.kinds import parse_any
from mergegraph.plan.surgery import ExtractPlan
from mergegraph.tensorspec import DType
from tests.compiler.headers import index

H, S, E, V, LAYERS = 8, 6, 4, 10, 2
Shapes = dict[str, Any]
MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": H,
    "intermediate_size": S,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_local_experts": E,
    "num_experts_per_tok": 2,
    "vocab_size": V,
    "torch_dtype": "bfloat16",
}
QWEN3 = {**MIXTRAL, "model_type": "qwen3_moe", "norm_topk_prob": True}
DEEP = {
    **MIXTRAL,
    "model_type": "glm4_moe",
    "n_routed_experts": E,
    "partial_rotary_factor": 1.0,
    "routed_scaling_factor": 2.0,
}
QWEN2 = {**MIXTRAL, "model_type": "qwen2_moe", "num_experts": E, "norm_topk_prob": True}


def body(layers: int = LAYERS) -> Shapes:
    shapes: Shapes = {"model.embed_tokens.weight": (V, H)}
    for layer in range(layers):
        for name in "qkvo":
            shapes[f"model.layers.{layer}.self_attn.{name}_proj.weight"] = (H, H)
    return shapes | {"model.norm.weight": (H,), "lm_head.weight": (V, H)}


def experts(layer: int, block: str = "mlp", roles: str = "gate_proj up_proj down_proj") -> Shapes:
    start, (gate, up, down) = f"model.layers.{layer}.{block}.", roles.split()
    shapes: Shapes = {f"{start}gate.weight": (E, H)}
    for e in range(E):
        shapes |= {f"{start}experts.{e}.{name}.weight": (S, H) for name in (gate, up)}
        shapes[f"{start}experts.{e}.{down}.weight"] = (H, S)
    return shapes


def plain(layer: int, name: str = "mlp", size: int = S) -> Shapes:
    start = f"model.layers.{layer}.{name}."
    return {
        f"{start}gate_proj.weight": (size, H),
        f"{start}up_proj.weight": (size, H),
        f"{start}down_proj.weight": (H, size),
    }


def mixtral() -> Shapes:
    return body() | experts(0, "block_sparse_moe", "w1 w3 w2") | experts(1, "block_sparse_moe", "w1 w3 w2")


def stacked() -> Shapes:
    shapes = body()
    for layer in range(LAYERS):
        start = f"model.layers.{layer}.mlp."
        shapes[f"{start}gate.weight"] = (E, H)
        shapes[f"{start}experts.gate_up_proj"] = (E, 2 * S, H)
        shapes[f"{start}experts.down_proj"] = (E, H, S)
    return shapes


def extract(text: str, shapes: Mapping[str, Any], config: Mapping[str, Any]) -> Compiled:
    model = index("moe", shapes, config)
    plan = parse_any(f"surgery: extract\nmodel: moe\n{text}\n", "p.yml")
    assert isinstance(plan, ExtractPlan)
    spelling = spelling_for([(model.tensors, model.config)])
    return compile_extract(plan, Input(plan.model, "moe", model, spelling=spelling))


def problems(text: str, shapes: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Problem, ...]:
    with pytest.raises(PlanError) as caught:
        extract(text, shapes, config)
    return caught.value.problems


def read(compiled: Compiled, tensor: str) -> list[tuple[str, View | None]]:
    parts = compiled.graph.outputs[tensor].parts
    return [(source.tensor, source.view) for part in parts for source in part.sources]


def ops(compiled: Compiled, tensor: str) -> list[str]:
    return [part.expression.op.name for part in compiled.graph.outputs[tensor].parts]


def reasons(compiled: Compiled) -> dict[str, str]:
    return {d.tensor.removeprefix("model.layers."): d.reason for d in compiled.report.dropped}


DOWN = "model.layers.1.mlp.down_proj.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"


def test_a_picked_expert_is_copied() -> None:
    made = extract("expert: 2", mixtral(), MIXTRAL)
    assert read(made, DOWN) == [("model.layers.1.block_sparse_moe.experts.2.w2.weight", None)]
    assert {output.kind for output in made.graph.outputs.values()} == {"copied"}
    assert next(iter(made.graph.outputs)) == "model.embed_tokens.weight"
    assert (made.config["model_type"], made.config["intermediate_size"]) == ("llama", S)
    assert "num_local_experts" not in made.config
    assert made.config["torch_dtype"] == "bfloat16"


def test_a_picked_expert_of_a_stack_is_a_view_of_it() -> None:
    made = extract("expert: 2", stacked(), MIXTRAL)
    assert read(made, DOWN) == [("model.layers.1.mlp.experts.down_proj", View(2 * H * S, H, S, S))]
    up = read(made, "model.layers.0.mlp.up_proj.weight")
    assert up == [("model.layers.0.mlp.experts.gate_up_proj", View(5 * S * H, S, H, H))]
    assert {output.kind for output in made.graph.outputs.values()} == {"copied"}


def test_a_mean_is_one_sum_of_the_experts_by_their_shares() -> None:
    made = extract("experts: [3, 0]\nmode: mean\nweights: [3, 1]", mixtral(), MIXTRAL)
    (piece,) = made.graph.outputs[GATE].parts
    assert piece.expression.op.name == "weighted_sum"
    assert piece.expression.inputs[-1].attributes["values"] == (0.75, 0.25)
    names = [f"model.layers.1.block_sparse_moe.experts.{e}.w1.weight" for e in (3, 0)]
    assert read(made, GATE) == [(name, None) for name in names]
    assert made.graph.outputs["lm_head.weight"].kind == "copied"
    assert made.facts is not None
    assert made.facts["shares"] == {"3": 0.75, "0": 0.25}


def test_experts_side_by_side_are_rows_and_columns_of_one_mlp() -> None:
    made = extract("experts: [1, 2]\nmode: concatenate\nweights: [0.7, 0.3]", mixtral(), MIXTRAL)
    gate, down = made.graph.outputs[GATE], made.graph.outputs[DOWN]
    assert (gate.spec.shape, down.spec.shape) == ((2 * S, H), (H, 2 * S))
    assert [p.place for p in gate.parts] == [View(0, S, H, H), View(S * H, S, H, H)]
    assert [p.place for p in down.parts] == [View(0, H, S, 2 * S), View(S, H, S, 2 * S)]
    assert (ops(made, GATE), ops(made, DOWN)) == (["load"] * 2, ["scale"] * 2)
    scales = [p.expression.inputs[-1].attributes["values"] for p in down.parts]
    assert scales == [(0.7,), (0.3,)]
    assert made.config["intermediate_size"] == 2 * S


def test_the_routed_sum_is_scaled_as_the_mixture_scales_it() -> None:
    made = extract("expert: 0", body() | experts(0) | experts(1), DEEP)
    (piece,) = made.graph.outputs[DOWN].parts
    assert piece.expression.inputs[-1].attributes["values"] == (2.0,)
    assert made.graph.outputs[GATE].kind == "copied"
    assert any("scaled by 2" in note for note in made.report.notes)


def test_an_expert_that_every_token_passes_is_joined_or_left_out() -> None:
    shared = [plain(layer, "mlp.shared_experts", 2 * S) for layer in range(LAYERS)]
    shapes = body() | experts(0) | experts(1) | shared[0] | shared[1]
    joined = extract("experts: [0, 1]\nmode: concatenate", shapes, DEEP)
    assert joined.graph.outputs[GATE].spec.shape == (4 * S, H)
    assert [p.expression.op.name for p in joined.graph.outputs[DOWN].parts][-1] == "load"
    alone = extract("expert: 1", shapes, DEEP)
    assert alone.graph.outputs[GATE].spec.shape == (S, H)
    assert "left out" in reasons(alone)["0.mlp.shared_experts.up_proj.weight"]
    assert any("left out: mode pick" in note for note in alone.report.notes)


def test_a_gated_shared_expert_counts_a_half_and_that_is_said() -> None:
    shapes = body()
    for layer in range(LAYERS):
        start = f"model.layers.{layer}."
        shapes |= experts(layer) | plain(layer, "mlp.shared_expert", S)
        shapes |= {f"{start}mlp.shared_expert_gate.weight": (1, H)}
        shapes |= {f"{start}self_attn.{name}_proj.bias": (H,) for name in "qkv"}
    made = extract("experts: [0, 3]\nmode: concatenate", shapes, QWEN2)
    scales = [p.expression.inputs[-1].attributes["values"] for p in made.graph.outputs[DOWN].parts]
    assert scales == [(0.5,)] * 3
    assert any("counts 0.5" in note for note in made.report.notes)
    assert "no gate" in reasons(made)["1.mlp.shared_expert_gate.weight"]


def test_layers_without_experts_keep_their_mlp_and_smaller_ones_are_filled_up() -> None:
    shapes = body() | plain(0, size=2 * S) | experts(1)
    made = extract("experts: [0, 1]\nmode: mean", shapes, QWEN3)
    assert read(made, "model.layers.0.mlp.up_proj.weight") == [("model.layers.0.mlp.up_proj.weight", None)]
    down = made.graph.outputs[DOWN]
    assert down.spec.shape == (H, 2 * S)
    assert [p.expression.op.name for p in down.parts] == ["weighted_sum", "load"]
    assert down.parts[1].sources[0].filled == 0.0
    assert made.config["intermediate_size"] == 2 * S
    assert any("1 layer without experts" in note for note in made.report.notes)


def test_every_tensor_is_used_or_told_why_not() -> None:
    shapes = body() | experts(0) | experts(1) | experts(2) | {"model.layers.0.mlp.gate.bias": (E,)}
    tied = {**QWEN3, "tie_word_embeddings": True}
    made = extract("expert: 1", shapes, tied)
    told = reasons(made)
    assert told["0.mlp.experts.3.down_proj.weight"] == "its expert is not extracted"
    assert told["0.mlp.gate.weight"] == "a dense model has no router"
    assert told["2.mlp.gate.weight"] == "the config says that there are 2 layers"
    assert "tied" in told["lm_head.weight"]
    used = {source.tensor for source in made.graph.sources()}
    assert used.isdisjoint(d.tensor for d in made.report.dropped)
    assert len(used) + len(told) == len(shapes)


def test_the_dtype_is_the_plans_or_else_each_tensors_own() -> None:
    shapes = mixtral() | {"model.norm.weight": ((H,), DType.BF16)}
    own = extract("experts: [0, 1]\nmode: mean", shapes, MIXTRAL).graph.outputs
    assert (own["model.norm.weight"].spec.dtype, own[DOWN].spec.dtype) == (DType.BF16, DType.F32)
    stated = extract("expert: 0\nout_dtype: float16", shapes, MIXTRAL)
    assert {output.spec.dtype for output in stated.graph.outputs.values()} == {DType.F16}
    assert stated.config["torch_dtype"] == "float16"


def test_facts_say_what_comes_from_where() -> None:
    made = extract("experts: [1, 2]\nmode: concatenate", mixtral(), MIXTRAL)
    assert made.facts is not None
    each = 3 * H * S * LAYERS
    beside = 2 * V * H + H + LAYERS * 4 * H * H
    assert made.facts["origins"] == {"everything else": beside, "expert 1": each, "expert 2": each}
    assert made.facts["parameters"] == beside + 2 * each
    assert made.facts["parameters_before"] == beside + 4 * each + LAYERS * E * H
    assert (made.facts["architecture"], made.facts["experts_before"]) == ("llama", E)


@pytest.mark.parametrize(
    ("text", "config", "line", "said"),
    [
        ("expert: 4", {}, 3, "no expert 4 — experts are numbered 0 to 3"),
        ("mode: mean\nexperts: [0, 7, 9]", {}, 4, "no experts 7, 9"),
        ("expert: 0\narchitecture: gemma", {}, 4, "architecture: llama or mistral"),
        ("expert: 0", {"model_type": "mixtrel"}, 2, "did you mean 'mixtral'?"),
        ("expert: 0", {"model_type": "gpt_oss"}, 2, "sinks"),
        ("expert: 0", {"quantization_config": {"quant_method": "fp8"}}, 2, "quantised"),
    ],
)
def test_what_cannot_be_extracted_is_refused_at_its_line(
    text: str, config: dict[str, Any], line: int, said: str
) -> None:
    (found,) = problems(text, mixtral(), {**MIXTRAL, **config})
    assert found.where == f"p.yml:{line}"
    assert said in str(found)


def test_what_is_wrong_with_every_layer_is_told_once() -> None:
    found = problems("expert: 0", mixtral(), QWEN3)
    assert [p.message for p in found] == [
        "no layer has experts under the names of qwen3_moe",
        "layer 0 has neither experts nor an MLP (and 1 more layer)",
    ]


def test_all_that_is_wrong_is_told_at_once() -> None:
    found = problems(
        "expert: 4\narchitecture: gemma", mixtral(), {**MIXTRAL, "quantization_config": {"a": 1}}
    )
    assert [p.where for p in found] == ["p.yml:2", "p.yml:3", "p.yml:4"]


@pytest.mark.parametrize("model_type", ["mixtral", "llama"])
def test_a_dense_model_is_no_mixture(model_type: str) -> None:
    config = {**MIXTRAL, "model_type": model_type}
    (found,) = problems("expert: 0", body() | plain(0) | plain(1), config)
    assert "no experts" in found.message


def test_packed_experts_are_refused() -> None:
    shapes = {
        name: (shape, DType.F8_E4M3) if ".experts." in name else shape for name, shape in mixtral().items()
    }
    (found,) = problems("experts: [0, 1]\nmode: mean", shapes, MIXTRAL)
    assert "not quantised" in found.message


def test_sources_are_those_of_the_model() -> None:
    made = extract("expert: 0", mixtral(), MIXTRAL)
    assert SourceTensor("moe", "lm_head.weight") in made.graph.sources()
