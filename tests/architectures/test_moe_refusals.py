"""What cannot be built is refused, with the reason and what works instead."""

from __future__ import annotations

from typing import Any

import pytest

from mergegraph.architectures import moe_family
from mergegraph.architectures.dense import Dense
from mergegraph.architectures.fit import choose
from mergegraph.architectures.moe import MoeFamily, Obstacle, Options
from mergegraph.architectures.recipe import recipe
from tests.architectures.dense_models import dense

QWEN3_MIXED = dense("qwen3", use_sliding_window=True, sliding_window=5, max_window_layers=1)
OPTIONS = Options(4, 2)


def refusals(name: str, base: Dense, options: Options = OPTIONS, **models: list[Dense]) -> str:
    family = moe_family(name)
    assert family is not None
    found = recipe(family, base, models.get("experts", [base]), models.get("shared", []), options)
    assert isinstance(found, tuple), "it was not refused"
    return "\n".join(map(str, found))


IMPOSSIBLE: list[tuple[str, Dense, str, str | None]] = [
    ("mixtral", dense("llama", biases="qkvo", attention_bias=True), "biases on the query", "granitemoe"),
    ("mixtral", dense("qwen2", biases="qkv"), "biases on the query", "qwen2_moe"),
    ("mixtral", dense("phi3", partial_rotary_factor=0.5), "only a part is rotated", "glm4_moe"),
    ("mixtral", dense("granite"), "multipliers", "granitemoe"),
    ("mixtral", dense("gemma2"), "norms before and after both", None),
    ("mixtral", dense("gemma3_text"), "norms before and after both", None),
    ("mixtral", dense("smollm3", no_rope_layer_interval=2), "without rotary embedding", "llama4_text"),
    ("mixtral", dense("starcoder2"), "without a gate projection", None),
    ("mixtral", dense("nemotron"), "without a gate projection", None),
    ("mixtral", dense("olmo"), "norms without weights", None),
    ("mixtral", dense("deepseek_v3"), "latent attention", "deepseek_v3"),
    ("qwen2_moe", dense("llama", biases="qkvo", attention_bias=True), "output projection", "granitemoe"),
    ("qwen3_moe", dense("llama"), "always has a norm for each query and key head", "mixtral"),
    ("qwen3_moe", QWEN3_MIXED, "some of the layers only", "dots1"),
    ("dots1", dense("llama"), "always has a norm for each query and key head", "mixtral"),
    ("hunyuan_v1_moe", dense("llama"), "after the rotary embedding", "mixtral"),
    ("deepseek_v2", dense("llama"), "always has latent attention", "mixtral"),
    ("deepseek_v3", dense("llama"), "always has latent attention", "mixtral"),
    ("deepseek", dense("llama", head_dim=8), "heads of another size", "mixtral"),
    ("deepseek", dense("mistral", sliding_window=5), "sliding-window attention", "mixtral"),
    ("glm4_moe", dense("glm4"), "norms before and after both", None),
    ("glm4_moe", dense("mistral", sliding_window=5), "sliding-window attention", "mixtral"),
    ("glm4_moe", dense("llama", biases="qkvo", attention_bias=True), "output projection", "granitemoe"),
    ("flex_olmo", dense("olmo3", num_hidden_layers=4), "some of the layers only", None),
    ("flex_olmo", dense("llama"), "always has norms after attention", "mixtral"),
    ("cohere2_moe", dense("llama"), "side by side", "mixtral"),
    ("ernie4_5_moe", dense("ernie4_5", extra={"model.layers.0.mlp.up_proj.bias": (24,)}), "in the MLP", None),
    ("olmoe", dense("olmo2"), "cannot be made from dense models", "flex_olmo"),
    ("gpt_oss", dense("llama"), "cannot be made from dense models", "mixtral"),
    ("exaone_moe", dense("exaone4"), "cannot be made from dense models", None),
    ("phimoe", dense("phi3", sliding_window=None), "cannot be made from dense models", "mixtral"),
]


@pytest.mark.parametrize(
    ("name", "base", "reason", "works"),
    IMPOSSIBLE,
    ids=lambda x: x.config["model_type"] if isinstance(x, Dense) else None,
)
def test_an_impossible_pair_is_refused_with_its_reason(
    name: str, base: Dense, reason: str, works: str | None
) -> None:
    said = refusals(name, base)
    assert reason in said
    assert works is None or f"use architecture: {works}" in said or f"or {works}" in said


def test_a_pair_that_works_is_offered_only_if_there_is_one() -> None:
    assert "use architecture" not in refusals("glm4_moe", dense("glm4"))


def test_qwen2_moe_needs_one_shared_expert() -> None:
    base = dense("qwen2", biases="qkv")
    said = refusals("qwen2_moe", base)
    assert said == (
        "qwen2_moe needs one shared expert — list one under shared_experts:; "
        "residual_scale: 0 lets it contribute nothing at first"
    )
    assert "needs one shared expert" in refusals(
        "qwen2_moe", base, Options(4, 2, shared=2), shared=[base] * 2
    )


def test_mixtral_has_no_shared_experts() -> None:
    base = dense("llama")
    assert "no shared experts" in refusals("mixtral", base, Options(4, 2, shared=1), shared=[base])


def test_prompts_for_a_shared_expert_that_is_always_on_mean_nothing() -> None:
    base = dense("llama")
    options = Options(4, 2, shared=1, shared_prompts=True)
    assert "remove their prompts" in refusals("glm4_moe", base, options, shared=[base])


@pytest.mark.parametrize(("name", "kind"), [("deepseek_v2", "deepseek_v2"), ("jamba", "jamba")])
def test_without_renormalisation_all_experts_must_be_active(name: str, kind: str) -> None:
    assert "write experts_per_token: 4" in refusals(name, dense(kind))


def test_llama4_holds_a_dense_model_only_while_routers_are_zero() -> None:
    assert "only while routers are zero" in refusals("llama4_text", dense("llama"))


def test_layouts_that_a_family_does_not_have_are_refused() -> None:
    granite = refusals("granitemoe", dense("granite"), Options(4, 2, layout="per-expert"))
    assert "only stored with stacked experts" in granite
    deepseek = refusals("deepseek", dense("llama"), Options(4, 2, layout="stacked"))
    assert "only stored with one tensor per expert" in deepseek


def test_more_active_experts_than_there_are_is_refused() -> None:
    assert "experts_per_token: 5" in refusals("mixtral", dense("llama"), Options(4, 5))


def test_a_mixture_in_every_layer_cannot_keep_dense_ones() -> None:
    said = refusals("mixtral", dense("llama"), Options(4, 2, keep_dense_layers=1))
    assert "every layer of mixtral is a mixture" in said


def test_experts_must_fit_the_base_model() -> None:
    base = dense("llama")

    def said(expert: Dense) -> str:
        return refusals("mixtral", base, experts=[base, expert])

    assert "experts[1] cannot be an expert: its activation is gelu" in said(dense("llama", hidden_act="gelu"))
    assert "number of layers is 2" in said(dense("llama", num_hidden_layers=2))
    assert "its hidden size is 32" in said(dense("llama", hidden_size=32))
    assert "no gated MLP" in said(dense("arcee"))
    lacking = dense("llama", drop=("model.layers.1.mlp.up_proj.weight",))
    assert "layer 1 has no gated MLP" in said(lacking)
    assert "its MLP has biases" in said(dense("llama", extra={"model.layers.0.mlp.up_proj.bias": (24,)}))
    assert "its family is not known" in said(dense("brand_new"))
    assert "it is a mixture of experts itself" in said(dense("mixtral"))


def test_every_reason_is_given_at_once() -> None:
    base = dense("llama", biases="qkvo", attention_bias=True)
    said = refusals("mixtral", base, Options(4, 9, shared=1), shared=[dense("llama", hidden_act="gelu")])
    for reason in ("biases", "experts_per_token: 9", "no shared experts", "shared_experts[0]"):
        assert reason in said


def test_an_untied_model_needs_its_head() -> None:
    assert "no lm_head.weight" in refusals("mixtral", dense("llama", head=False))


def test_biases_that_the_config_denies_are_not_carried_over_in_silence() -> None:
    base = dense("llama", biases="qkvo", attention_bias=False)
    assert "by its config it has none" in refusals("granitemoe", base)
    assert "by its config it has none" in refusals("granitemoe", dense("llama", biases="qkvo"))


def test_a_mixture_cannot_be_the_base_of_another() -> None:
    base = dense("jamba", drop=("model.layers.2.mlp.down_proj.weight",))
    assert "a mixture cannot be the base of another" in refusals("jamba", base, Options(2, 2))


def test_a_mixture_of_nothing_is_refused() -> None:
    assert "at least one expert" in refusals("mixtral", dense("llama"), Options(0, 0), experts=[])
    assert "at least 2 experts" in refusals("glm4_moe", dense("llama"), Options(1, 1))


@pytest.mark.parametrize(
    ("kind", "settings", "name"),
    [
        ("llama", {}, "mixtral"),
        ("mistral", {}, "mixtral"),
        ("qwen2", {"biases": "qkv"}, "qwen2_moe"),
        ("qwen3", {}, "qwen3_moe"),
        ("qwen3", {"use_sliding_window": True, "max_window_layers": 1}, "dots1"),
        ("llama", {"biases": "qkvo"}, "granitemoe"),
        ("phi3", {"partial_rotary_factor": 0.5}, "glm4_moe"),
        ("granite", {}, "granitemoe"),
        ("ernie4_5", {}, "ernie4_5_moe"),
        ("olmo2", {}, "flex_olmo"),
        ("cohere2", {}, "cohere2_moe"),
        ("seed_oss", {"biases": "qkv"}, "glm4_moe"),
    ],
)
def test_the_default_architecture_is_the_one_that_fits(
    kind: str, settings: dict[str, Any], name: str
) -> None:
    found = choose(None, dense(kind, **settings), OPTIONS)
    assert isinstance(found, MoeFamily)
    assert found.name == name


def test_with_shared_experts_the_default_is_one_that_has_them() -> None:
    found = choose(None, dense("llama"), Options(4, 2, shared=1))
    assert isinstance(found, MoeFamily)
    assert found.name == "deepseek"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("mixtral", "mixtral"),
        ("Mixtral", "mixtral"),
        ("DeepSeek MoE", "deepseek"),
        ("deepseek", "deepseek"),
        ("Qwen MoE", "qwen2_moe"),
        ("qwen", "qwen2_moe"),
        ("qwen3", "qwen3_moe"),
        ("Qwen3 MoE", "qwen3_moe"),
        ("glm4_moe", "glm4_moe"),
        ("qwen3_5_moe", "qwen3_5_moe_text"),
    ],
)
def test_an_architecture_is_a_model_type_or_mergekits_name(written: str, name: str) -> None:
    found = choose(written, dense("llama"), OPTIONS)
    assert isinstance(found, MoeFamily)
    assert found.name == name


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("mixtrol", "did you mean 'mixtral'?"),
        ("zebra", "choose one of"),
        ("gpt_oss", "cannot be made from dense models"),
    ],
)
def test_an_unknown_architecture_is_refused_with_near_names(written: str, said: str) -> None:
    found = choose(written, dense("llama"), OPTIONS)
    assert isinstance(found, Obstacle)
    assert said in str(found)


@pytest.mark.parametrize(
    ("base", "said"),
    [
        (dense("lama"), "did you mean 'llama'?"),
        (dense("mixtral"), "is a mixture of experts itself (mixtral) — take a dense model"),
        (dense("absent"), "does not say its model_type"),
        (dense("gemma2"), "no mixture of experts can hold this gemma2 model"),
        (dense("llama", extra={"model.layers.0.mlp.up_proj.bias": (24,)}), "biases in the MLP"),
    ],
)
def test_a_base_that_nothing_can_hold_is_refused(base: Dense, said: str) -> None:
    found = choose(None, base, OPTIONS)
    assert isinstance(found, Obstacle)
    assert said in str(found)
