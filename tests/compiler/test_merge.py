"""From plan and headers to expressions: what is merged, copied, checked, dropped or refused."""

from __future__ import annotations

import pytest

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.methods import all_methods
from mergegraph.tensorspec import DType
from tests.compiler.headers import (
    LLAMA,
    TIED,
    based,
    changed,
    compiled,
    index,
    linear,
    llama,
    models_of,
    problems,
    sources,
    stacked,
)

ADDING = ["task_arithmetic", "ties"]
WITH_BASE = ["slerp", *ADDING]
BODY = {"w": (4, 4)}


def pair(name: str, *extra: str, dtype: DType = DType.F32) -> CheckpointIndex:
    return index(name, {**BODY, **dict.fromkeys(extra, ((3,), dtype))}, {})


# ---- a tensor that not all models have -------------------------------------------------------------


@pytest.mark.parametrize("method", WITH_BASE)
@pytest.mark.parametrize("unmatched", ["error", "copy", "drop"])
def test_what_only_the_base_has_is_the_bases(method: str, unmatched: str) -> None:
    """No model changes it, so every method with a base gives the base's own."""
    plan = based(method, "base", "m", tail=f"unmatched: {unmatched}\n")
    result = compiled(plan, pair("base", "extra"), pair("m"))
    assert result.graph.outputs["extra"].kind == "copied"
    assert models_of(result, "extra") == ["base"]
    assert [p.tensor for p in result.report.partial] == ["extra"]


@pytest.mark.parametrize("method", ADDING)
def test_what_the_base_lacks_has_no_task_vector(method: str) -> None:
    plan = based(method, "base", "m", "n")
    (problem,) = problems(plan, pair("base"), pair("m", "extra"), pair("n"))
    assert "extra is in m but not in n, base" in problem.message or "not in base" in problem.message
    assert "unmatched: copy" in str(problem.hint)


@pytest.mark.parametrize("method", ADDING)
def test_what_the_base_lacks_is_copied_on_request(method: str) -> None:
    plan = based(method, "base", "m", "n", tail="unmatched: copy\n")
    models = pair("base"), pair("m", "extra"), pair("n", "extra")
    result = compiled(plan, *models)
    assert models_of(result, "extra") == ["m"]
    assert result.graph.outputs["extra"].kind == "copied"
    assert [(d.model, d.tensor) for d in result.report.dropped] == [("n", "extra")]


@pytest.mark.parametrize("method", ADDING)
def test_what_the_base_lacks_is_dropped_on_request(method: str) -> None:
    plan = based(method, "base", "m", "n", tail="unmatched: drop\n")
    models = pair("base"), pair("m", "extra"), pair("n", "extra")
    result = compiled(plan, *models)
    assert "extra" not in result.graph.outputs
    assert [(d.model, d.tensor) for d in result.report.dropped] == [("m", "extra"), ("n", "extra")]
    assert all("base" in d.reason for d in result.report.dropped)


@pytest.mark.parametrize("method", ADDING)
def test_a_copied_tensor_still_follows_out_dtype(method: str) -> None:
    plan = based(method, "base", "m", tail="unmatched: copy\nout_dtype: bfloat16\n")
    result = compiled(plan, pair("base"), pair("m", "extra"))
    assert result.graph.outputs["extra"].spec.dtype is DType.BF16


def test_slerp_passes_a_lone_tensor_through_whoever_has_it() -> None:
    for lone in ("base", "m"):
        models = {n: pair(n, "extra") if n == lone else pair(n) for n in ("base", "m")}
        result = compiled(based("slerp", "base", "m"), *models.values())
        assert models_of(result, "extra") == [lone]


def test_an_average_is_taken_over_the_models_that_have_the_tensor() -> None:
    result = compiled(linear("a", "b", "c"), pair("a", "x"), pair("b"), pair("c", "x"))
    assert models_of(result, "x") == ["a", "c"]
    assert [(p.tensor, p.missing_from) for p in result.report.partial] == [("x", ("b",))]


@pytest.mark.parametrize("method", ADDING)
def test_a_model_that_lacks_a_tensor_of_the_base_is_left_out_of_it(method: str) -> None:
    plan = based(method, "base", "m", "n")
    result = compiled(plan, pair("base", "x"), pair("m", "x"), pair("n"))
    assert sorted(models_of(result, "x")) == ["base", "m"]
    assert [(p.tensor, p.missing_from) for p in result.report.partial] == [("x", ("n",))]


def test_a_reward_models_score_can_be_copied_over_a_tied_base() -> None:
    """The base is a tied language model: its embedding is no stand-in for a classifier."""
    base = llama("base", TIED)
    rewards = changed(llama("m", TIED), score__weight=(1, 8))
    plan = based("task_arithmetic", "base", "m", tail="unmatched: copy\n")
    result = compiled(plan, base, rewards)
    assert sources(result, "score.weight") == [("m", "score.weight")]
    assert result.config["tie_word_embeddings"] is True


# ---- integers and buffers --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [DType.I64, DType.I32, DType.U8, DType.BOOL, DType.F8_E4M3])
def test_numbers_without_arithmetic_are_compared_and_copied(dtype: DType) -> None:
    result = compiled(
        linear("a", "b", tail="dtype: bfloat16\n"), *(pair(n, "ids", dtype=dtype) for n in "ab")
    )
    assert result.graph.outputs["ids"].kind == "checked"
    assert result.graph.outputs["ids"].spec.dtype is dtype


def test_integers_of_one_model_are_copied_and_reported() -> None:
    models = pair("a", "ids", dtype=DType.I64), pair("b")
    result = compiled(linear("a", "b"), *models)
    assert result.graph.outputs["ids"].kind == "copied"
    assert [p.tensor for p in result.report.partial] == ["ids"]


def test_integers_against_floats_are_a_problem() -> None:
    models = pair("a", "ids", dtype=DType.I64), pair("b", "ids")
    (problem,) = problems(linear("a", "b"), *models)
    assert "int64 in a, float32 in b" in problem.message
    assert problem.hint


def test_a_derived_buffer_is_the_donors_whatever_the_others_say() -> None:
    """Other lengths and dtypes of a causal mask or a frequency table do not matter."""
    mask, other = "h.0.attn.bias", "h.0.attn.bias"
    a = index("a", {"h.0.w": (2, 2), mask: ((1, 1, 8, 8), DType.BOOL)}, {})
    b = index("b", {"h.0.w": (2, 2), other: ((1, 1, 16, 16), DType.U8)}, {})
    result = compiled(linear("a", "b", tail="dtype: bfloat16\n"), a, b)
    assert sources(result, mask) == [("a", mask)]
    assert result.graph.outputs[mask].spec.dtype is DType.BOOL
    assert [(d.model, d.reason) for d in result.report.dropped] == [("b", "derived buffer")]


def test_a_derived_buffer_of_a_stacked_layer_is_not_lost() -> None:
    """Some loaders want every layer to have its table, also layers of a model that is no donor."""
    name = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    models = [index(n, {**LLAMA.shapes(), **{name.format(i): (4,) for i in range(4)}}) for n in "ab"]
    result = compiled(stacked(("a", 0, 2), ("b", 2, 4)), *models)
    assert [name.format(i) in result.graph.outputs for i in range(4)] in ([True] * 4, [False] * 4)


# ---- dtypes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "lines", "expected"),
    [
        (DType.BF16, DType.BF16, "", DType.BF16),
        (DType.BF16, DType.F32, "", DType.F32),
        (DType.BF16, DType.F16, "", DType.F32),
        (DType.F32, DType.F64, "", DType.F64),
        (DType.F32, DType.F32, "dtype: float16\n", DType.F16),
        (DType.F32, DType.F32, "dtype: float32\nout_dtype: bfloat16\n", DType.BF16),
        (DType.BF16, DType.BF16, "dtype: float64\n", DType.F64),
    ],
)
def test_the_output_dtype_is_the_plans_else_the_inputs_promoted(
    first: DType, second: DType, lines: str, expected: DType
) -> None:
    models = index("a", {"w": ((4,), first)}, {}), index("b", {"w": ((4,), second)}, {})
    result = compiled(linear("a", "b", tail=lines), *models)
    assert result.graph.outputs["w"].spec.dtype is expected


def test_what_passes_through_unchanged_is_copied_byte_for_byte() -> None:
    model = index("a", {f"l.{i}.w": ((4,), DType.BF16) for i in range(2)}, {})
    assert compiled(stacked(("a", 0, 2)), model).graph.outputs["l.0.w"].kind == "copied"
    same = compiled(stacked(("a", 0, 2)) + "dtype: bfloat16\n", model)
    assert same.graph.outputs["l.0.w"].kind == "copied"
    cast = compiled(stacked(("a", 0, 2)) + "dtype: float16\n", model)
    assert cast.graph.outputs["l.0.w"].kind == "merged"


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 0), (1, 1, 1, 1, 2)])
@pytest.mark.parametrize("method", list(all_methods()))
def test_every_method_takes_odd_shapes(method: str, shape: tuple[int, ...]) -> None:
    declared = all_methods()[method]
    inputs = [index(name, {"w": shape}, {}) for name in ("a", "b", "c")]
    names = ["b", "c"][: max(1, declared.inputs[0])]
    if declared.base == "ignored":
        given = "".join(
            f"  - {{model: {name}, parameters: {{weight: 1}}}}\n" for name in names[: declared.inputs[1]]
        )
        text = f"merge_method: {method}\nmodels:\n{given}"
    else:
        text = based(method, "a", *names)
    used = [model for model in inputs if f"model: {model.name}" in text]
    assert compiled(text, *used).graph.outputs["w"].spec.shape == shape


# ---- problems --------------------------------------------------------------------------------------


def test_all_wrong_shapes_are_reported_with_every_models_shape() -> None:
    b = changed(llama("b"), model__norm__weight=(9,), model__layers__2__mlp__up_proj__weight=(13, 8))
    found = problems(linear("a", "b"), llama("a"), b)
    text = "\n".join(str(p) for p in found)
    assert "model.norm.weight" in text
    assert "[8] in a" in text
    assert "[9] in b" in text
    assert "model.layers.2.mlp.up_proj.weight" in text


def test_filters_that_leave_a_tensor_without_a_weight_are_told_once() -> None:
    """One forgotten default is one mistake, however many tensors it leaves out."""
    plan = linear("a").replace("weight: 1", "weight: [{filter: mlp, value: 1}]")
    found = problems(plan, llama("a"))
    assert found
    assert "'weight' for a" in found[0].message
    assert len(found) <= 3


def test_weights_that_sum_to_zero_are_told_once() -> None:
    plan = linear("a", "b").replace("weight: 1", "weight: 1", 1)
    plan = plan[: plan.rindex("1")] + "-1}\n"
    found = problems(plan, llama("a"), llama("b"))
    assert found
    assert "sum to zero" in found[0].message
    assert len(found) <= 3


def test_a_problem_of_a_tensor_names_the_tensor() -> None:
    b = changed(llama("b"), model__norm__weight=(9,))
    (problem,) = problems(linear("a", "b"), llama("a"), b)
    assert "model.norm.weight" in str(problem)


# ---- determinism -----------------------------------------------------------------------------------


def test_compiling_twice_gives_the_same_graph() -> None:
    text = based("ties", "base", "a", "b")
    models = llama("base"), llama("a", TIED), llama("b")
    one, two = compiled(text, *models), compiled(text, *models)
    assert one.graph.fingerprint == two.graph.fingerprint
    assert list(one.graph.outputs) == list(two.graph.outputs)
    assert one.report == two.report


def test_everything_that_decides_the_numbers_changes_the_fingerprint() -> None:
    models = llama("a"), llama("b")
    texts = [
        based("slerp", "a", "b"),
        based("slerp", "b", "a"),
        based("slerp", "a", "b").replace("0.5", "0.25"),
        based("slerp", "a", "b").replace("0.5", "[{filter: lm_head, value: 0.25}, {value: 0.5}]"),
        based("slerp", "a", "b", tail="dtype: bfloat16\n"),
        linear("a", "b"),
        linear("a", "b", tail="parameters: {normalize: false}\n"),
    ]
    prints = [compiled(text, *models).graph.fingerprint for text in texts]
    assert len(dict.fromkeys(prints)) == len(prints)


def test_comments_and_order_of_keys_do_not() -> None:
    models = llama("a"), llama("b")
    one = "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.5}\n"
    two = "# hello\nparameters: {t: 0.50}\nmodels:\n  - model: b\nbase_model: a\nmerge_method: slerp\n"
    assert compiled(one, *models).graph.fingerprint == compiled(two, *models).graph.fingerprint
