"""Surgery on mixtures that transformers saves and loads: what must stay the same does, to the last logit.

Everything is checked from outside: models are made, permuted and masked in transformers, and what
`mergegraph.run` writes is loaded by it without a missing or an unexpected tensor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import mergegraph
from mergegraph.errors import PlanError
from tests.real.mixtures import (
    EXPERTS,
    LAYOUTS,
    Mixture,
    Mixtures,
    close,
    config_of,
    load,
    logits,
    random_model,
    routers_of,
    run,
    tensors_of,
)
from tests.real.test_moe_equality import VARIANTS


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


# ---- upcycle ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dense:
    place: Path
    logits: Tensor


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Dense]:
    class Made(dict[str, Dense]):
        def __missing__(self, variant: str) -> Dense:
            place = tmp_path_factory.mktemp(variant)
            with torch.no_grad():
                model = random_model(*VARIANTS[variant])
                model.save_pretrained(place)
                self[variant] = Dense(place, logits(load(place)))
            return self[variant]

    return Made()


PAIRS = [
    ("llama", "mixtral", None),
    ("llama", "mixtral", "stacked"),
    ("llama-biased", "granitemoe", None),
    ("llama", "glm4_moe", None),
    ("mistral-window", "mixtral", None),
    ("phi3", "mixtral", None),
    ("qwen2", "qwen2_moe", None),
    ("qwen3-biased-tied", "qwen3_moe", None),
    ("qwen3", "qwen3_moe", "stacked"),
    ("qwen3", "dots1", None),
    ("granite", "granitemoeshared", None),
    ("ernie4_5", "ernie4_5_moe", None),
    ("olmo2", "flex_olmo", None),
    ("cohere2", "cohere2_moe", None),
    ("hunyuan_v1_dense", "hunyuan_v1_moe", None),
    ("lfm2", "lfm2_moe", None),
    ("qwen3_5_text", "qwen3_5_moe_text", None),
    ("gemma4_text", "gemma4_text", None),
    ("deepseek_v3", "deepseek_v3", None),
]
HALVES = ("phi3",)
"""Families whose gate and up projections are one tensor."""


def upcycled(dense: Mapping[str, Dense], variant: str, architecture: str, **more: Any) -> dict[str, Any]:
    plan = {"surgery": "upcycle", "model": str(dense[variant].place), "architecture": architecture}
    return {**plan, "experts": 4, "experts_per_token": 2, "router": {"std": 1.0}, **more}


@pytest.mark.parametrize(("variant", "architecture", "layout"), PAIRS)
def test_copies_of_a_dense_model_answer_as_it_does(
    dense: Mapping[str, Dense], tmp_path: Path, variant: str, architecture: str, layout: str | None
) -> None:
    plan = upcycled(dense, variant, architecture)
    model = run(plan, tmp_path / "out", expert_layout=layout)
    assert close(logits(model), dense[variant].logits)
    routers = routers_of(model, 4)
    assert routers and all(x.std() > 0.5 for x in routers), "all experts are used"


FINER = [
    (*pair, active)
    for pair in PAIRS
    for active in (4, 8)
    if pair[0] not in HALVES and pair[1] != "dots1" and (active == 8 or pair[2] is None)
]


@pytest.mark.parametrize(("variant", "architecture", "layout", "active"), FINER)
def test_finer_experts_answer_as_the_dense_model_does(
    dense: Mapping[str, Dense],
    tmp_path: Path,
    variant: str,
    architecture: str,
    layout: str | None,
    active: int,
) -> None:
    """Two copies in four parts each; the parts of a copy have equal router rows, so they go together."""
    plan = upcycled(dense, variant, architecture, experts=8, experts_per_token=active, granularity=4)
    if architecture == "lfm2_moe":
        # It adds 1e-6 to what it divides by, which counts where large rows make the weights of all small.
        plan["router"] = {"std": 0.2}
    model = run(plan, tmp_path / "out", expert_layout=layout)
    for rows in routers_of(model, 8):
        first, second = rows[:4], rows[4:]
        assert torch.equal(first, first[:1].expand_as(first))
        assert torch.equal(second, second[:1].expand_as(second))
        assert not torch.equal(first, second)
    assert close(logits(model), dense[variant].logits)


@pytest.mark.parametrize(("variant", "architecture"), [("deepseek_v2", "deepseek_v2"), ("jamba", "jamba")])
@pytest.mark.parametrize("granularity", [1, 4])
def test_where_weights_do_not_add_up_to_one_all_experts_must_be_used(
    dense: Mapping[str, Dense], tmp_path: Path, variant: str, architecture: str, granularity: int
) -> None:
    plan = upcycled(dense, variant, architecture, experts=4, experts_per_token=4, granularity=granularity)
    assert close(logits(run(plan, tmp_path / "out")), dense[variant].logits)


def test_a_merge_is_upcycled_without_being_written(dense: Mapping[str, Dense], tmp_path: Path) -> None:
    merge = {"merge_method": "passthrough", "models": [{"model": str(dense["llama"].place)}]}
    plan = upcycled(dense, "llama", "mixtral", model=merge)
    assert close(logits(run(plan, tmp_path / "out")), dense["llama"].logits)


def test_fused_projections_are_not_split_further(dense: Mapping[str, Dense], tmp_path: Path) -> None:
    plan = tmp_path / "p.yml"
    plan.write_text(json.dumps(upcycled(dense, "phi3", "mixtral", granularity=2)))
    with pytest.raises(PlanError, match="stores gate and up projections in one tensor"):
        mergegraph.compile_plan(plan)


def test_neurons_must_divide_into_equal_parts(dense: Mapping[str, Dense], tmp_path: Path) -> None:
    plan = tmp_path / "p.yml"
    wanted = upcycled(dense, "llama", "mixtral", experts=10, granularity=5, experts_per_token=5)
    plan.write_text(json.dumps(wanted))
    with pytest.raises(PlanError, match="48 neurons cannot be split into 5 equal parts"):
        mergegraph.compile_plan(plan)


# ---- prune -----------------------------------------------------------------------------------------


class Masked(TorchFunctionMode):
    """Routers see no more than the given experts."""

    def __init__(self, keep: Mapping[int, Sequence[int]]) -> None:
        super().__init__()
        self.dropped = {i: [e for e in range(EXPERTS) if e not in kept] for i, kept in keep.items()}

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.linear and id(args[1]) in self.dropped:
            found[..., self.dropped[id(args[1])]] = -torch.inf
        return found


def masked_logits(model: Any, keep: Sequence[Sequence[int]]) -> Tensor:
    """The logits with routers masked, layer by layer; corrections of the choice are masked, too."""
    routers = routers_of(model)
    assert len(routers) == len(keep)
    state = [x for n, x in (*model.named_parameters(), *model.named_buffers()) if "bias" in n]
    corrections = [x for x in state if x.numel() == EXPERTS]
    before = [x.clone() for x in corrections]
    for x, kept in zip(corrections, keep, strict=False):
        x.view(-1)[[e for e in range(EXPERTS) if e not in kept]] = -torch.inf
    with Masked({id(router): kept for router, kept in zip(routers, keep, strict=True)}):
        found = logits(model)
    for x, old in zip(corrections, before, strict=True):
        x.copy_(old)
    return found


def layers_with_experts(place: Path) -> list[int]:
    found = {n.split(".")[2]: None for n in tensors_of(place) if "router" in n or "gate.w" in n}
    return sorted(map(int, found))


KEPT = ([0, 2, 3, 5], [1, 2, 4, 5], [0, 1, 3, 4])


@pytest.mark.parametrize(("name", "kind"), LAYOUTS)
def test_pruning_experts_is_masking_them_in_the_router(
    mixtures: Mapping[str, Mixture], tmp_path: Path, name: str, kind: str
) -> None:
    place = mixtures[name].places[kind]
    layers = layers_with_experts(place)
    keep = {layer: KEPT[i] for i, layer in enumerate(layers)}
    pruned = run({"surgery": "prune", "model": str(place), "keep": keep}, tmp_path / "out")
    assert len(routers_of(pruned, 4)) == len(layers) > 0
    assert close(logits(pruned), masked_logits(mixtures[name].model, list(keep.values())))


@pytest.mark.parametrize(
    ("name", "kind"), [("mixtral", "stacked"), ("granitemoe", "own"), ("gpt_oss", "own")]
)
@pytest.mark.parametrize("keep", [[0, 1, 2], [2, 3, 4], [5]])
def test_neighbours_in_a_stack_may_stay(
    mixtures: Mapping[str, Mixture], tmp_path: Path, name: str, kind: str, keep: list[int]
) -> None:
    plan = {"surgery": "prune", "model": str(mixtures[name].places[kind]), "keep": keep}
    pruned = run(plan, tmp_path / "out")
    if len(keep) > 1:
        assert close(logits(pruned), masked_logits(mixtures[name].model, [keep, keep]))
    before, after = tensors_of(mixtures[name].places[kind]), tensors_of(tmp_path / "out")
    for tensor, x in after.items():
        assert torch.equal(x, before[tensor][keep] if before[tensor].shape != x.shape else before[tensor])


@pytest.mark.parametrize(("name", "kind"), LAYOUTS)
def test_experts_and_routers_in_another_order_give_the_same_model(
    mixtures: Mapping[str, Mixture], tmp_path: Path, name: str, kind: str
) -> None:
    place = mixtures[name].places[kind]
    plan = {"surgery": "prune", "model": str(place), "keep": [3, 0, 5, 1, 4, 2]}
    moved = run(plan, tmp_path / "out")
    assert close(logits(moved), logits(mixtures[name].model))
    for router, before in zip(routers_of(moved), routers_of(mixtures[name].model), strict=True):
        assert torch.equal(router, before[[3, 0, 5, 1, 4, 2]])


@pytest.mark.parametrize(
    ("name", "kind"), [("mixtral", "per-expert"), ("mixtral", "stacked"), ("gpt_oss", "own")]
)
def test_keeping_all_experts_changes_no_bit(
    mixtures: Mapping[str, Mixture], tmp_path: Path, name: str, kind: str
) -> None:
    place = mixtures[name].places[kind]
    run({"surgery": "prune", "model": str(place), "keep": list(range(EXPERTS))}, tmp_path / "out")
    before, after = tensors_of(place), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert all(torch.equal(x, before[n]) for n, x in after.items())
    changed = {k for k, v in config_of(tmp_path / "out").items() if config_of(place).get(k) != v}
    assert changed <= {"transformers_version"}
