"""The output's config: whatever merging made untrue is put right, and transformers agrees."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import mergegraph
from mergegraph.tensorspec import DType
from tests.architectures.families import CAUSAL, Made, config_of, family, shapes_of
from tests.compiler.headers import CONFIG, LLAMA, compiled, index, linear, llama, stacked

FLAT = [name for name in CAUSAL if name != "lfm2"]
# a: 0 1 2 3 → two halves; an overlap; layers moved by an odd number.
HALVES = (("a", 0, 2), ("a", 2, 4))
OVERLAP = (("a", 0, 3), ("a", 1, 4))
SHIFTED = (("a", 1, 4),)


def sliced(made: Made, config: dict[str, Any], *parts: tuple[str, int, int]) -> Any:
    return compiled(stacked(*parts), index("a", made.shapes, config))


def loaded(name: str, config: dict[str, Any]) -> Any:
    """The config as transformers reads it."""
    return type(config_of(name)).from_dict(copy.deepcopy(config))


def inner(config: Any) -> Any:
    return getattr(config, "text_config", config)


# ---- slices of real families -----------------------------------------------------------------------


@pytest.mark.parametrize("parts", [HALVES, OVERLAP, SHIFTED, (("a", 2, 3),)], ids=str)
@pytest.mark.parametrize("name", FLAT)
def test_transformers_builds_exactly_the_output_from_its_config(
    name: str, parts: tuple[tuple[str, int, int], ...]
) -> None:
    made = family(name)
    result = sliced(made, made.config, *parts)
    expected = shapes_of(name, loaded(name, result.config))
    assert {n: o.spec.shape for n, o in result.graph.outputs.items()} == expected


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl"])
def test_slicing_the_language_model_of_a_wrapped_one_keeps_the_rest(name: str) -> None:
    made = family(name)
    result = sliced(made, made.config, *OVERLAP)
    expected = shapes_of(name, loaded(name, result.config))
    assert {n: o.spec.shape for n, o in result.graph.outputs.items()} == expected
    assert result.config["vision_config"] == made.config["vision_config"]


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_encoders_are_sliced_as_decoders_are(name: str) -> None:
    made = family(name)
    result = sliced(made, made.config, *OVERLAP)
    expected = shapes_of(name, loaded(name, result.config))
    assert {n: o.spec.shape for n, o in result.graph.outputs.items()} == expected


@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
@pytest.mark.parametrize("stated", [True, False])
def test_slicing_a_model_of_encoder_and_decoder_loads_or_is_refused(name: str, stated: bool) -> None:
    """Both are four layers long; hub configs state a ``num_hidden_layers`` that means the encoder."""
    made = family(name)
    config = {**made.config, **({"num_hidden_layers": 4} if stated and name != "t5" else {})}
    try:
        result = sliced(made, config, ("a", 0, 3))
    except mergegraph.PlanError:
        return
    expected = shapes_of(name, loaded(name, result.config))
    assert {n: o.spec.shape for n, o in result.graph.outputs.items()} == expected


@pytest.mark.parametrize("parts", [SHIFTED, OVERLAP, (("a", 1, 2), ("a", 0, 1)), (("a", 1, 2),) * 3], ids=str)
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "derived"])
@pytest.mark.parametrize("name", ["gemma2", "gemma3_text", "cohere2", "smollm3", "llama4_text"])
def test_a_layer_keeps_its_kind_of_attention_wherever_it_goes(
    name: str, listed: bool, parts: tuple[tuple[str, int, int], ...]
) -> None:
    """Older configs do not list the kinds: they follow from the position, which slicing changes."""
    made = family(name)
    config = dict(made.config)
    if not listed:
        for key in ("layer_types", "no_rope_layers", "moe_layers"):
            config.pop(key, None)
    before, after = loaded(name, config), loaded(name, sliced(made, config, *parts).config)
    order = [i for _, start, end in parts for i in range(start, end)]
    assert after.layer_types == [before.layer_types[i] for i in order]
    if hasattr(before, "no_rope_layers"):
        assert after.no_rope_layers == [before.no_rope_layers[i] for i in order]


def test_the_kinds_of_a_wrapped_language_model_are_written_where_they_are_read() -> None:
    """The hub's config of Gemma 3 4B lists none, and nests the pattern's key in ``text_config``."""
    made = family("gemma3")
    config = copy.deepcopy(made.config)
    text = config["text_config"]
    del text["layer_types"]
    text["sliding_window_pattern"] = text.pop("_sliding_window_pattern", 2)
    text["sliding_window_pattern"] = 2
    before, after = loaded("gemma3", config), loaded("gemma3", sliced(made, config, ("a", 1, 4)).config)
    assert inner(after).layer_types == inner(before).layer_types[1:4]


def test_a_whole_merge_leaves_the_config_as_it_is() -> None:
    for name in ("gemma2", "gemma3_text", "qwen2", "llama4_text"):
        made = family(name)
        config = {**made.config, "dtype": "float32"}
        result = compiled(linear("a", "b"), *(index(n, made.shapes, config) for n in "ab"))
        assert result.config == config


# ---- per-layer values ------------------------------------------------------------------------------


def config_after(config: dict[str, Any], *parts: tuple[str, int, int]) -> dict[str, Any]:
    return compiled(stacked(*parts), index("a", LLAMA.shapes(), {**CONFIG, **config})).config


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("layer_types", ["f", "s", "f", "s"], ["s", "f", "s"]),
        ("num_key_value_heads_per_layer", [1, 2, 3, 4], [2, 3, 4]),
        ("mlp_only_layers", [0, 2], [1]),
        ("mlp_only_layers", [], []),
        ("full_attn_idxs", [1, 3], [0, 2]),
        ("cross_attention_layers", [3], [2]),
        ("attn_layer_indices", [0, 1, 2, 3], [0, 1, 2]),
        ("moe_layers", [0, 1, 2, 3], [0, 1, 2]),
        ("moe_layers", [1, 3], [0, 2]),
        ("hybrid_layer_ids", [1, 3], [0, 2]),
        ("first_k_dense_replace", 2, 1),
        ("max_window_layers", 1, 0),
        ("hybrid_override_pattern", "M-*M", "-*M"),
        ("attention_types", [[["g", "l"], 2]], [[["l"], 1], [["g"], 1], [["l"], 1]]),
        ("eos_token_id", [1, 2, 3, 4], [1, 2, 3, 4]),
        ("architectures", ["A", "B", "C", "D"], ["A", "B", "C", "D"]),
        ("mrope_section", [8, 16], [8, 16]),
        ("rope_scaling", {"short_factor": [1, 2, 3, 4]}, {"short_factor": [1, 2, 3, 4]}),
    ],
)
def test_what_is_said_layer_by_layer_follows_the_layers(key: str, value: Any, expected: Any) -> None:
    """Layers 1, 2 and 3 of four."""
    assert config_after({key: value}, ("a", 1, 4))[key] == expected


def test_a_limit_beyond_all_layers_stays_beyond_them() -> None:
    """Qwen2 writes ``max_window_layers: 28`` whatever the model: no layer is past it."""
    after = config_after({"max_window_layers": 28}, ("a", 0, 4), ("a", 0, 4))
    assert after["max_window_layers"] >= 8


def test_per_layer_values_come_from_the_model_whose_layer_it_is() -> None:
    a = llama("a", layer_types=["f", "f", "f", "f"])
    b = llama("b", layer_types=["s", "s", "s", "s"])
    assert compiled(stacked(("a", 0, 2), ("b", 2, 4)), a, b).config["layer_types"] == ["f", "f", "s", "s"]


def test_a_model_of_another_depth_lends_its_own_values() -> None:
    deep = index(
        "deep",
        type(LLAMA)(6, 8, 12, 2, 1, 10).shapes(),
        {**CONFIG, "num_hidden_layers": 6, "layer_types": list("uvwxyz")},
    )
    a = llama("a", layer_types=list("abcd"))
    assert compiled(stacked(("a", 0, 2), ("deep", 4, 6)), a, deep).config["layer_types"] == list("abyz")


def test_an_empty_list_of_special_layers_is_a_value() -> None:
    a, b = llama("a", mlp_only_layers=[0, 1, 2, 3]), llama("b", mlp_only_layers=[])
    assert compiled(stacked(("a", 0, 2), ("b", 2, 4)), a, b).config["mlp_only_layers"] == [0, 1]


@pytest.mark.parametrize(
    "value", [[[["g"], 10**15]], [[3, 4]], [["g"]], [[["g", "l"], -2]], [["gl", "2"]], [4]], ids=str
)
def test_cycles_that_make_no_sense_are_left_alone(value: Any) -> None:
    assert config_after({"attention_types": value}, ("a", 1, 4))["attention_types"] == value


def test_llama_4_lists_that_are_empty_or_missing_are_derived() -> None:
    """The hub's configs write ``no_rope_layers: []`` for "as usual"."""
    made = family("llama4_text")
    config = {**made.config, "no_rope_layers": [], "layer_types": None, "moe_layers": None}
    config["interleave_moe_layer_step"] = 2
    after = sliced(made, config, ("a", 1, 4)).config
    assert after["no_rope_layers"] == [1, 1, 0]
    assert after["moe_layers"] == [0, 2]


def test_every_key_that_counts_the_layers_is_corrected() -> None:
    config = {"num_hidden_layers": 4, "n_layer": 4, "text_config": {"num_hidden_layers": 4}}
    after = config_after(config, ("a", 0, 3))
    assert (after["num_hidden_layers"], after["n_layer"], after["text_config"]["num_hidden_layers"]) == (
        3,
        3,
        3,
    )


def test_the_inputs_configs_are_not_changed() -> None:
    model = llama("a", layer_types=list("abcd"), text_config={"num_hidden_layers": 4, "dtype": "float16"})
    before = json.dumps(model.config)
    compiled(stacked(("a", 0, 2)) + "dtype: bfloat16\n", model)
    assert json.dumps(model.config) == before


def test_a_count_that_disagrees_with_the_tensors_is_not_kept_silently() -> None:
    """DeepSeek-V3 counts 61 layers and stores 62: the last predicts further tokens."""
    config = {**CONFIG, "num_hidden_layers": 3, "num_nextn_predict_layers": 1}
    try:
        result = compiled(stacked(("a", 0, 2)), index("a", LLAMA.shapes(), config))
    except mergegraph.PlanError:
        return
    assert result.config["num_hidden_layers"] == 2 or result.report.notes


# ---- dtype -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("", "float32"),
        ("dtype: bfloat16\n", "bfloat16"),
        ("out_dtype: float16\n", "float16"),
        ("dtype: float32\nout_dtype: bfloat16\n", "bfloat16"),
    ],
)
def test_the_dtype_is_that_of_the_output(key: str, lines: str, expected: str) -> None:
    changes = {"torch_dtype": None, key: "float64"}
    after = compiled(linear("a", tail=lines), llama("a", **changes)).config
    assert after[key] == expected
    assert ("dtype" in after) + ("torch_dtype" in after) == 1


def test_nested_configs_agree_on_the_dtype() -> None:
    nested = {name: {"dtype": "float32"} for name in ("text_config", "vision_config", "audio_config")}
    after = compiled(linear("a", tail="dtype: bfloat16\n"), llama("a", **nested)).config
    assert {name: after[name]["dtype"] for name in nested} == dict.fromkeys(nested, "bfloat16")


def test_a_tower_in_another_dtype_keeps_saying_so() -> None:
    """Without a dtype in the plan every tensor keeps its own."""
    tensors = {"model.embed_tokens.weight": ((9, 2), DType.BF16), "vision.embed.weight": (2, 2)}
    parts = {"text_config": {"dtype": "float16"}, "vision_config": {"dtype": "float32"}}
    model = index("a", tensors, {"dtype": "float16", **parts, "audio_config": {"dtype": None}})
    after = compiled(linear("a"), model).config
    assert after["dtype"] == after["text_config"]["dtype"] == "bfloat16"
    assert after["vision_config"]["dtype"] == "float32"
    assert after["audio_config"]["dtype"] is None


# ---- really loading --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3_text", "cohere2", "gpt2", "opt"])
def test_two_halves_of_a_saved_model_load_as_the_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config_of(name)).eval()
    model.save_pretrained(tmp_path / "a")
    plan = tmp_path / "p.yml"
    plan.write_text(stacked(("a", 0, 2), ("a", 2, 4)))
    mergegraph.run(plan, tmp_path / "out", threads=1)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").eval()
    assert {n: x.shape for n, x in again.state_dict().items()} == {
        n: x.shape for n, x in model.state_dict().items()
    }
    assert all(torch.equal(x, again.state_dict()[n]) for n, x in model.state_dict().items())
    prompt = torch.tensor([[1, 5, 9, 13, 17, 21, 25]])
    with torch.no_grad():
        assert torch.equal(model(prompt).logits, again(prompt).logits)
