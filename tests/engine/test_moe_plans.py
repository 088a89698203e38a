"""Plans of mixtures: what they say before a run, what they write, and merges that need no file."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

import mergegraph
from mergegraph.engine.verbs import write_lock
from mergegraph.errors import MemoryBudgetError, PlanError, ResumeError
from mergegraph.graph.outline import outline
from mergegraph.graph.text import explain_text
from mergegraph.runtime.events import RunReport
from mergegraph.storage.journal import Journal
from mergegraph.storage.publish import staging_path
from mergegraph.testing import Llama, write_checkpoint, write_llama
from tests.engine.scenario import contents, tensors_of

Array = npt.NDArray[Any]

LAYERS, HIDDEN, INNER, VOCAB = 2, 32, 48, 260
SHAPE = Llama(layers=LAYERS, hidden=HIDDEN, intermediate=INNER, heads=4, kv_heads=2, vocab=VOCAB)
LAYER = "model.layers.1."
GATE = LAYER + "block_sparse_moe.gate.weight"
NAMES = ("base", "poet", "coder", "clerk")
PROMPTS = {"poet": ["write a poem", "sing a song"], "coder": ["def main():"], "clerk": ["2 + 2 = "]}
ROLES = (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))


@dataclass(frozen=True)
class Models:
    """Models ``base``, ``poet``, ``coder`` and ``clerk`` in float32, and in bfloat16 as ``base16``, …"""

    root: Path

    def __call__(self, name: str) -> str:
        return str(self.root / name)

    def tensors(self, name: str) -> dict[str, Array]:
        return read(self.root / name)

    def expert(self, name: str, **more: Any) -> dict[str, Any]:
        """An entry of ``experts:``, with prompts."""
        return {"source_model": self(name), "positive_prompts": PROMPTS.get(name.rstrip("16"), ["x"]), **more}

    def merge(self, method: str = "linear", *names: str, **more: Any) -> dict[str, Any]:
        """A merge plan with a weight for each model."""
        listed = names or ("poet", "coder")
        weighted = [
            {"model": self(name), "parameters": {"weight": weight}}
            for name, weight in zip(listed, (0.6, 0.7, 0.4), strict=False)
        ]
        plan: dict[str, Any] = {"merge_method": method, "models": weighted}
        if method in ("ties", "slerp", "task_arithmetic"):
            plan["base_model"] = self("base")
        if method == "slerp":
            plan |= {"models": [{"model": self(listed[0])}], "parameters": {"t": 0.3}}
        return plan | more


def read(directory: Path) -> dict[str, Array]:
    """Tensors as float32 if they are bfloat16, else as they are."""
    found = tensors_of(directory)
    return {n: (x.float() if "bfloat16" in str(x.dtype) else x).numpy() for n, x in found.items()}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    root = tmp_path_factory.mktemp("dense")
    for dtype, end in (("F32", ""), ("BF16", "16")):
        base = write_llama(root / f"base{end}", SHAPE, seed=1, dtype=dtype)
        for seed, name in enumerate(NAMES[1:], start=2):
            write_llama(root / f"{name}{end}", SHAPE, seed=seed, dtype=dtype, finetune_of=base)
    return Models(root)


def moe(models: Models, *names: str, base: str = "base", gate_mode: str = "random", **more: Any) -> Any:
    """A plan with an expert for each name."""
    listed = [models.expert(name) for name in names or ("poet", "coder")]
    if gate_mode in ("random", "uniform_random", "zero"):
        for expert in listed:
            del expert["positive_prompts"]
    return {"base_model": models(base), "gate_mode": gate_mode, "experts": listed} | more


def written(place: Path, *documents: Any, name: str = "plan") -> Path:
    path = place / f"{name}.yml"
    path.write_text("\n---\n".join(json.dumps(document, indent=1) for document in documents))
    return path


def built(place: Path, *documents: Any, name: str = "out", **options: Any) -> Path:
    out = place / name
    mergegraph.run(written(place, *documents, name=name), out, **options)
    return out


def same(a: Path, b: Path) -> None:
    """Two checkpoints hold the same tensors, bit for bit."""
    first, second = tensors_of(a), tensors_of(b)
    assert sorted(first) == sorted(second)
    for name, x in first.items():
        assert x.dtype == second[name].dtype and x.equal(second[name]), name


# ---- merges inside --------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["per-expert", "stacked"])
@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_an_expert_that_is_a_merge_equals_one_that_was_merged_to_a_file(
    models: Models, tmp_path: Path, method: str, layout: str
) -> None:
    merged = built(tmp_path, models.merge(method), name="merged")
    plan = moe(models, "clerk", "poet", expert_layout=layout)
    two_steps, one = json.loads(json.dumps(plan)), json.loads(json.dumps(plan))
    two_steps["experts"][0] |= {"source_model": str(merged), "residual_scale": 0.5}
    one["experts"][0] |= {"source_model": models.merge(method), "residual_scale": 0.5}
    same(built(tmp_path, one, name="one"), built(tmp_path, two_steps, name="two"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_stage_equals_the_merge_written_out(models: Models, tmp_path: Path, dtype: str) -> None:
    """Merges of bfloat16 models are bfloat16, as their files would be."""
    stage = models.merge("linear", "poet16", "coder16")
    merged = built(tmp_path, stage, name="merged")
    two = moe(models, "clerk16", "poet16", base="base16", dtype=dtype)
    two["experts"][1]["source_model"] = str(merged)
    one = json.loads(json.dumps(two))
    one["experts"][1]["source_model"] = "both"
    first = built(tmp_path, {"name": "both", **stage}, one, name="one")
    same(first, built(tmp_path, two, name="two"))


def test_a_merge_is_rounded_once_where_a_file_would_round_it_twice(models: Models, tmp_path: Path) -> None:
    plan = moe(models, "poet", "clerk", dtype="bfloat16")
    plan["experts"][0]["source_model"] = models.merge()
    ours = read(built(tmp_path, plan))
    poet, coder = models.tensors("poet"), models.tensors("coder")
    exact = (poet[LAYER + "mlp.up_proj.weight"] * 0.6 + coder[LAYER + "mlp.up_proj.weight"] * 0.7) / 1.3
    found = ours[LAYER + "block_sparse_moe.experts.0.w3.weight"]
    np.testing.assert_allclose(found, exact, rtol=2**-8, atol=1e-9)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen2_moe", "ernie4_5_moe", "granitemoe"])
def test_a_merged_base_equals_one_that_was_merged_to_a_file(
    models: Models, tmp_path: Path, architecture: str
) -> None:
    """Also where rows of its queries and keys change places (ernie4_5_moe)."""
    merged = built(tmp_path, models.merge("ties"), name="merged")
    two = moe(models, "poet", "coder", architecture=architecture)
    if architecture == "qwen2_moe":
        two["shared_experts"] = [{"source_model": models("clerk"), "residual_scale": 0.5}]
    one = {**two, "base_model": models.merge("ties")}
    two["base_model"] = str(merged)
    first, second = built(tmp_path, one, name="one"), built(tmp_path, two, name="two")
    same(first, second)
    configs = [json.loads((place / "config.json").read_text()) for place in (first, second)]
    assert configs[0] == configs[1]
    assert (first / "tokenizer.json").read_bytes() == (second / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("gate_mode", ["cheap_embed", "hidden"])
def test_prompts_are_read_by_a_merged_base(models: Models, tmp_path: Path, gate_mode: str) -> None:
    merged = built(tmp_path, models.merge("linear"), name="merged")
    two = moe(models, "poet", "coder", gate_mode=gate_mode)
    one = {**two, "base_model": models.merge("linear")}
    two["base_model"] = str(merged)
    same(built(tmp_path, one, name="one"), built(tmp_path, two, name="two"))


def test_rows_of_a_merged_base_are_its_own(models: Models, tmp_path: Path) -> None:
    plan = moe(models, "poet", "coder", gate_mode="cheap_embed")
    plain = read(built(tmp_path, plan, name="plain"))
    merged = read(built(tmp_path, {**plan, "base_model": models.merge()}, name="merged"))
    assert np.abs(plain[GATE] - merged[GATE]).max() > 1e-3


def test_a_backbone_is_merged_from_all_experts(models: Models, tmp_path: Path) -> None:
    """Branch-train-mix: everything outside the experts is averaged."""
    names = ("poet", "coder", "clerk")
    backbone = {"merge_method": "linear", "parameters": {"weight": 1.0}}
    ours = read(built(tmp_path, moe(models, *names, backbone=backbone)))
    held = [models.tensors(name) for name in names]
    outside = [name for name in held[0] if ".mlp." not in name]
    assert len(outside) == 3 + 6 * LAYERS
    for name in outside:
        mean = np.mean([x[name].astype(np.float64) for x in held], axis=0)
        np.testing.assert_allclose(ours[name], mean, rtol=1e-6, atol=1e-8)
    for e, x in enumerate(held):
        for theirs, mine in ROLES:
            found = ours[f"{LAYER}block_sparse_moe.experts.{e}.{mine}.weight"]
            assert np.array_equal(found, x[f"{LAYER}mlp.{theirs}.weight"])


def test_a_backbone_equals_the_base_merged_to_a_file(models: Models, tmp_path: Path) -> None:
    """A method that compares with a base takes the plan's own."""
    parameters = {"weight": 0.5, "density": 0.6}
    merged = built(
        tmp_path,
        {
            "merge_method": "ties",
            "base_model": models("base"),
            "models": [{"model": models("poet")}, {"model": models("coder")}],
            "parameters": parameters,
        },
        name="merged",
    )
    plan = moe(models, gate_mode="zero")
    one = {**plan, "backbone": {"merge_method": "ties", "parameters": parameters}}
    same(
        built(tmp_path, one, name="one"),
        built(tmp_path, {**plan, "base_model": str(merged)}, name="two"),
    )


def test_a_backbone_may_be_a_stage(models: Models, tmp_path: Path) -> None:
    stage = {"name": "mix", **models.merge("slerp")}
    one = built(tmp_path, stage, moe(models, backbone="mix"), name="one")
    two = built(tmp_path, moe(models, backbone=models.merge("slerp")), name="two")
    same(one, two)


def test_with_a_backbone_prompts_are_still_read_by_the_base(models: Models, tmp_path: Path) -> None:
    plan = moe(models, gate_mode="cheap_embed")
    plain = read(built(tmp_path, plan, name="plain"))
    backbone = {"merge_method": "linear", "parameters": {"weight": 1.0}}
    ours = read(built(tmp_path, {**plan, "backbone": backbone}, name="mixed"))
    assert np.array_equal(plain[GATE], ours[GATE])
    assert not np.array_equal(plain["lm_head.weight"], ours["lm_head.weight"])


# ---- before a run ---------------------------------------------------------------------------------


def test_a_dry_run_tells_sizes_routers_and_origins(models: Models, tmp_path: Path) -> None:
    compiled = mergegraph.compile_plan(written(tmp_path, moe(models, "poet", "coder", "clerk", "poet")))
    facts = json.loads(json.dumps(compiled.summary()))["mixture"]
    base, expert = (
        sum(x.size for n, x in models.tensors("base").items() if (".mlp." in n) == mlp) for mlp in (0, 1)
    )
    router = LAYERS * 4 * HIDDEN
    assert (facts["architecture"], facts["experts"], facts["experts_per_token"]) == ("mixtral", 4, 2)
    assert facts["parameters"] == base + 4 * expert + router
    assert facts["parameters_active"] == base + 2 * expert + router
    assert facts["routers"] == {f"model.layers.{i}.block_sparse_moe.gate.weight": [4, HIDDEN] for i in (0, 1)}
    assert facts["origins"] == {
        f"base: {models('base')}": base,
        "gate_mode random": router,
        **{f"expert {e}: {models(n)}": expert for e, n in enumerate(("poet", "coder", "clerk", "poet"))},
    }
    total = sum(math.prod(o["shape"]) for o in compiled.summary()["outputs"])
    assert total == facts["parameters"]


@pytest.mark.parametrize("layout", ["per-expert", "stacked"])
def test_routers_of_zeros_are_told_like_others(models: Models, tmp_path: Path, layout: Any) -> None:
    plan = written(tmp_path, moe(models, gate_mode="zero"))
    summary = mergegraph.compile_plan(plan, expert_layout=layout).summary()
    facts = summary["mixture"]
    assert not [name for name in summary["copied"] if name.endswith("gate.weight")]
    assert list(facts["routers"].values()) == [[2, HIDDEN]] * LAYERS
    assert facts["origins"]["gate_mode zero"] == LAYERS * 2 * HIDDEN
    assert "filled with a constant" not in facts["origins"]


def test_constants_and_router_rows_are_drawn_where_there_are_any(models: Models, tmp_path: Path) -> None:
    for mode, expected in (("cheap_embed", ["router rows"]), ("zero", ["constant"])):
        compiled = mergegraph.compile_plan(written(tmp_path, moe(models, gate_mode=mode)))
        assert [name for name in compiled.labels.values() if "/" not in name][3:] == expected
        assert len(outline(compiled.graph)) == 4
    merge = mergegraph.compile_plan(written(tmp_path, models.merge()))
    assert "constant" not in merge.labels.values()


def test_shared_experts_count_as_active(models: Models, tmp_path: Path) -> None:
    shared = [{"source_model": models("clerk"), "residual_scale": 0.5}]
    plan = moe(models, "poet", "coder", architecture="glm4_moe", experts_per_token=1, shared_experts=shared)
    facts = mergegraph.compile_plan(written(tmp_path, plan)).facts
    assert facts is not None
    expert = 3 * LAYERS * HIDDEN * INNER
    assert facts["shared_experts"] == 1
    assert facts["parameters"] - facts["parameters_active"] == expert
    assert facts["origins"][f"shared expert 0: {models('clerk')}"] == expert


def test_the_command_line_tells_the_same(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mergegraph.cli.app import main

    path = written(tmp_path, moe(models))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr("sys.argv", ["mergegraph", "plan", str(path), "--json"])
        main()
    assert not caught.value.code
    told = json.loads(capsys.readouterr().out)
    assert told["mixture"] == mergegraph.compile_plan(path).summary()["mixture"]
    assert told["method"] == "mixtral of 2 experts"


def test_the_command_line_runs_a_mixture_with_its_options(models: Models, tmp_path: Path) -> None:
    from mergegraph.cli.app import main

    path, out = written(tmp_path, moe(models)), tmp_path / "out"
    options = ["--expert-layout", "stacked", "--seed", "7", "--progress", "none"]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr("sys.argv", ["mergegraph", "run", str(path), "-o", str(out), *options])
        main()
    assert not caught.value.code
    mergegraph.run(path, tmp_path / "same", seed=7, expert_layout="stacked")
    same(out, tmp_path / "same")


@pytest.mark.parametrize("layout", ["per-expert", "stacked"])
def test_memory_hardly_grows_with_the_model(models: Models, tmp_path: Path, layout: Any) -> None:
    """A model a hundred times as large needs about as much: tensors are streamed in tiles."""
    large = Llama(layers=2, hidden=512, intermediate=1536, heads=4, kv_heads=2, vocab=VOCAB)
    write_llama(tmp_path / "large", large, seed=9)
    model = str(tmp_path / "large")
    plan = {"base_model": model, "gate_mode": "random", "experts": [{"source_model": model}] * 8}
    small = moe(models, *["poet"] * 8)
    peaks = [
        mergegraph.compile_plan(
            written(tmp_path, p, name=f"plan{i}"), expert_layout=layout, threads=2
        ).schedule.peak_bytes
        for i, p in enumerate((small, plan))
    ]
    stack = 8 * 3 * 512 * 1536 * 2
    assert peaks[1] - peaks[0] < stack
    assert peaks[1] < 300e6


# ---- routers --------------------------------------------------------------------------------------


def test_seeds_decide_routers_and_noise(models: Models, tmp_path: Path) -> None:
    plan = moe(models)
    plan["experts"][0]["noise_scale"] = 0.1
    places = [
        built(tmp_path, plan, name="a"),
        built(tmp_path, {**plan, "seed": 0}, name="b"),
        built(tmp_path, {**plan, "seed": 7}, name="c"),
        built(tmp_path, {**plan, "seed": 3}, name="d", seed=7),
        built(tmp_path, {**plan, "seed": 7}, name="e", threads=1),
    ]
    found = [read(place) for place in places]
    noisy = LAYER + "block_sparse_moe.experts.0.w2.weight"
    for name in (GATE, noisy):
        assert not np.array_equal(found[1][name], found[2][name])
        for one, other in ((0, 1), (2, 3), (2, 4)):
            assert np.array_equal(found[one][name], found[other][name])
    quiet = LAYER + "block_sparse_moe.experts.1.w2.weight"
    assert all(np.array_equal(found[0][quiet], x[quiet]) for x in found)


def rows(tensors: Mapping[str, Array]) -> Array:
    """Router rows of all layers, one below the other."""
    return np.concatenate([x for n, x in tensors.items() if n.endswith("gate.weight")])


@pytest.mark.parametrize("std", [1.0, 0.02])
def test_random_rows_have_the_asked_spread_and_nothing_in_common(tmp_path: Path, std: float) -> None:
    wide = Llama(layers=4, hidden=1024, intermediate=8, heads=4, kv_heads=1, vocab=8)
    model = str(write_llama(tmp_path / "wide", wide, seed=3, dtype="F32"))
    plan = {"base_model": model, "gate_mode": "random", "experts": [{"source_model": model}] * 8}
    options = {} if std == 1.0 else {"router": {"std": std}}
    found = rows(read(built(tmp_path, plan | options)))
    assert found.shape == (32, 1024)
    assert found.std() == pytest.approx(std, rel=0.03)
    assert abs(found.mean()) < 0.03 * std
    between = np.corrcoef(found) - np.eye(32)
    assert np.abs(between).max() < 5 / math.sqrt(1024)
    assert np.mean(np.abs(found) < std) == pytest.approx(0.6827, abs=0.01)


def test_uniform_rows_reach_as_far_as_linear_layers_do(tmp_path: Path) -> None:
    wide = Llama(layers=4, hidden=1024, intermediate=8, heads=4, kv_heads=1, vocab=8)
    model = str(write_llama(tmp_path / "wide", wide, seed=3, dtype="F32"))
    plan = {"base_model": model, "gate_mode": "uniform_random", "experts": [{"source_model": model}] * 8}
    found = rows(read(built(tmp_path, plan)))
    bound = 1 / math.sqrt(1024)
    assert 0.99 * bound < np.abs(found).max() <= bound
    assert found.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert np.abs(np.corrcoef(found) - np.eye(32)).max() < 5 / math.sqrt(1024)


def test_temperature_divides_rows_and_centring_makes_them_cancel(models: Models, tmp_path: Path) -> None:
    plan = moe(models, "poet", "coder", gate_mode="cheap_embed")
    plain = read(built(tmp_path, plan, name="plain"))[GATE]
    soft = read(built(tmp_path, {**plan, "router": {"temperature": 4.0}}, name="soft"))[GATE]
    centred = read(built(tmp_path, {**plan, "router": {"centre": True}}, name="centred"))[GATE]
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(soft * 4, plain, rtol=1e-6)
    np.testing.assert_allclose(centred[0], -centred[1], atol=1e-6)


def reports(models: Models, place: Path, **changes: Any) -> bool:
    """Run a plan whose rows come from prompts, and say whether they were there already."""
    plan = {**moe(models, "poet", "coder", gate_mode="hidden"), **changes}
    count = len(list(place.iterdir()))
    report: RunReport = mergegraph.run(written(place, plan, name=f"p{count}"), place / f"o{count}")
    assert report.routers is not None
    return bool(report.routers["cached"])


def test_rows_are_computed_once_for_the_same_base_and_prompts(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGEGRAPH_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "runs"
    place.mkdir()
    assert not reports(models, place)
    assert reports(models, place)
    assert reports(models, place, dtype="bfloat16", expert_layout="stacked")
    assert not reports(models, place, router={"centre": True})
    assert not reports(models, place, gate_mode="hidden_avg")
    other = [models.expert("poet"), models.expert("coder", positive_prompts=["import"])]
    assert not reports(models, place, experts=other)
    assert reports(models, place, experts=other)
    assert not reports(models, place, base_model=models("clerk"))
    assert not reports(models, place, base_model=models.merge())
    assert reports(models, place, base_model=models.merge())
    assert not reports(models, place, base_model=models.merge("linear", "poet", "clerk"))


def test_rows_are_computed_again_when_the_base_has_changed(models: Models, tmp_path: Path) -> None:
    write_llama(tmp_path / "base", SHAPE, seed=1, dtype="F32")
    base = str(tmp_path / "base")
    place = tmp_path / "runs"
    place.mkdir()
    assert not reports(models, place, base_model=base)
    write_llama(tmp_path / "base", SHAPE, seed=5, dtype="F32")
    assert not reports(models, place, base_model=base)


# ---- experts --------------------------------------------------------------------------------------


def test_noise_has_the_asked_spread_and_is_of_each_matrix_its_own(models: Models, tmp_path: Path) -> None:
    plan = moe(models, "poet", "poet", "poet")
    for expert, scale in zip(plan["experts"], (0.5, 0.5, None), strict=True):
        if scale is not None:
            expert["noise_scale"] = scale
    ours, poet = read(built(tmp_path, plan)), models.tensors("poet")
    found: dict[str, Array] = {}
    for layer in range(LAYERS):
        for theirs, mine in ROLES:
            for e in range(3):
                name = f"model.layers.{layer}.block_sparse_moe.experts.{e}.{mine}.weight"
                found[name] = ours[name] - poet[f"model.layers.{layer}.mlp.{theirs}.weight"]
    noise = [x.ravel() for n, x in found.items() if ".2." not in n.partition("experts")[2]]
    assert all(not x.any() for n, x in found.items() if n.partition("experts.")[2].startswith("2"))
    assert np.concatenate(noise).std() == pytest.approx(0.5, rel=0.03)
    assert abs(np.concatenate(noise).mean()) < 0.02
    assert np.abs(np.corrcoef(noise) - np.eye(len(noise))).max() < 5 / math.sqrt(noise[0].size)


@pytest.mark.parametrize("architecture", ["mixtral", "glm4_moe", "granitemoe"])
def test_residual_scale_multiplies_what_an_expert_adds_and_nothing_else(
    models: Models, tmp_path: Path, architecture: str
) -> None:
    plan = moe(models, "poet", "poet", architecture=architecture)
    plan["experts"][1]["residual_scale"] = -0.25
    ours = read(built(tmp_path, plan))
    poet = models.tensors("poet")
    if architecture == "granitemoe":
        down, both = (ours[f"{LAYER}block_sparse_moe.{n}_linear.weight"] for n in ("output", "input"))
        assert np.array_equal(both[0], both[1])
    else:
        name = "block_sparse_moe.experts.{}.w2" if architecture == "mixtral" else "mlp.experts.{}.down_proj"
        down = np.stack([ours[f"{LAYER}{name.format(e)}.weight"] for e in (0, 1)])
    assert np.array_equal(down[0], poet[LAYER + "mlp.down_proj.weight"])
    assert np.array_equal(down[1], poet[LAYER + "mlp.down_proj.weight"] * np.float32(-0.25))


def test_layouts_hold_the_same_experts(models: Models, tmp_path: Path) -> None:
    """Whether noisy, scaled or of another size, an expert's matrices are the same in both layouts."""
    plan = moe(models, "poet", "coder", "clerk")
    plan["experts"][0] |= {"noise_scale": 0.1, "residual_scale": 0.5}
    apart = read(built(tmp_path, plan, name="apart"))
    stacked = read(built(tmp_path, plan, name="stacked", expert_layout="stacked"))
    both, down = (stacked[f"{LAYER}mlp.experts.{n}_proj"] for n in ("gate_up", "down"))
    for e in range(3):
        w1, w3, w2 = (apart[f"{LAYER}block_sparse_moe.experts.{e}.{w}.weight"] for w in ("w1", "w3", "w2"))
        if e:
            assert np.array_equal(both[e], np.concatenate([w1, w3])) and np.array_equal(down[e], w2)
        assert both[e].shape == (2 * INNER, HIDDEN)
    assert np.array_equal(stacked[LAYER + "mlp.gate.weight"].shape, (3, HIDDEN))


def test_experts_of_several_sizes_are_padded_with_neurons_that_add_nothing(
    models: Models, tmp_path: Path
) -> None:
    write_llama(tmp_path / "small", replace(SHAPE, intermediate=40), seed=8, dtype="F32")
    plan = moe(models, "poet", "coder")
    plan["experts"][1]["source_model"] = str(tmp_path / "small")
    held = read(tmp_path / "small")
    for layout in ("per-expert", "stacked"):
        out = built(tmp_path, {**plan, "expert_layout": layout}, name=layout)
        ours = read(out)
        if layout == "stacked":
            w1, w3 = np.split(ours[LAYER + "mlp.experts.gate_up_proj"][1], 2)
            w2 = ours[LAYER + "mlp.experts.down_proj"][1]
        else:
            w1, w3, w2 = (ours[f"{LAYER}block_sparse_moe.experts.1.{w}.weight"] for w in ("w1", "w3", "w2"))
        for (theirs, _), found in zip(ROLES, (w1, w3, w2.T), strict=True):
            wanted = held[f"{LAYER}mlp.{theirs}.weight"]
            wanted = wanted.T if theirs == "down_proj" else wanted
            assert np.array_equal(found[:40], wanted)
            assert found.shape == (INNER, HIDDEN) and not found[40:].any()
        assert json.loads((out / "config.json").read_text())["intermediate_size"] == INNER
    notes = mergegraph.compile_plan(written(tmp_path, plan)).summary()["notes"]
    assert any("padded" in note for note in notes)


def test_shared_experts_are_written_beside_the_routed_ones(models: Models, tmp_path: Path) -> None:
    shared = [{"source_model": models("clerk"), "positive_prompts": ["anything"], "noise_scale": 0}]
    plan = moe(models, gate_mode="cheap_embed", architecture="qwen2_moe", shared_experts=shared)
    ours, clerk = read(built(tmp_path, plan)), models.tensors("clerk")
    for theirs, _ in ROLES:
        name = f"mlp.shared_expert.{theirs}.weight"
        assert np.array_equal(ours[LAYER + name], clerk[f"{LAYER}mlp.{theirs}.weight"])
    gate = ours[LAYER + "mlp.shared_expert_gate.weight"]
    assert gate.shape == (1, HIDDEN) and np.linalg.norm(gate) == pytest.approx(1.0, rel=1e-6)
    for name in ("q", "k", "v"):
        assert not ours[f"{LAYER}self_attn.{name}_proj.bias"].any()


def test_the_gate_of_a_shared_expert_without_prompts_is_zero(models: Models, tmp_path: Path) -> None:
    shared = [{"source_model": models("clerk")}]
    for mode in ("random", "cheap_embed"):
        plan = moe(models, gate_mode=mode, architecture="qwen2_moe", shared_experts=shared)
        ours = read(built(tmp_path, plan, name=mode))
        assert not ours[LAYER + "mlp.shared_expert_gate.weight"].any()
        assert ours[LAYER + "mlp.gate.weight"].all()


# ---- dtypes, heads --------------------------------------------------------------------------------


def dtypes(out: Path) -> dict[str, str]:
    return {name: str(x.dtype).removeprefix("torch.") for name, x in tensors_of(out).items()}


@pytest.mark.parametrize(
    ("base", "keys", "wanted"),
    [
        ("base", {}, "float32"),
        ("base16", {}, "bfloat16"),
        ("base16", {"dtype": "float32"}, "float32"),
        ("base", {"dtype": "float16"}, "float16"),
        ("base", {"dtype": "float32", "out_dtype": "bfloat16"}, "bfloat16"),
    ],
)
def test_everything_is_written_in_the_asked_dtype(
    models: Models, tmp_path: Path, base: str, keys: dict[str, str], wanted: str
) -> None:
    out = built(tmp_path, moe(models, "poet", "coder16", base=base, **keys))
    assert set(dtypes(out).values()) == {wanted}
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == wanted


@pytest.mark.parametrize(
    ("architecture", "wide"),
    [
        ("glm4_moe", ("e_score_correction_bias",)),
        ("ernie4_5_moe", ("e_score_correction_bias", "mlp.gate.weight")),
    ],
)
def test_what_loaders_keep_in_float32_stays_float32(
    models: Models, tmp_path: Path, architecture: str, wide: tuple[str, ...]
) -> None:
    found = dtypes(built(tmp_path, moe(models, architecture=architecture, dtype="bfloat16")))
    assert {n for n, d in found.items() if d == "float32"} == {n for n in found if n.endswith(wide)}
    assert sum(d == "float32" for d in found.values()) == LAYERS * len(wide)


def test_a_tied_head_is_not_written(models: Models, tmp_path: Path) -> None:
    write_llama(tmp_path / "tied", replace(SHAPE, tied=True), seed=4, dtype="F32")
    plan = moe(models) | {"base_model": str(tmp_path / "tied")}
    out = built(tmp_path, plan)
    assert "lm_head.weight" not in read(out)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_redundant_head_of_a_tied_base_is_left_out_with_a_note(models: Models, tmp_path: Path) -> None:
    config = json.loads((models.root / "base" / "config.json").read_text())
    write_checkpoint(tmp_path / "both", models.tensors("base"), config=config | {"tie_word_embeddings": True})
    path = written(tmp_path, moe(models) | {"base_model": str(tmp_path / "both")})
    compiled = mergegraph.compile_plan(path)
    assert "lm_head.weight" not in compiled.graph.outputs
    assert any("lm_head.weight is dropped" in note for note in compiled.summary()["notes"])


# ---- mistakes -------------------------------------------------------------------------------------


def mistakes(models: Models) -> dict[str, tuple[Any, str, str]]:
    """Name → plan, what the message says, what the line of the plan says that it is about."""
    shared = [{"source_model": models("clerk")}]
    prompted = [models.expert("clerk")]
    return {
        "too many per token": (moe(models, experts_per_token=3), "3, but there are 2", "experts_per_token"),
        "no prompts": (
            with_first(moe(models, gate_mode="hidden"), positive_prompts=[]),
            "needs positive_prompts",
            "{",
        ),
        "two shared experts": (
            moe(models, architecture="qwen2_moe", shared_experts=shared * 2),
            "qwen2_moe needs one shared expert",
            "{",
        ),
        "shared experts of mixtral": (
            moe(models, architecture="mixtral", shared_experts=shared),
            "mixtral has no shared experts",
            "{",
        ),
        "prompts of an open shared expert": (
            moe(models, gate_mode="cheap_embed", architecture="glm4_moe", shared_experts=prompted),
            "always on",
            "{",
        ),
        "no such architecture": (
            moe(models, architecture="mixtrall"),
            "is not an architecture of mixtures",
            "architecture",
        ),
        "not from dense": (moe(models, architecture="gpt_oss"), "cannot be made from dense", "architecture"),
        "cannot hold it": (
            moe(models, architecture="qwen3_moe"),
            "a norm for each query and key head",
            "architecture",
        ),
        "llama4 with routers": (
            moe(models, architecture="llama4_text"),
            "only while routers are zero",
            "gate_mode",
        ),
        "no such gate mode": (moe(models) | {"gate_mode": "hiden"}, "gate_mode must be one of", "gate_mode"),
        "a merge and a mixture": (
            moe(models) | {"merge_method": "linear"},
            "'merge_method' is for a merge",
            "merge_method",
        ),
        "a mixture in a merge": (
            models.merge() | {"gate_mode": "hidden"},
            "'gate_mode' is for a mixture of experts",
            "gate_mode",
        ),
        "noise below zero": (with_first(moe(models), noise_scale=-1), "noise_scale", "noise_scale"),
        "temperature of random rows": (
            moe(models, router={"temperature": 2.0}),
            "no effect with gate_mode random",
            "temperature",
        ),
        "no such model": (with_first(moe(models), source_model="/no/such"), "/no/such", "{"),
        "a bad merge inside": (
            with_first(
                moe(models), source_model={"merge_method": "linaer", "models": [{"model": models("poet")}]}
            ),
            "linaer",
            "linaer",
        ),
    }


def with_first(plan: Any, **keys: Any) -> Any:
    """The plan with keys of its first expert changed."""
    plan["experts"][0] |= keys
    return plan


@pytest.mark.parametrize("case", mistakes(Models(Path("nowhere"))))
def test_a_mistake_is_told_with_its_line(models: Models, tmp_path: Path, case: str) -> None:
    plan, message, about = mistakes(models)[case]
    path = written(tmp_path, plan)
    with pytest.raises(PlanError) as caught:
        mergegraph.run(path, tmp_path / "out")
    (problem,) = caught.value.problems
    assert message in problem.message
    assert problem.where is not None
    file, _, line = problem.where.rpartition(":")
    assert file == str(path)
    assert about in path.read_text().splitlines()[int(line) - 1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("what", "shape", "config", "message"),
    [
        ("hidden size", {"hidden": 64}, {}, "its hidden size is 64"),
        ("layers", {"layers": 3}, {}, "its number of layers is 3"),
        ("activation", {}, {"hidden_act": "gelu"}, "its activation is gelu"),
    ],
)
def test_models_that_do_not_go_together_are_told_with_the_line_of_the_expert(
    models: Models, tmp_path: Path, what: str, shape: dict[str, Any], config: dict[str, str], message: str
) -> None:
    write_llama(tmp_path / "odd", replace(SHAPE, **shape), seed=6, dtype="F32")
    settings = tmp_path / "odd" / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), **config}))
    path = written(tmp_path, with_first(moe(models), source_model=str(tmp_path / "odd")))
    with pytest.raises(PlanError) as caught:
        mergegraph.compile_plan(path)
    (problem,) = caught.value.problems
    assert "experts[0]" in problem.message and message in problem.message
    assert problem.where is not None
    line = int(problem.where.rpartition(":")[2])
    assert "odd" in "".join(path.read_text().splitlines()[line - 1 : line + 1]), what


def test_all_mistakes_are_told_at_once(models: Models, tmp_path: Path) -> None:
    plan = moe(models, "poet", "coder", "clerk", architecture="mixtral")
    plan["experts"][0]["source_model"] = "/no/such"
    plan["experts"][2]["source_model"] = "/nor/this"
    plan["experts_per_token"] = 9
    with pytest.raises(PlanError) as caught:
        mergegraph.compile_plan(written(tmp_path, plan))
    assert len(caught.value.problems) == 3


# ---- runs -----------------------------------------------------------------------------------------


class Crash(Exception):
    """Stands for the end of the process."""


def stops_after(finished: int) -> Callable[[Journal, Mapping[str, str]], None]:
    """`Journal.record` of a process that ends after so many tensors."""
    real, count = Journal.record, iter(range(finished))

    def record(self: Journal, checksums: Mapping[str, str]) -> None:
        for tensor, checksum in checksums.items():
            if next(count, None) is None:
                raise Crash
            real(self, {tensor: checksum})

    return record


@pytest.mark.parametrize("layout", ["per-expert", "stacked"])
@pytest.mark.parametrize("gate_mode", ["random", "cheap_embed"])
def test_a_run_that_was_killed_ends_with_the_same_bytes(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any, gate_mode: str
) -> None:
    plan = moe(models, "poet", "coder", gate_mode=gate_mode)
    plan["experts"][0] |= {"noise_scale": 0.1, "source_model": models.merge()}
    path = written(tmp_path, plan)
    options: dict[str, Any] = {"threads": 2, "shard_size": 60_000, "expert_layout": layout}
    mergegraph.run(path, tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record", stops_after(7))
        with pytest.raises(Crash):
            mergegraph.run(path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists() and staging_path(tmp_path / "out").exists()
    report = mergegraph.run(path, tmp_path / "out", **options)
    assert report.resumed == 7
    whole, resumed = contents(tmp_path / "whole"), contents(tmp_path / "out")
    for found in (whole, resumed):
        found.pop("README.md")  # has the directory's name
    assert whole == resumed


def test_damage_is_found_afterwards(models: Models, tmp_path: Path) -> None:
    out = built(tmp_path, moe(models, gate_mode="cheap_embed"), expert_layout="stacked")
    assert mergegraph.verify(out) == []
    file = out / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert len(mergegraph.verify(out)) == 1


def test_threads_do_not_change_a_bit(models: Models, tmp_path: Path) -> None:
    plan = moe(models, "poet", "coder", gate_mode="cheap_embed", seed=4)
    plan["experts"][1] |= {"noise_scale": 0.2}
    same(built(tmp_path, plan, name="a", threads=1), built(tmp_path, plan, name="b", threads=2))


def test_tensors_are_explained(models: Models, tmp_path: Path) -> None:
    plan = moe(models, gate_mode="cheap_embed")
    plan["experts"][0] |= {"noise_scale": 0.1, "residual_scale": 0.5, "source_model": models.merge()}
    apart = mergegraph.compile_plan(written(tmp_path, plan))
    stacked = mergegraph.compile_plan(written(tmp_path, plan), expert_layout="stacked")
    router = mergegraph.explain(apart, GATE)
    assert "router rows" in router and "gate" in router
    expert = mergegraph.explain(apart, LAYER + "block_sparse_moe.experts.0.w2.weight")
    assert "poet" in expert and "coder" in expert and "noise" in expert and "down_proj" in expert
    plain = mergegraph.explain(apart, LAYER + "block_sparse_moe.experts.1.w1.weight")
    assert "coder" in plain and "gate_proj" in plain and "copied" in plain
    stack = mergegraph.explain(stacked, LAYER + "mlp.experts.gate_up_proj")
    assert "poet" in stack and "up_proj" in stack
    for compiled in (apart, stacked):
        for name, output in compiled.graph.outputs.items():
            assert explain_text(name, output, compiled.labels)


def test_a_lock_of_a_mixture_gives_the_same_bytes(models: Models, tmp_path: Path) -> None:
    stage = {"name": "both", **models.merge("dare_ties", base_model=models("base"))}
    plan = with_first(moe(models, gate_mode="cheap_embed"), source_model="both", noise_scale=0.1)
    path = written(tmp_path, stage, plan)
    lock = write_lock(mergegraph.compile_plan(path, seed=9), tmp_path / "plan.lock.json")
    mergegraph.run(lock, tmp_path / "locked")
    mergegraph.run(path, tmp_path / "plain", seed=9)
    same(tmp_path / "locked", tmp_path / "plain")


def test_a_lock_keeps_the_layout_of_experts(models: Models, tmp_path: Path) -> None:
    compiled = mergegraph.compile_plan(written(tmp_path, moe(models)), expert_layout="stacked")
    mergegraph.run(write_lock(compiled, tmp_path / "plan.lock.json"), tmp_path / "out")
    assert LAYER + "mlp.experts.down_proj" in read(tmp_path / "out")


def test_a_run_whose_tokenizer_has_changed_is_not_resumed(
    models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its router rows would be partly those of the old one and partly those of the new."""
    base = write_llama(tmp_path / "base", SHAPE, seed=1, dtype="F32")
    path = written(tmp_path, moe(models, gate_mode="cheap_embed") | {"base_model": str(base)})
    options: dict[str, Any] = {"threads": 1, "shard_size": 60_000}
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "record", stops_after(14))
        with pytest.raises(Crash):
            mergegraph.run(path, tmp_path / "out", **options)
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    known = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {
        t: (i - 3 + 7) % (len(known) - 3) + 3 if i > 2 else i for t, i in known.items()
    }
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    mergegraph.run(path, tmp_path / "fresh", **options)
    try:
        mergegraph.run(path, tmp_path / "out", **options)
    except ResumeError:
        return
    same(tmp_path / "out", tmp_path / "fresh")


def test_layouts_hold_the_same_random_numbers(models: Models, tmp_path: Path) -> None:
    """A seed means one model, however it is stored."""
    plan = with_first(moe(models), noise_scale=0.1)
    apart = read(built(tmp_path, plan, name="apart"))
    stacked = read(built(tmp_path, plan, name="stacked", expert_layout="stacked"))
    assert np.array_equal(apart[GATE], stacked[LAYER + "mlp.gate.weight"])
    noisy = apart[LAYER + "block_sparse_moe.experts.0.w2.weight"]
    assert np.array_equal(noisy, stacked[LAYER + "mlp.experts.down_proj"][0])


@pytest.mark.parametrize("place", ["base", "expert", "shared expert", "backbone"])
def test_an_adapter_is_refused_as_in_a_merge(models: Models, tmp_path: Path, place: str) -> None:
    adapted = models("poet") + "+" + models("coder")
    shared = [{"source_model": adapted}] if place == "shared expert" else None
    plan = moe(models, architecture="qwen2_moe", shared_experts=shared or [{"source_model": models("clerk")}])
    if place == "base":
        plan["base_model"] = adapted
    elif place == "expert":
        plan["experts"][0]["source_model"] = adapted
    elif place == "backbone":
        plan["backbone"] = {
            "merge_method": "linear",
            "models": [{"model": adapted, "parameters": {"weight": 1}}],
        }
    with pytest.raises(PlanError, match="LoRA"):
        mergegraph.compile_plan(written(tmp_path, plan))


@pytest.mark.parametrize(
    ("plan", "about"),
    [
        ({"architecture": "granitemoe", "expert_layout": "per-expert"}, "expert_layout"),
        ({"architecture": "qwen2_moe"}, "architecture"),
    ],
)
def test_a_wish_that_a_family_cannot_fulfil_is_told_with_its_line(
    models: Models, tmp_path: Path, plan: dict[str, str], about: str
) -> None:
    path = written(tmp_path, moe(models, **plan))
    with pytest.raises(PlanError) as caught:
        mergegraph.compile_plan(path)
    (problem,) = caught.value.problems
    assert problem.where is not None
    assert about in path.read_text().splitlines()[int(problem.where.rpartition(":")[2]) - 1]


def test_an_output_that_is_a_mixture_can_be_merged_with_another(models: Models, tmp_path: Path) -> None:
    """What is written is a checkpoint like any other, whichever layout it has."""
    one = built(tmp_path, moe(models), name="one", expert_layout="stacked")
    two = built(tmp_path, moe(models, "coder", "clerk"), name="two")
    linear = {
        "merge_method": "linear",
        "models": [{"model": str(place), "parameters": {"weight": 1}} for place in (one, two)],
    }
    merged = read(built(tmp_path, linear, name="merged"))
    name = LAYER + "block_sparse_moe.experts.0.w1.weight"
    mean = (
        models.tensors("poet")[LAYER + "mlp.gate_proj.weight"]
        + models.tensors("coder")[LAYER + "mlp.gate_proj.weight"]
    ) / 2
    np.testing.assert_allclose(merged[name], mean, rtol=1e-6, atol=1e-8)


def test_a_mixture_cannot_be_the_base_of_another(models: Models, tmp_path: Path) -> None:
    one = built(tmp_path, moe(models), name="one")
    with pytest.raises(PlanError):
        mergegraph.compile_plan(written(tmp_path, moe(models) | {"base_model": str(one)}))


def test_a_fused_projection_of_a_merge_is_taken_apart_as_it_is_computed(tmp_path: Path) -> None:
    """Phi 3 stores gate and up together: an expert may be a merge of such models, statistics and all."""
    rng = np.random.default_rng(5)
    sizes = {"qkv_proj": (4 * 2 * 8, 16), "o_proj": (16, 4 * 8)}
    for name in ("a", "b"):
        tensors: dict[str, tuple[int, ...]] = dict.fromkeys(
            ("model.embed_tokens.weight", "lm_head.weight"), (32, 16)
        )
        tensors["model.norm.weight"] = (16,)
        for i in range(2):
            layer = f"model.layers.{i}."
            tensors |= {f"{layer}self_attn.qkv_proj.weight": sizes["qkv_proj"]}
            tensors |= {f"{layer}self_attn.o_proj.weight": sizes["o_proj"]}
            tensors |= {f"{layer}mlp.gate_up_proj.weight": (48, 16), f"{layer}mlp.down_proj.weight": (16, 24)}
            tensors |= {f"{layer}{n}_layernorm.weight": (16,) for n in ("input", "post_attention")}
        place = tmp_path / name
        place.mkdir()
        save_file(
            {n: rng.standard_normal(shape).astype(np.float32) for n, shape in tensors.items()},
            place / "model.safetensors",
        )
        config = {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_size": 16}
        config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        config |= {"intermediate_size": 24, "vocab_size": 32, "hidden_act": "silu", "rms_norm_eps": 1e-5}
        config |= {"tie_word_embeddings": False, "max_position_embeddings": 64, "rope_theta": 10000.0}
        config |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"}
        (place / "config.json").write_text(json.dumps(config))
    merge = {
        "merge_method": "slerp",
        "base_model": str(tmp_path / "a"),
        "models": [{"model": str(tmp_path / n)} for n in ("a", "b")],
        "parameters": {"t": 0.3},
    }
    plan = {"base_model": merge, "gate_mode": "zero", "architecture": "mixtral"}
    plan |= {"experts": [{"source_model": merge}, {"source_model": str(tmp_path / "b")}]}
    found = read(built(tmp_path, plan, name="moe"))
    whole = read(built(tmp_path, merge, name="merged"))
    gate_up = whole[LAYER + "mlp.gate_up_proj.weight"]
    assert np.array_equal(found[LAYER + "block_sparse_moe.experts.0.w1.weight"], gate_up[:24])
    assert np.array_equal(found[LAYER + "block_sparse_moe.experts.0.w3.weight"], gate_up[24:])
    qkv = whole[LAYER + "self_attn.qkv_proj.weight"]
    projections = [found[LAYER + f"self_attn.{n}_proj.weight"] for n in "qkv"]
    assert np.array_equal(np.concatenate(projections), qkv)


def test_running_the_base_model_is_part_of_the_memory_proof(models: Models, tmp_path: Path) -> None:
    """Transformers and a layer are held while rows are computed: a budget has to have room for them."""
    drawn = mergegraph.compile_plan(written(tmp_path, moe(models)))
    path = written(tmp_path, moe(models, gate_mode="hidden"))
    computed = mergegraph.compile_plan(path)
    assert computed.schedule.peak_bytes > drawn.schedule.peak_bytes + 300 * 2**20
    with pytest.raises(MemoryBudgetError, match="the router rows"):
        mergegraph.compile_plan(path, memory="200MiB")
    mergegraph.compile_plan(written(tmp_path, moe(models, gate_mode="cheap_embed")), memory="200MiB")
