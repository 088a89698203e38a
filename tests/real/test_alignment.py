"""Mixtures whose experts are in no common order are merged expert by expert after all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import mergegraph
from mergegraph.errors import PlanError
from tests.real.mixtures import (
    EXPERTS,
    LAYOUTS,
    MIXTURES,
    Mixture,
    Mixtures,
    close,
    load,
    logits,
    random_model,
    run,
    saved,
    tensors_of,
)

ORDERS = ([3, 0, 5, 1, 4, 2], [1, 2, 0, 5, 3, 4], [5, 4, 3, 2, 1, 0])
KINDS = [
    (name, kind) for name, kind in LAYOUTS if name in ("mixtral", "ernie4_5_moe", "granitemoe", "gpt_oss")
]


@pytest.fixture(scope="module", autouse=True)
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEGRAPH_CACHE", str(tmp_path_factory.mktemp("code")))
        yield


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def mixtures(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mixture]:
    return Mixtures(tmp_path_factory.mktemp("mixtures"))


@pytest.fixture(scope="module")
def permuted(
    mixtures: Mapping[str, Mixture], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Mapping[str, Path]]:
    """The same mixtures with the experts of each layer in another order, in every layout."""

    class Made(dict[str, Mapping[str, Path]]):
        def __missing__(self, name: str) -> Mapping[str, Path]:
            with torch.no_grad():
                model = load(next(iter(mixtures[name].places.values())))
                permute(model)
                assert close(logits(model), logits(mixtures[name].model))
                self[name] = saved(model, name, tmp_path_factory.mktemp(name))
            return self[name]

    return Made()


def permute(model: Any, noise: float = 0.0) -> None:
    """Give the experts of every layer another order; nothing else has as many entries as there are."""
    for name, x in (*model.named_parameters(), *model.named_buffers()):
        found = [i for i, size in enumerate(x.shape) if size == EXPERTS and set(x.shape[:i]) <= {1}]
        if ".layers." in name and found:
            order = torch.tensor(ORDERS[int(name.split(".layers.")[1].split(".")[0])])
            x.copy_(x.index_select(found[0], order))
        x.add_(noise * torch.randn_like(x))


def aligned(a: Path, b: Path, **more: Any) -> dict[str, Any]:
    models = [{"model": str(m), "parameters": {"weight": 1.0}} for m in (a, b)]
    return {"surgery": "align", "merge_method": "linear", "models": models, **more}


@pytest.mark.parametrize("by", ["router", "weights"])
@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_a_model_and_itself_in_another_order_merge_into_that_model(
    mixtures: Mapping[str, Mixture],
    permuted: Mapping[str, Mapping[str, Path]],
    tmp_path: Path,
    name: str,
    kind: str,
    by: str,
) -> None:
    a, b = mixtures[name].places[kind], permuted[name][kind]
    merged = run(aligned(a, b, by=by), tmp_path / "out")
    assert close(logits(merged), logits(mixtures[name].model))
    before = tensors_of(a)
    assert all(torch.equal(x, before[n]) for n, x in tensors_of(tmp_path / "out").items())


@pytest.mark.parametrize("name", ["deepseek_v3", "lfm2_moe"])
def test_correction_biases_and_layers_without_experts_follow(
    mixtures: Mapping[str, Mixture], permuted: Mapping[str, Mapping[str, Path]], tmp_path: Path, name: str
) -> None:
    a, b = mixtures[name].places["per-expert"], permuted[name]["stacked"]
    run(aligned(a, b), tmp_path / "out")
    before = tensors_of(a)
    after = tensors_of(tmp_path / "out")
    assert after.keys() == before.keys()
    assert all(torch.equal(x, before[n]) for n, x in after.items())


@pytest.mark.parametrize("kinds", [("per-expert", "stacked"), ("stacked", "per-expert")])
@pytest.mark.parametrize("by", ["router", "weights"])
def test_layouts_may_differ_and_the_reference_says_the_order(
    mixtures: Mapping[str, Mixture],
    permuted: Mapping[str, Mapping[str, Path]],
    tmp_path: Path,
    kinds: tuple[str, str],
    by: str,
) -> None:
    a, b = mixtures["mixtral"].places[kinds[0]], permuted["mixtral"][kinds[1]]
    plan = aligned(a, b, by=by, reference=str(b), expert_layout=kinds[1])
    run(plan, tmp_path / "out")
    before = tensors_of(b)
    after = tensors_of(tmp_path / "out")
    assert after.keys() == before.keys()
    assert all(torch.equal(x, before[n]) for n, x in after.items())


@pytest.mark.parametrize("by", ["router", "weights"])
def test_experts_are_found_again_under_noise(
    mixtures: Mapping[str, Mixture], tmp_path: Path, by: str
) -> None:
    a = mixtures["mixtral"].places["per-expert"]
    model = load(a)
    torch.manual_seed(3)
    permute(model, noise=0.05)
    b = saved(model, "mixtral", tmp_path)["stacked"]
    plan = tmp_path / "plan.yml"
    plan.write_text(json.dumps(aligned(a, b, by=by)))
    compiled = mergegraph.compile_plan(plan)
    (note,) = [n for n in compiled.report.notes if "matched" in n]
    assert note.endswith(": 11 of 12 experts are matched with one of another number")
    mergegraph.run(plan, tmp_path / "out")
    before = tensors_of(a)
    worst = max(float((x - before[n]).abs().max()) for n, x in tensors_of(tmp_path / "out").items())
    assert worst < 0.15, "half of the noise, not the distance between two experts"


@pytest.mark.parametrize("method", ["slerp", "ties", "dare_ties"])
def test_any_method_sees_aligned_experts(
    mixtures: Mapping[str, Mixture], permuted: Mapping[str, Mapping[str, Path]], tmp_path: Path, method: str
) -> None:
    a, b = mixtures["mixtral"].places["per-expert"], permuted["mixtral"]["per-expert"]
    plan = {"surgery": "align", "merge_method": method, "base_model": str(a), "models": [str(b)]}
    plan["parameters"] = {"t": 0.5} if method == "slerp" else {"weight": 1.0, "density": 0.5}
    plan["models"] = [str(a), str(b)] if method == "slerp" else [str(b)]
    assert close(logits(run(plan, tmp_path / "out")), logits(mixtures["mixtral"].model))


# ---- what cannot be aligned ------------------------------------------------------------------------


def problem(plan: dict[str, Any], tmp_path: Path) -> str:
    file = tmp_path / "plan.yml"
    file.write_text(json.dumps(plan))
    with pytest.raises(PlanError) as caught:
        mergegraph.compile_plan(file)
    return str(caught.value)


@pytest.mark.parametrize("by", ["router", "weights"])
def test_numbers_of_experts_must_agree(mixtures: Mapping[str, Mixture], tmp_path: Path, by: str) -> None:
    a = mixtures["mixtral"].places["per-expert"]
    with torch.no_grad():
        random_model("mixtral", {**MIXTURES["mixtral"][1], "num_local_experts": 5}).save_pretrained(
            tmp_path / "b"
        )
    said = problem(aligned(a, tmp_path / "b", by=by), tmp_path)
    assert f"{tmp_path / 'b'} does not have as many experts in each layer as {a}" in said


@pytest.mark.parametrize("by", ["router", "weights"])
@pytest.mark.parametrize("kind", ["per-expert", "stacked"])
def test_families_must_agree(mixtures: Mapping[str, Mixture], tmp_path: Path, by: str, kind: str) -> None:
    a, b = (mixtures[name].places[kind] for name in ("mixtral", "qwen3_moe"))
    said = problem(aligned(a, b, by=by), tmp_path)
    assert f"{b} (qwen3_moe) is not of the family of {a} (mixtral)" in said


@pytest.mark.parametrize("by", ["router", "weights"])
def test_families_that_are_not_known_are_refused(
    mixtures: Mapping[str, Mixture], permuted: Mapping[str, Mapping[str, Path]], tmp_path: Path, by: str
) -> None:
    places = []
    for name, made in (("a", mixtures["mixtral"].places), ("b", permuted["mixtral"])):
        (tmp_path / name).mkdir()
        for file in made["per-expert"].iterdir():
            (tmp_path / name / file.name).write_bytes(file.read_bytes())
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps(config | {"model_type": "mystery"}))
        places.append(tmp_path / name)
    said = problem(aligned(*places, by=by), tmp_path)
    assert "is of no known family of mixtures (model_type: mystery)" in said


def test_a_model_that_is_nowhere_is_said(mixtures: Mapping[str, Mixture], tmp_path: Path) -> None:
    a = mixtures["mixtral"].places["per-expert"]
    said = problem(aligned(a, tmp_path / "nowhere"), tmp_path)
    assert "nowhere" in said
