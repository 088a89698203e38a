"""Plans of mixtures, run as users run them, and loaded by transformers.

Equal experts compute what the dense model does, for every family with every kind of model that it can
hold. Where a config key or an order of rows decides that, leaving it out is shown to matter.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergegraph
from mergegraph.architectures import moe_family
from mergegraph.errors import PlanError
from tests.real.test_moe_equality import EXPERTS, HELD_BY, TOKENS, VARIANTS, WRAPPED, Model

SMALL = 1e-4
"""Most that logits of equal experts may differ, relative to the largest: sums are in another order."""
BROKEN = 1e-2
"""Least difference that shows a trap; the reference's are from 0.02 up."""

Tensors = dict[str, Tensor]
Config = dict[str, Any]


@dataclass
class Workshop:
    """Dense models, made once each, and mixtures of copies of one."""

    root: Path
    models: dict[str, Model] = field(default_factory=dict)
    made: dict[tuple[str, str], Path] = field(default_factory=dict)
    differences: dict[tuple[str, str], float] = field(default_factory=dict)
    outputs: int = 0

    def model(self, variant: str) -> Model:
        if variant not in self.models:
            self.models[variant] = Model(variant, self.root / variant)
        return self.models[variant]

    def place(self) -> Path:
        self.outputs += 1
        return self.root / f"out{self.outputs}"

    def plan(self, variant: str, name: str, **changes: Any) -> Path:
        """Write the plan of a mixture of four copies; `changes` go on top."""
        model = str(self.model(variant).place)
        family = moe_family(name)
        assert family is not None
        zero = family.exact == "zero router"
        plan: dict[str, Any] = {
            "base_model": model,
            "architecture": name,
            "gate_mode": "zero" if zero else "random",
            "experts_per_token": EXPERTS if family.exact == "all active" else 2,
            "experts": [{"source_model": model}] * EXPERTS,
        }
        if not zero:
            plan["router"] = {"std": 0.1}
        if family.shared is not None and family.shared.absent == "refused":
            plan["shared_experts"] = [{"source_model": model, "residual_scale": 0}]
        plan |= changes
        if plan["gate_mode"] != "random":
            plan.pop("router", None)
        path = self.root / "plan.yml"
        path.write_text(json.dumps({k: v for k, v in plan.items() if v is not None}))
        return path

    def build(self, variant: str, name: str, **changes: Any) -> Path:
        """Run it."""
        out = self.place()
        mergegraph.run(self.plan(variant, name, **changes), out, threads=1)
        return out

    def plain(self, variant: str, name: str) -> Path:
        """The mixture without changes, made once; not to be written to."""
        if (variant, name) not in self.made:
            self.made[variant, name] = self.build(variant, name)
        return self.made[variant, name]

    def plain_difference(self, variant: str, name: str) -> float:
        """How far the mixture without changes is from the dense model."""
        if (variant, name) not in self.differences:
            self.differences[variant, name] = self.difference(variant, self.plain(variant, name))
        return self.differences[variant, name]

    def difference(self, variant: str, out: Path) -> float:
        """How far the mixture's logits are from the dense model's, relative to the largest."""
        model = self.model(variant)
        logits = load(out, torch.float32, model.auto)(input_ids=TOKENS).logits
        return float((logits - model.logits).abs().max() / model.logits.abs().max())


def load(out: Path, dtype: torch.dtype, auto: Any = hf.AutoModelForCausalLM) -> Any:
    """The model, whose every parameter was in the checkpoint, with nothing left over."""
    model, info = auto.from_pretrained(out, dtype=dtype, output_loading_info=True)
    left = {key: sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    assert not any(left.values()), left
    return model.eval()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("mixtures"))


@pytest.fixture(scope="module", autouse=True)
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEGRAPH_CACHE", str(tmp_path_factory.mktemp("code")))
        yield


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def pairs() -> list[tuple[str, str, str | None]]:
    """Every family once with every kind of model it can hold; once in the other layout it has."""
    found: dict[tuple[str, str], str] = {}
    for variant, names in HELD_BY.items():
        for name in names:
            found.setdefault((VARIANTS[variant][0], name), variant)
    every: list[tuple[str, str, str | None]] = [(v, name, None) for (_, name), v in found.items()]
    stacked: dict[str, str] = {}
    for variant, name, _ in every:
        family = moe_family(name)
        assert family is not None
        if family.names.per_expert and family.names.stacked_down is not None:
            stacked.setdefault(name, variant)
    return every + [(variant, name, "stacked") for name, variant in stacked.items()]


@pytest.mark.parametrize(("variant", "name", "layout"), pairs())
def test_equal_experts_compute_what_the_dense_model_does(
    workshop: Workshop, variant: str, name: str, layout: str | None
) -> None:
    if layout is None:
        assert workshop.plain_difference(variant, name) < SMALL
        return
    out = workshop.build(variant, name, expert_layout=layout)
    assert not any(".experts.0." in n for n in load_file(out / "model.safetensors"))
    assert workshop.difference(variant, out) < SMALL


@pytest.mark.parametrize(
    ("variant", "name"),
    [
        ("llama-llama3", "mixtral"),
        ("llama-tied", "mixtral"),
        ("llama-tied", "glm4_moe"),
        ("llama-biased", "granitemoe"),
        ("mistral-window", "qwen2_moe"),
        ("ministral-mixed", "qwen2_moe"),
        ("phi3-partial", "glm4_moe"),
        ("qwen2-mixed", "qwen2_moe"),
        ("qwen3-biased-tied", "qwen3_moe"),
        ("qwen3-window", "qwen3_moe"),
        ("qwen3-mixed", "dots1"),
        ("granite-biased", "granitemoehybrid"),
    ],
)
def test_what_is_special_about_a_model_is_carried_over(workshop: Workshop, variant: str, name: str) -> None:
    assert workshop.plain_difference(variant, name) < SMALL


@pytest.mark.parametrize(("variant", "name"), [("qwen3_5", "qwen3_5_moe_text"), ("gemma4", "gemma4_text")])
def test_the_language_model_of_a_multimodal_one_becomes_a_mixture_in_place(
    workshop: Workshop, variant: str, name: str
) -> None:
    assert variant in WRAPPED
    assert workshop.plain_difference(variant, name) < SMALL


@pytest.mark.parametrize(
    ("variant", "name", "layout"),
    [
        ("llama", "mixtral", "per-expert"),
        ("llama", "mixtral", "stacked"),
        ("llama", "glm4_moe", "per-expert"),
        ("qwen2", "qwen2_moe", "per-expert"),
        ("qwen2", "qwen2_moe", "stacked"),
        ("qwen3", "qwen3_moe", "per-expert"),
        ("granite", "granitemoe", "stacked"),
        ("ernie4_5", "ernie4_5_moe", "per-expert"),
        ("olmo2", "flex_olmo", "per-expert"),
        ("cohere2", "cohere2_moe", "per-expert"),
    ],
)
def test_in_bfloat16_zero_routers_change_no_bit(
    workshop: Workshop, variant: str, name: str, layout: str
) -> None:
    out = workshop.build(variant, name, gate_mode="zero", dtype="bfloat16", expert_layout=layout)
    assert torch.equal(load(out, torch.bfloat16)(TOKENS).logits, narrow(workshop, variant))


@pytest.mark.parametrize("name", ["mixtral", "glm4_moe"])
def test_where_chosen_weights_stay_float32_a_random_router_changes_no_bit_either(
    workshop: Workshop, name: str
) -> None:
    out = workshop.build("llama", name, dtype="bfloat16")
    assert torch.equal(load(out, torch.bfloat16)(TOKENS).logits, narrow(workshop, "llama"))


def narrow(workshop: Workshop, variant: str) -> Tensor:
    dense: Any = hf.AutoModelForCausalLM.from_pretrained(workshop.model(variant).place, dtype=torch.bfloat16)
    logits: Tensor = dense.eval()(TOKENS).logits
    return logits


# ---- traps: what happens without ------------------------------------------------------------------


def setting(**values: Any) -> Callable[[Config, Tensors], None]:
    """Config values as they would be without care: another value, or (with ``...``) none."""

    def change(config: Config, _: Tensors) -> None:
        for key, value in values.items():
            config.pop(key, None)
            if value is not ...:
                config[key] = value

    return change


def tensors(part: str, change: Callable[[Tensor], Tensor]) -> Callable[[Config, Tensors], None]:
    """Tensors as they would be without care."""

    def changed(_: Config, held: Tensors) -> None:
        found = [name for name in held if part in name]
        assert found, part
        held |= {name: change(held[name]).contiguous() for name in found}

    return changed


def halves(rows: Tensor) -> Tensor:
    """Rows of heads of 16 whose rotary pairs lie apart, put side by side again."""
    return rows.reshape(-1, 2, 8, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def plain_rope(config: Config, _: Tensors) -> None:
    for key in ("rope_scaling", "rope_parameters", "rope_theta"):
        config.pop(key, None)


def half_rotated(config: Config, _: Tensors) -> None:
    """What the class assumes where the config does not say how much of a head is rotated."""
    config.pop("partial_rotary_factor")
    config["rope_parameters"].pop("partial_rotary_factor")


TRAPS: dict[str, tuple[str, str, Callable[[Config, Tensors], None]]] = {
    "sliding window": ("mistral-window", "mixtral", setting(sliding_window=None)),
    "sliding window of a qwen2": (
        "qwen2-mixed",
        "qwen2_moe",
        setting(use_sliding_window=False, layer_types=["full_attention"] * 2),
    ),
    "which layers slide": (
        "qwen2-mixed",
        "qwen2_moe",
        setting(layer_types=["sliding_attention"] * 2, max_window_layers=0),
    ),
    "sliding window of a qwen3": ("qwen3-window", "qwen3_moe", setting(use_sliding_window=False)),
    "which layers of a cohere2 slide": (
        "cohere2",
        "cohere2_moe",
        setting(layer_types=["full_attention"] * 2),
    ),
    "scaled rope": ("llama-llama3", "mixtral", plain_rope),
    "theta": ("llama-heads", "mixtral", plain_rope),
    "rotated part of heads": ("llama", "glm4_moe", half_rotated),
    "norm_topk_prob of qwen2_moe": ("qwen2", "qwen2_moe", setting(norm_topk_prob=False)),
    "norm_topk_prob of qwen3_moe": ("qwen3", "qwen3_moe", setting(norm_topk_prob=...)),
    "norm_topk_prob of dots1": ("qwen3", "dots1", setting(norm_topk_prob=...)),
    "routed_scaling_factor": ("deepseek_v3", "deepseek_v3", setting(routed_scaling_factor=...)),
    "attention_multiplier": ("llama", "granitemoe", setting(attention_multiplier=...)),
    "multipliers": ("granite", "granitemoe", setting(embedding_multiplier=..., residual_multiplier=...)),
    "position_embedding_type": ("granite", "granitemoehybrid", setting(position_embedding_type=...)),
    "layers without rope": ("smollm3", "llama4_text", setting(no_rope_layers=...)),
    "layer norms of cohere2_moe": ("cohere2", "cohere2_moe", setting(rms_norm_eps=1e-5)),
    "biases": ("qwen2", "qwen2_moe", tensors("_proj.bias", torch.zeros_like)),
    "biases of a glm": ("glm", "glm4_moe", tensors("q_proj.bias", torch.zeros_like)),
    "pairs of rows": ("ernie4_5", "mixtral", tensors("q_proj.weight", halves)),
    "pairs of rows, the other way": ("llama-heads", "ernie4_5_moe", tensors("k_proj.weight", halves)),
    "norms of a gemma": ("gemma", "mixtral", tensors("norm.weight", lambda x: x - 1)),
    "embeddings of a gemma": ("gemma", "mixtral", tensors("embed_tokens", lambda x: x / 32**0.5)),
    "shared expert is zero": (
        "llama",
        "glm4_moe",
        tensors("shared_experts", lambda x: torch.full_like(x, 0.1)),
    ),
    "shared expert behind a sigmoid": (
        "qwen2",
        "qwen2_moe",
        tensors("shared_expert.down", lambda x: x + 0.1),
    ),
    "input scale of llama4": ("llama", "llama4_text", tensors("gate_up_proj", lambda x: x / 2)),
    "activation": ("gemma", "mixtral", setting(hidden_act="silu")),
}


UNLOADABLE: dict[str, tuple[str, str, Callable[[Config, Tensors], None]]] = {
    "head_dim": ("llama-heads", "mixtral", setting(head_dim=...)),
    "tied head": ("llama-tied", "mixtral", setting(tie_word_embeddings=...)),
    "number of experts": ("llama", "glm4_moe", setting(n_routed_experts=...)),
    "first layer of ernie": ("ernie4_5", "ernie4_5_moe", setting(moe_layer_start_index=...)),
    "first layer of deepseek": ("deepseek_v3", "deepseek_v3", setting(first_k_dense_replace=...)),
    "q/k norms of glm4_moe": ("qwen3", "glm4_moe", setting(use_qk_norm=...)),
}


def spoilt(
    workshop: Workshop, case: tuple[str, str, Callable[[Config, Tensors], None]], place: Path
) -> tuple[str, Path]:
    """A good mixture, and a copy of it that lacks care in one respect."""
    variant, name, spoil = case
    good = workshop.plain(variant, name)
    assert workshop.plain_difference(variant, name) < SMALL
    config = json.loads((good / "config.json").read_text())
    held = load_file(good / "model.safetensors")
    spoil(config, held)
    save_file(held, place / "model.safetensors", metadata={"format": "pt"})
    (place / "config.json").write_text(json.dumps(config))
    return variant, place


@pytest.mark.parametrize("trap", TRAPS)
def test_without_care_the_logits_would_be_others(workshop: Workshop, tmp_path: Path, trap: str) -> None:
    assert workshop.difference(*spoilt(workshop, TRAPS[trap], tmp_path)) > BROKEN


@pytest.mark.parametrize("trap", UNLOADABLE)
def test_without_care_the_model_would_not_load(workshop: Workshop, tmp_path: Path, trap: str) -> None:
    variant, place = spoilt(workshop, UNLOADABLE[trap], tmp_path)
    with pytest.raises((AssertionError, RuntimeError), match=r"missing_keys|unexpected_keys|mismatched"):
        load(place, torch.float32, workshop.model(variant).auto)


# ---- what cannot be written, and what has to be asked for -----------------------------------------

IMPOSSIBLE: dict[str, tuple[str, str, str]] = {
    "biases in mixtral": ("llama-biased", "mixtral", "biases|bias"),
    "output bias in qwen2_moe": ("llama-biased", "qwen2_moe", "output projection"),
    "biases in qwen": ("qwen2", "mixtral", "biases on the query, key and value"),
    "window in glm4_moe": ("mistral-window", "glm4_moe", "sliding-window"),
    "mixed window in mixtral": ("ministral-mixed", "mixtral", "some of the layers only"),
    "mixed window in qwen3_moe": ("qwen3-mixed", "qwen3_moe", "some of the layers only"),
    "norms of heads in mixtral": ("qwen3", "mixtral", "a norm for each query and key head"),
    "no norms of heads": ("llama", "qwen3_moe", "always has a norm for each query and key head"),
    "partial rotation in mixtral": ("phi3-partial", "mixtral", "only a part is rotated"),
    "multipliers in mixtral": ("granite", "mixtral", "multipliers"),
    "post-norms in olmoe": ("olmo2", "olmoe", "cannot be made from dense models|norm"),
    "latent attention": ("llama", "deepseek_v3", "latent attention"),
    "layer norms in phimoe": ("phi3", "phimoe", "cannot be made from dense models"),
    "clamped experts": ("llama", "gpt_oss", "cannot be made from dense models"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_what_a_family_cannot_express_is_refused_with_the_reason(workshop: Workshop, case: str) -> None:
    variant, name, reason = IMPOSSIBLE[case]
    path = workshop.plan(variant, "mixtral", architecture=name)
    with pytest.raises(PlanError, match=reason) as caught:
        mergegraph.compile_plan(path)
    assert all(problem.where for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("variant", "name", "changes", "reason"),
    [
        ("deepseek_v2", "deepseek_v2", {"experts_per_token": 2}, "experts_per_token: 4"),
        ("jamba", "jamba", {"experts_per_token": 2}, "experts_per_token: 4"),
        ("llama", "llama4_text", {"gate_mode": "random"}, "only while routers are zero"),
        ("llama", "qwen2_moe", {"shared_experts": None}, "qwen2_moe needs one shared expert"),
        (
            "llama",
            "mixtral",
            {"shared_experts": [{"source_model": "MODEL"}]},
            "mixtral has no shared experts",
        ),
        ("gemma4_text", "gemma4_text", {"expert_layout": "per-expert"}, "only stored with stacked experts"),
    ],
)
def test_settings_that_would_not_be_exact_are_refused(
    workshop: Workshop, variant: str, name: str, changes: dict[str, Any], reason: str
) -> None:
    model = str(workshop.model(variant).place)
    if changes.get("shared_experts"):
        changes = {"shared_experts": [{"source_model": model}]}
    with pytest.raises(PlanError) as caught:
        mergegraph.compile_plan(workshop.plan(variant, name, **changes))
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("name", "routed", "shared"),
    [("qwen2_moe", 0.5, 1.0), ("glm4_moe", 0.5, 0.5), ("granitemoeshared", 0.25, 0.75)],
)
def test_a_shared_expert_takes_a_part_of_the_output(
    workshop: Workshop, name: str, routed: float, shared: float
) -> None:
    """Routed and shared copies scaled so that they sum to one; behind a sigmoid of zero there is a half."""
    model = str(workshop.model("llama").place)
    out = workshop.build(
        "llama",
        name,
        experts=[{"source_model": model, "residual_scale": routed}] * EXPERTS,
        shared_experts=[{"source_model": model, "residual_scale": shared}],
    )
    assert workshop.difference("llama", out) < SMALL


def test_two_shared_experts_lie_side_by_side(workshop: Workshop) -> None:
    model = str(workshop.model("llama").place)
    part = {"source_model": model, "residual_scale": 0.25}
    out = workshop.build(
        "llama",
        "glm4_moe",
        experts=[{"source_model": model, "residual_scale": 0.5}] * EXPERTS,
        shared_experts=[part, part],
    )
    assert json.loads((out / "config.json").read_text())["n_shared_experts"] == 2
    assert workshop.difference("llama", out) < SMALL


def test_what_transformers_saves_again_is_what_was_written(workshop: Workshop, tmp_path: Path) -> None:
    """In its default form it writes one tensor per expert, under the very names and with the same bits."""
    out = workshop.plain("llama", "mixtral")
    load(out, torch.float32).save_pretrained(tmp_path)
    ours, theirs = (load_file(place / "model.safetensors") for place in (out, tmp_path))
    assert sorted(ours) == sorted(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_sidecars_of_the_base_come_along(workshop: Workshop, tmp_path: Path) -> None:
    shutil.copytree(workshop.model("llama").place, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    model = str(tmp_path / "model")
    out = workshop.build("llama", "mixtral", base_model=model, experts=[{"source_model": model}] * 2)
    assert (out / "tokenizer.json").read_text() == "{}"
    assert (out / "generation_config.json").exists()
