"""Pruning plans: which experts stay, what config and report say, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergegraph import run, verify
from mergegraph.engine.verbs import Compiled, compile_plan
from mergegraph.errors import PlanError
from tests.engine.mixtures import (
    EXPERTS,
    LAYERS,
    Mixtures,
    Tensors,
    mixtral,
    read,
    same_bits,
    separate,
    stacked,
)

SEPARATE, STACKED = "separate", "stacked"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mixtures:
    found = Mixtures(tmp_path_factory.mktemp("mixtures"))
    found.write(SEPARATE, mixtral(1), num_experts_per_tok=2)
    found.write(STACKED, stacked(mixtral(1)), num_experts_per_tok=2)
    return found


def plan(model: Path, tmp_path: Path, **more: Any) -> Path:
    path = tmp_path / "plan.yml"
    path.write_text(json.dumps({"surgery": "prune", "model": str(model), **more}))
    return path


def compiled(model: Path, tmp_path: Path, **more: Any) -> Compiled:
    return compile_plan(plan(model, tmp_path, **more), threads=1)


def said(model: Path, tmp_path: Path, **more: Any) -> str:
    with pytest.raises(PlanError) as caught:
        compiled(model, tmp_path, **more)
    assert all(p.hint for p in caught.value.problems)
    return str(caught.value)


def pruned(tensors: Tensors, keep: dict[int, list[int]]) -> Tensors:
    """The mixture with the kept experts, by plain slicing."""
    found: Tensors = {}
    for name, x in tensors.items():
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        if not layer.isdecimal():
            found[name] = x
        elif "gate.weight" in name:
            found[name] = x[keep[int(layer)]]
        elif "experts." in name:
            old, _, role = rest.split("experts.")[1].partition(".")
            for new in (i for i, e in enumerate(keep[int(layer)]) if e == int(old)):
                found[f"model.layers.{layer}.block_sparse_moe.experts.{new}.{role}"] = x
        else:
            found[name] = x
    return found


@pytest.mark.parametrize("layout", [SEPARATE, STACKED])
@pytest.mark.parametrize("wanted", [None, "per-expert", "stacked"])
def test_layers_may_keep_experts_of_their_own(
    models: Mixtures, tmp_path: Path, layout: str, wanted: str | None
) -> None:
    keep = {0: [0, 1], 1: [3, 0], 2: [2, 1]}
    more = {} if wanted is None else {"expert_layout": wanted}
    run(plan(models.root / layout, tmp_path, keep=keep, **more), tmp_path / "out")
    found, expected = read(tmp_path / "out"), pruned(mixtral(1), keep)
    written = wanted or {SEPARATE: "per-expert", STACKED: "stacked"}[layout]
    same_bits(found, stacked(expected) if written == "stacked" else expected)
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize("layout", [SEPARATE, STACKED])
def test_a_dtype_is_cast_to(models: Mixtures, tmp_path: Path, layout: str) -> None:
    run(plan(models.root / layout, tmp_path, keep=[1, 3], dtype="float16"), tmp_path / "out")
    keep = {layer: [1, 3] for layer in range(LAYERS)}
    expected = {n: x.astype(np.float16) for n, x in pruned(mixtral(1), keep).items()}
    found = read(tmp_path / "out")
    same_bits(separate(found) if layout == STACKED else found, expected)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float16"


# ---- score files -----------------------------------------------------------------------------------

SCORES = {0: [0.1, 0.9, 0.5, 0.7], 1: [4, 3, 2, 1], 2: [0, 0, 1, 0]}
BEST = {0: [1, 3], 1: [0, 1], 2: [0, 2]}


@pytest.mark.parametrize("form", ["json", "csv", "yml"])
@pytest.mark.parametrize("beside", [False, True])
def test_the_best_experts_of_a_score_file_stay(
    models: Mixtures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, beside: bool
) -> None:
    text = {
        "json": json.dumps(list(SCORES.values())),
        "csv": "layer,a,b,c,d\n" + "".join(f"{n},{','.join(map(str, x))}\n" for n, x in SCORES.items()),
        "yml": "".join(f"{n}: {x}\n" for n, x in SCORES.items()),
    }[form]
    file = tmp_path / f"scores.{form}"
    file.write_text(text)
    monkeypatch.chdir(models.root if beside else tmp_path)
    run(plan(models.root / SEPARATE, tmp_path, scores=file.name, count=2), tmp_path / "out")
    same_bits(read(tmp_path / "out"), pruned(mixtral(1), BEST))


@pytest.mark.parametrize(
    ("scores", "count", "expected"),
    [
        (
            {0: [1, 2, 3], 1: [1, 2, 3, 4], 2: [1, 2, 3, 4]},
            2,
            "layer 0 has 4 experts, and scores.json scores 3",
        ),
        ({0: [1] * 5, 1: [1] * 4, 2: [1] * 4}, 2, "layer 0 has 4 experts, and scores.json scores 5"),
        (SCORES, 5, "count is 5, but layer 0 has 4 experts"),
        ({0: [1] * 4, 1: [1] * 4}, 2, "nothing is said of layer 2"),
        ({**SCORES, 7: [1] * 4}, 2, "layer 7 of"),
    ],
)
def test_scores_that_do_not_fit_the_model_are_refused(
    models: Mixtures,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: dict[int, list[float]],
    count: int,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    assert expected in said(models.root / SEPARATE, tmp_path, scores="scores.json", count=count)


def test_a_score_file_that_is_not_there_is_said(models: Mixtures, tmp_path: Path) -> None:
    assert "scores.json cannot be read" in said(
        models.root / SEPARATE, tmp_path, scores="scores.json", count=2
    )


# ---- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ([0, 4], "there is no expert 4 in layer 0"),
        ({"0": [0], "1": [0]}, "nothing is said of layer 2"),
        ({"0": [0], "1": [0], "2": [0], "3": [0]}, "layer 3 of"),
        ({"0": [0], "1": [9], "2": [0]}, "there is no expert 9 in layer 1"),
    ],
)
def test_experts_that_are_not_there_are_said(
    models: Mixtures, tmp_path: Path, keep: Any, expected: str
) -> None:
    assert expected in said(models.root / SEPARATE, tmp_path, keep=keep)


def test_dense_models_and_unknown_families_are_refused(tmp_path: Path) -> None:
    other = Mixtures(tmp_path)
    dense = {n: x for n, x in mixtral(1).items() if "block_sparse" not in n}
    assert "has no experts" in said(other.write("dense", dense), tmp_path, keep=[0])
    mystery = other.write("mystery", mixtral(1), model_type="mystery")
    assert "is of no family of mixtures that is known (model_type: mystery)" in said(
        mystery, tmp_path, keep=[0]
    )


def test_experts_without_a_router_are_refused(tmp_path: Path) -> None:
    bare = {n: x for n, x in mixtral(1).items() if "layers.1.block_sparse_moe.gate" not in n}
    model = Mixtures(tmp_path).write("bare", bare, num_experts_per_tok=2)
    with pytest.raises(PlanError, match=r"model\.layers\.1\. has experts, and no router"):
        compiled(model, tmp_path, keep=[0])


def test_quantised_experts_are_pruned_with_their_scales_but_not_cast(tmp_path: Path) -> None:
    tensors = mixtral(1)
    scales = {
        n.replace(".weight", ".weight_scale_inv"): np.full((1, 1), i, dtype=np.float32)
        for i, n in enumerate(tensors)
        if "experts" in n
    }
    packed = {"quantization_config": {"quant_method": "fp8"}, "num_experts_per_tok": 1}
    model = Mixtures(tmp_path).write("m", tensors | scales, **packed)
    assert "is quantised, and cannot be cast" in said(model, tmp_path, keep=[2, 0], dtype="bfloat16")
    run(plan(model, tmp_path, keep=[2, 0]), tmp_path / "out")
    found = read(tmp_path / "out")
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}.block_sparse_moe.experts."
        for new, old in enumerate((2, 0)):
            for role in ("w1", "w2", "w3"):
                scale = f"{role}.weight_scale_inv"
                assert found[f"{prefix}{new}.{scale}"] == scales[f"{prefix}{old}.{scale}"]


def test_experts_of_two_kinds_in_a_layer_are_refused(tmp_path: Path) -> None:
    """JetMoE's attention is a mixture too, and its config has one number of experts for both."""
    tensors: Tensors = {}
    for part in ("mlp", "self_attention.experts"):
        tensors[f"model.layers.0.{part}.input_linear.weight"] = np.zeros((4, 6, 8), "f4")
        tensors[f"model.layers.0.{part}.output_linear.weight"] = np.zeros((4, 8, 3), "f4")
        tensors[f"model.layers.0.{part}.router.layer.weight"] = np.zeros((4, 8), "f4")
    model = Mixtures(tmp_path).write("m", tensors, model_type="jetmoe", num_experts_per_tok=2)
    with pytest.raises(PlanError, match=r"has experts in mlp\.experts and in self_attention"):
        compiled(model, tmp_path, keep=[0, 1])


# ---- config ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "given", "active"), [([0], None, 1), ([0, 1, 2], None, 2), ([0, 1, 2], 3, 3), ([3, 1], 1, 1)]
)
def test_tokens_use_as_many_experts_as_before_or_as_stay(
    models: Mixtures, tmp_path: Path, keep: list[int], given: int | None, active: int
) -> None:
    more = {} if given is None else {"experts_per_token": given}
    found = compiled(models.root / SEPARATE, tmp_path, keep=keep, **more)
    assert found.config["num_local_experts"] == len(keep)
    assert found.config["num_experts_per_tok"] == active
    assert "num_experts" not in found.config, "no key is added that was not there"
    assert found.facts is not None
    assert (found.facts["experts"], found.facts["experts_before"]) == (len(keep), EXPERTS)
    assert found.facts["experts_per_token"] == active


def test_a_config_that_does_not_say_how_many_experts_are_used_needs_a_plan_that_does(tmp_path: Path) -> None:
    model = Mixtures(tmp_path).write("m", mixtral(1))
    assert "does not say how many experts a token uses" in said(model, tmp_path, keep=[0, 1])
    assert compiled(model, tmp_path, keep=[0, 1], experts_per_token=2).config["num_experts_per_tok"] == 2


def deepseek(tmp_path: Path, experts: int, **config: Any) -> Path:
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    tensors: Tensors = {}
    for name, x in mixtral(1, experts=experts).items():
        role = next((r for r in names if f".{r}." in name), "")
        renamed = name.replace("block_sparse_moe", "mlp")
        tensors[renamed.replace(f".{role}.", f".{names[role]}.") if role else renamed] = x
    for layer in range(LAYERS):
        tensors[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"] = np.arange(
            experts, dtype=np.float32
        )
    values = {"n_routed_experts": experts, "num_experts_per_tok": 2, "topk_group": 1, "n_group": 1}
    return Mixtures(tmp_path).write("deepseek", tensors, **{**values, "model_type": "deepseek_v3", **config})


@pytest.mark.parametrize(
    ("keep", "more", "expected"),
    [
        ([0, 1, 2], {}, "the router chooses among 2 groups of experts, which 3 experts do not fill"),
        ([0, 4], {}, "the router chooses among 2 groups of experts, which 2 experts do not fill"),
        ([0, 1, 4, 5], {"experts_per_token": 3}, "3 experts per token are more than 1 of 2 groups hold"),
    ],
)
def test_groups_of_experts_must_stay_full(tmp_path: Path, keep: list[int], more: Any, expected: str) -> None:
    model = deepseek(tmp_path, 8, n_group=2)
    assert expected in said(model, tmp_path, keep=keep, **more)
    assert compiled(model, tmp_path, keep=[0, 1, 4, 5]).config["n_routed_experts"] == 4


def test_correction_biases_follow_and_stay_in_float32(tmp_path: Path) -> None:
    model = deepseek(tmp_path, 6)
    run(plan(model, tmp_path, keep=[5, 2], dtype="bfloat16"), tmp_path / "out")
    found = read(tmp_path / "out")
    for layer in range(LAYERS):
        bias = found[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"]
        assert bias.dtype == np.float32 and bias.tolist() == [5.0, 2.0]
    assert found["model.layers.0.mlp.gate.weight"].dtype == np.int16, "bfloat16, read as its bits"


def test_a_config_inside_a_config_is_changed_there(tmp_path: Path) -> None:
    inner = {"num_local_experts": 4, "num_experts_per_tok": 2, "model_type": "llama4_text"}
    from tests.engine.mixtures import llama4

    model = Mixtures(tmp_path).write(
        "m", {f"language_model.{n}": x for n, x in llama4(1).items()}, model_type="llama4", text_config=inner
    )
    config = compiled(model, tmp_path, keep={"1": [2]}).config
    assert config["text_config"] == {**inner, "num_local_experts": 1, "num_experts_per_tok": 1}
    assert config["num_local_experts"] == EXPERTS, "what is outside is not the language model's"


def test_keys_of_dbrx_are_changed_where_they_are(tmp_path: Path) -> None:
    prefix, hidden, inner = "transformer.blocks.0.ffn.", 12, 8
    tensors = {
        f"{prefix}experts.mlp.{n}": np.random.rand(4 * inner, hidden).astype("f4") for n in ("w1", "v1", "w2")
    }
    tensors[f"{prefix}router.layer.weight"] = np.random.rand(4, hidden).astype("f4")
    ffn = {"moe_num_experts": 4, "moe_top_k": 3, "ffn_hidden_size": inner}
    model = Mixtures(tmp_path).write("m", tensors, model_type="dbrx", ffn_config=ffn)
    run(plan(model, tmp_path, keep=[3, 1]), tmp_path / "out")
    found = read(tmp_path / "out")
    for name, x in tensors.items():
        split = x.reshape(4, -1, hidden)[[3, 1]].reshape(-1, hidden)
        assert found[name].tobytes() == split.tobytes()
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["ffn_config"] == {**ffn, "moe_num_experts": 2, "moe_top_k": 2}
    assert not [key for key in config if "." in key]


def test_lists_by_layer_are_kept_as_lists(tmp_path: Path) -> None:
    config = {"num_experts": 4, "moe_topk": [3, 1, 2], "model_type": "hunyuan_v1_moe"}
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    tensors: Tensors = {}
    for name, x in mixtral(1).items():
        renamed = name.replace("block_sparse_moe", "mlp").replace("mlp.gate.weight", "mlp.gate.wg.weight")
        for old, new in names.items():
            renamed = renamed.replace(f".{old}.", f".{new}.")
        tensors[renamed] = x
    model = Mixtures(tmp_path).write("m", tensors, **config)
    assert compiled(model, tmp_path, keep=[0, 3]).config["moe_topk"] == [2, 1, 2]


# ---- what is told ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [SEPARATE, STACKED])
@pytest.mark.parametrize("keep", [[0, 1], [2, 3], [3, 0]])
def test_pruned_experts_are_told_and_nothing_else(
    models: Mixtures, tmp_path: Path, layout: str, keep: list[int]
) -> None:
    found = compiled(models.root / layout, tmp_path, keep=keep)
    dropped = found.report.dropped
    assert {d.reason for d in dropped} == {"its expert is pruned"}
    assert len(dropped) == LAYERS * 2 * 3
    if layout == SEPARATE:
        gone = [e for e in range(EXPERTS) if e not in keep]
        assert all(any(f".experts.{e}." in d.tensor for e in gone) for d in dropped)
    experts = sum(x.nbytes for n, x in mixtral(1).items() if "experts" in n)
    gates = sum(x.nbytes for n, x in mixtral(1).items() if ".gate." in n)
    size = sum(x.nbytes for x in mixtral(1).values())
    assert found.summary()["bytes_read"] == size - (experts + gates) // 2


def test_sizes_are_told(models: Mixtures, tmp_path: Path) -> None:
    facts = compiled(models.root / STACKED, tmp_path, keep=[0, 2, 3]).facts
    assert facts is not None
    each = sum(x.size for n, x in mixtral(1).items() if "experts.0." in n)
    row = sum(x.size // EXPERTS for n, x in mixtral(1).items() if ".gate." in n)
    total = sum(x.size for x in mixtral(1).values())
    assert facts["parameters_before"] == total
    assert facts["parameters"] == total - each - row
    assert facts["parameters_active"] == total - each - row - each


def test_many_experts_are_no_trouble(tmp_path: Path) -> None:
    """Thousands of tensors are selected and reported in one pass."""
    from mergegraph.testing import write_checkpoint
    from tests.engine.mixtures import CONFIG

    tensors: Tensors = {}
    for layer in range(8):
        tensors[f"model.layers.{layer}.block_sparse_moe.gate.weight"] = np.zeros((256, 2), dtype=np.float32)
        for e in range(256):
            for role in ("w1", "w2", "w3"):
                tensors[f"model.layers.{layer}.block_sparse_moe.experts.{e}.{role}.weight"] = np.zeros(
                    (2, 2), "f4"
                )
    config = {**CONFIG, "num_hidden_layers": 8, "num_local_experts": 256, "num_experts_per_tok": 8}
    model = write_checkpoint(tmp_path / "m", tensors, config=config)
    found = compiled(model, tmp_path, keep=list(range(0, 256, 2)))
    assert len(found.report.dropped) == 8 * 128 * 3
