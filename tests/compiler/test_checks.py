"""What is wrong between plan, method and models before any tensor is looked at."""

from __future__ import annotations

import pytest

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.compiler.inputs import Input
from mergegraph.compiler.merge import compile_merge
from mergegraph.methods import all_methods, get_method
from mergegraph.plan.merge import parse_plan
from tests.compiler.headers import (
    CONFIG,
    LLAMA,
    based,
    compiled,
    index,
    linear,
    llama,
    models_of,
    problems,
    stacked,
)

WITH_BASE = [name for name, method in all_methods().items() if method.base == "required"]
NORM = "model.norm.weight"


def said(text: str, *models: CheckpointIndex) -> list[str]:
    return [f"{p.where}: {p.message}" for p in problems(text, *models)]


# ---- base model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WITH_BASE)
def test_a_method_that_needs_a_base_says_so(method: str) -> None:
    plan = f"merge_method: {method}\nmodels: [{{model: a}}, {{model: b}}]\nparameters: {{t: 1, weight: 1}}\n"
    found = problems(plan, llama("a"), llama("b"))
    assert any("needs a base model" in p.message and p.where == "p.yml:1" for p in found)
    assert all(p.hint for p in found)


@pytest.mark.parametrize("method", [m for m in WITH_BASE if all_methods()[m].inputs[0] == 1])
@pytest.mark.parametrize("listed", [("base", "m"), ("m", "base"), ("m",)], ids=" ".join)
def test_the_base_may_stand_anywhere_in_the_plan(method: str, listed: tuple[str, ...]) -> None:
    """First, last or not in the list, and above or below it: the result is the same."""
    models = llama("base"), llama("m")
    above = compiled(based(method, "base", *listed), *models)
    plan = based(method, "base", *listed).replace("base_model: base\n", "") + "base_model: base\n"
    below = compiled(plan, *models)
    reference = compiled(based(method, "base", "m"), *models)
    assert sorted(models_of(above, NORM)) == ["base", "m"]
    for result in (above, below):
        assert result.config == reference.config
        assert {a.shared for a in result.report.parameters} == {a.shared for a in reference.report.parameters}
        assert [a.each for a in result.report.parameters] == [a.each for a in reference.report.parameters]


@pytest.mark.parametrize("method", ["linear"])
def test_a_base_is_one_more_input_of_a_method_without_base(method: str) -> None:
    (problem,) = problems(linear("a", head="base_model: b\n"), llama("a"), llama("b"))
    assert "weight" in problem.message
    assert problem.model == "b"
    result = compiled(linear("a", "b", head="base_model: b\n"), llama("a"), llama("b"))
    assert models_of(result, NORM) == ["a", "b"]


def test_passthrough_with_another_base_has_an_input_too_many() -> None:
    plan = "merge_method: passthrough\nbase_model: b\nmodels: [{model: a}]\n"
    (problem,) = problems(plan, llama("a"), llama("b"))
    assert "exactly 1" in problem.message
    assert "base_model" in str(problem.hint)


def test_slices_may_have_a_base_of_their_own() -> None:
    plan = """\
merge_method: slerp
parameters: {t: 0.5}
slices:
  - base_model: a
    sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
  - base_model: b
    sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}]
"""
    assert said(plan, llama("a"), llama("b")) == []


def test_a_base_that_a_slice_does_not_list_is_named() -> None:
    plan = """\
merge_method: slerp
base_model: c
parameters: {t: 0.5}
slices:
  - sources: [{model: a, layer_range: [0, 4]}, {model: b, layer_range: [0, 4]}]
"""
    found = problems(plan, llama("a"), llama("b"), llama("c"))
    assert "the base model c is not a source of this slice" in found[0].message
    assert found[0].where == "p.yml:5"


@pytest.mark.parametrize(
    ("method", "count", "wanted"),
    [
        ("slerp", 0, "exactly 1"),
        ("slerp", 3, "exactly 1"),
        ("ties", 0, "at least 1"),
        ("passthrough", 2, "exactly 1"),
    ],
)
def test_a_wrong_number_of_models_is_a_problem(method: str, count: int, wanted: str) -> None:
    names = [f"m{i}" for i in range(count)] or ["base"]
    head = "" if method == "passthrough" else "base_model: base\n"
    listed = "".join(f"  - model: {name}\n" for name in names)
    plan = f"merge_method: {method}\n{head}models:\n{listed}parameters: {{t: 0.5, weight: 1, density: 1}}\n"
    found = said(plan, *(llama(n) for n in (*names, "base")))
    assert any(wanted in text for text in found)


# ---- layers ----------------------------------------------------------------------------------------


def test_a_range_beyond_the_layers_names_model_and_numbers() -> None:
    (problem,) = problems(stacked(("a", 0, 2), ("a", 3, 5)), llama("a"))
    assert problem.message == "layer_range [3, 5] goes beyond the 4 layers of a"
    assert problem.where == "p.yml:4"
    assert "0 to 3" in str(problem.hint)


@pytest.mark.parametrize("bounds", [(2, 1), (-1, 2), (1, 1)])
def test_reversed_negative_and_empty_ranges_never_compile(bounds: tuple[int, int]) -> None:
    assert problems(stacked(("a", 0, 2), ("a", *bounds)), llama("a"))


def test_a_model_without_layers_cannot_be_sliced() -> None:
    (problem,) = problems(stacked(("a", 0, 1)), index("a", {"w": (2, 2)}, {}))
    assert "has no layers" in problem.message


def test_models_of_different_depth_are_named_with_their_depths() -> None:
    deep = index("deep", type(LLAMA)(6, 8, 12, 2, 1, 10).shapes(), {**CONFIG, "num_hidden_layers": 6})
    (problem,) = problems(linear("a", "deep"), llama("a"), deep)
    assert "4 in a" in problem.message
    assert "6 in deep" in problem.message
    assert "slices" in str(problem.hint)


# ---- the same model twice --------------------------------------------------------------------------


def test_two_names_of_one_checkpoint_are_noted() -> None:
    """``./a`` and ``a``, or a link: most likely not what was meant, and still well defined."""
    plan = parse_plan(linear("a", "b", "c"), "p.yml")
    inputs = {
        ref: Input(ref, "same" if str(ref) != "b" else "other", llama(str(ref)))
        for ref in plan.referenced_models()
    }
    result = compile_merge(plan, get_method("linear"), inputs)
    (note,) = result.report.notes
    assert "c is the same checkpoint as a" in note
    assert result.report.dropped == ()


def test_one_model_may_be_in_many_slices() -> None:
    assert said(stacked(("a", 0, 3), ("a", 1, 4)), llama("a")) == []


@pytest.mark.parametrize("method", ["passthrough", "linear"])
def test_slices_of_encoder_and_decoder_are_refused_once(method: str) -> None:
    tensors = {f"{side}.block.{i}.w": (2, 2) for side in ("encoder", "decoder") for i in range(4)}
    plan = stacked(("a", 0, 2), ("a", 2, 4)).replace("passthrough", method)
    plan += "parameters: {weight: 1}\n"
    (problem,) = problems(plan, index("a", tensors, {"num_layers": 4}))
    assert "an encoder and of a decoder" in problem.message
    assert problem.where == "p.yml:3"


# ---- what this version does not do -----------------------------------------------------------------


def test_adapters_are_refused_where_they_are_named() -> None:
    (problem,) = problems(linear("a+ad", "b"), llama("a+ad"), llama("b"))
    assert "LoRA" in problem.message
    assert problem.where == "p.yml:3"


def test_an_adapter_on_a_base_that_is_not_listed_is_refused_too() -> None:
    """It must never be left out in silence."""
    (problem,) = problems(based("slerp", "a+ad", "b"), llama("a+ad"), llama("b"))
    assert "LoRA" in problem.message
    assert problem.where == "p.yml:2"


@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_quantised_models_are_refused_by_arithmetic(method: str) -> None:
    packed = llama("b", quantization_config={"quant_method": "gptq"})
    plan = linear("a", "b") if method == "linear" else based(method, "a", "b")
    (problem,) = problems(plan, llama("a"), packed)
    assert "b is quantised" in problem.message
    assert problem.hint


def test_a_nested_quantisation_is_found_too() -> None:
    packed = llama("b", text_config={"quantization_config": {"quant_method": "fp8"}})
    assert problems(linear("a", "b"), llama("a"), packed)


def test_a_quantised_base_that_is_not_listed_is_refused() -> None:
    packed = llama("a", quantization_config={"quant_method": "gptq"})
    (problem,) = problems(based("slerp", "a", "b"), packed, llama("b"))
    assert "quantised" in problem.message


def test_quantised_layers_can_be_stacked() -> None:
    packed = llama("a", quantization_config={"quant_method": "gptq"})
    assert said(stacked(("a", 0, 2), ("a", 2, 4)), packed) == []


@pytest.mark.parametrize("lines", ["parameters: {scale: 0.5}\n", "dtype: float32\n", "out_dtype: float16\n"])
def test_quantised_layers_are_not_scaled_or_cast(lines: str) -> None:
    """Passing through is copying bytes: scales of a quantised tensor are floats like any other."""
    packed = llama("a", quantization_config={"quant_method": "gptq"})
    assert problems(stacked(("a", 0, 4)) + lines, packed)


@pytest.mark.parametrize(
    "line",
    [
        "tokenizer_source: union",
        "tokenizer_source: a",
        "tokenizer: {source: union}",
        "chat_template: chatml",
    ],
)
def test_tokenizer_keys_are_refused_with_their_line(line: str) -> None:
    (problem,) = problems(linear("a", "b", tail=f"{line}\n"), llama("a"), llama("b"))
    assert problem.where == "p.yml:7"
    assert line.split(":")[0] in problem.message
    assert problem.hint


# ---- all at once -----------------------------------------------------------------------------------


def test_problems_of_parameters_roles_and_layers_are_reported_together() -> None:
    plan = """\
merge_method: slerp
parameters: {tt: 1}
tokenizer_source: union
slices:
  - sources: [{model: a, layer_range: [0, 9]}, {model: b, layer_range: [0, 9]}]
"""
    text = "\n".join(said(plan, llama("a"), llama("b")))
    for part in ("'tt'", "needs a base", "tokenizer_source", "beyond the 4 layers of a", "layers of b"):
        assert part in text


def test_a_wrong_parameter_does_not_hide_a_wrong_shape() -> None:
    wide = index("b", type(LLAMA)(4, 16, 12, 2, 1, 10).shapes())
    plan = linear("a", "b", tail="parameters: {nromalize: true}\n")
    text = "\n".join(said(plan, llama("a"), wide))
    assert "nromalize" in text
    assert "different shapes" in text


def test_a_range_beyond_the_layers_does_not_hide_a_wrong_shape() -> None:
    wide = index("b", type(LLAMA)(4, 16, 12, 2, 1, 10).shapes())
    plan = """\
merge_method: linear
parameters: {weight: 1}
slices:
  - sources: [{model: a, layer_range: [0, 9]}, {model: b, layer_range: [0, 9]}]
"""
    text = "\n".join(said(plan, llama("a"), wide))
    assert "goes beyond" in text
    assert "different shapes" in text


def test_models_of_another_size_are_told_in_few_lines() -> None:
    """Every tensor differs: the reason is one, and a deep model must not bury the other problems."""
    deep = type(LLAMA)(40, 8, 12, 2, 1, 10), type(LLAMA)(40, 16, 12, 2, 1, 10)
    a, b = (index(n, s.shapes(), {}) for n, s in zip("ab", deep, strict=True))
    assert 1 <= len(problems(linear("a", "b"), a, b)) <= 20


def test_another_hidden_size_is_not_called_another_vocabulary() -> None:
    wide = index("b", type(LLAMA)(4, 16, 12, 2, 1, 10).shapes())
    found = problems(linear("a", "b"), llama("a"), wide)
    assert found
    assert not any("vocabular" in str(p.hint) for p in found)


def test_another_vocabulary_is_called_one() -> None:
    more = index("b", type(LLAMA)(4, 8, 12, 2, 1, 14).shapes())
    found = problems(linear("a", "b"), llama("a"), more)
    assert len(found) <= 2
    assert all("vocabular" in str(p.hint) for p in found)
    assert "[10, 8] in a; [14, 8] in b" in found[0].message
