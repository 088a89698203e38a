"""Which dense family a mixture of experts goes back to, and what its output is made up of.

The ways back stand with the families (`MoeFamily.back`). Here is what decides between them, why some
families have none, and what a config that is silent means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mergegraph.architectures.dense import Dense
from mergegraph.architectures.moe import Back, MoeFamily, Obstacle
from mergegraph.errors import did_you_mean

WHY_NOT: Mapping[str, str] = {
    "afmoe": "its attention is gated, and its layers have four norms",
    "aria_text": "its experts are stored transposed, in a form of their own",
    "dbrx": "its queries, keys and values are clipped, and its norms are layer norms",
    "deepseek_v32": "its attention chooses tokens with an indexer, and no dense family does",
    "exaone_moe": "its norms stand before attention and MLP, those of dense EXAONE after them",
    "gemma4_text": "its experts run beside an MLP, each behind norms of its own, and no dense layer does so",
    "glm4_moe_lite": "its latent attention is known in mixtures only",
    "glm_moe_dsa": "its attention chooses tokens with an indexer, and no dense family does",
    "gpt_oss": "its attention has sinks, and its experts have biases and clamp what passes through them",
    "jetmoe": "its attention consists of experts too",
    "kimi_linear": "its linear attention is in no dense family",
    "llama4_text": "its routers scale what goes into experts, not what comes out of them",
    "mellum": "it has a rotary embedding for each kind of attention, and no dense family with its norms does",
    "minimax": "its linear attention is in no dense family",
    "minimax_m2": "its norms over whole queries and keys are in no dense family with norms before attention",
    "nemotron_h": "its experts have no gate projection",
    "olmoe": "its norms stand before attention and MLP, those of dense OLMo 2 after them",
    "phimoe": "its norms are layer norms, and no dense family with gated MLPs has those",
    "qwen3_next": "its linear attention has fused projections, which no dense family has",
}
"""Families without a way back, and the reason."""

ROUTED_SCALE: Mapping[str, float] = {"deepseek_v3": 2.5}
"""What classes scale the sum of the chosen experts by if the config does not say, where that is not 1."""


def _sizes(
    layers: int, hidden: int, heads: int, kv_heads: int, vocab: int, positions: int | None = None
) -> dict[str, Any]:
    stated = {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
    }
    return stated if positions is None else {**stated, "max_position_embeddings": positions}


SILENT: Mapping[str, Mapping[str, Any]] = {
    "dots1": _sizes(62, 4608, 32, 32, 152064, 2048),
    "ernie4_5_moe": _sizes(28, 2560, 20, 4, 103424),
    "flex_olmo": {"vocab_size": 100352, "max_position_embeddings": 4096},
    "glm4_moe": _sizes(46, 4096, 96, 8, 151552, 131072),
    "lfm2_moe": {"hidden_size": 2048},
    "mixtral": _sizes(32, 4096, 32, 8, 32000),
    "qwen2_moe": _sizes(24, 2048, 16, 16, 151936, 32768),
    "qwen3_5_moe_text": _sizes(40, 2048, 16, 2, 248320),
    "qwen3_moe": _sizes(24, 2048, 32, 4, 151936),
}
"""What classes assume of the body if the config does not say, where the dense class assumes otherwise."""

_DERIVED_HEADS = ("dots1", "ernie4_5_moe", "glm4_moe", "qwen3_moe")
"""Families that derive the size of heads where the dense class assumes one."""

_UNEVEN: Mapping[str, bool] = {
    "dots1": False,
    "glm4_moe": True,
    "deepseek_v3": True,
    "cohere2_moe": True,
    "deepseek": False,
    "lfm2_moe": True,
    "qwen2_moe": False,
    "qwen3_moe": False,
}
"""Families whose router's weights sum to one only if ``norm_topk_prob``, and what their classes assume."""

_NEVER_NORMALISED = ("deepseek_v2", "jamba")
"""Families whose router's weights never do."""


STALE: Mapping[str, tuple[str, ...]] = {
    "cohere2": ("first_k_dense_replace", "prefix_dense", "rms_norm_eps", "sliding_window_pattern"),
    "granite": ("layer_types", "mamba", "position_embedding_type", "time_step_limit"),
    "llama": ("layer_types", "max_window_layers", "sliding_window", "use_sliding_window"),
}
"""Config keys of mixtures, or first words of them, that mean nothing to the dense family.

Those of experts and routing go anyway.
"""

_ATTENTION = ("attention", "full_attention")


class Factors(NamedTuple):
    """What a mixture multiplies the sum of its chosen experts and the output of its shared expert by.

    `shared` is None if there is no shared expert. With `guessed` it is what the sigmoid of an untrained
    gate gives, since it depends on the token.
    """

    routed: float
    shared: float | None
    guessed: bool


def stated(family: MoeFamily, back: Back, config: Mapping[str, Any], key: str) -> Any:
    """What a mixture's config says of `key`, or what its class assumes."""
    rope = config.get("rope_parameters") or {}
    if key == "partial_rotary_factor" and key in rope:
        return rope[key]
    return config.get(key, back.otherwise.get(key, family.defaults.get(key)))


def ways_back(family: MoeFamily, config: Mapping[str, Any]) -> tuple[Back, ...]:
    """The dense families that the body of a mixture with `config` fits into, the best first."""
    return tuple(
        back
        for back in family.back
        if all(stated(family, back, config, key) in values for key, values in back.when.items())
    )


def way_back(family: MoeFamily, config: Mapping[str, Any], wanted: str | None) -> Back | Obstacle:
    """Return the dense family to extract, or why there is none.

    Args:
        family: the mixture's.
        config: the mixture's.
        wanted: what the plan calls it: a model type, or the name of a class; None: the best.
    """
    if isinstance(config.get("text_config"), Mapping):
        message = f"the mixture is the language model inside a {config.get('model_type')} model"
        return Obstacle(message, "model", "save its language model as a model of its own first")
    others = _other_layers(family, config)
    if others:
        message = f"no dense family has the layers of this {family.name} model: some are {', '.join(others)}"
        return Obstacle(message, "model")
    fitting = ways_back(family, config)
    if not fitting:
        return _nowhere(family, config)
    if wanted is None:
        return fitting[0]
    name = wanted.strip().lower()
    found = next((b for b in fitting if name in (b.model_type, b.architecture.lower())), None)
    if found is not None:
        return found
    names = [b.model_type for b in fitting]
    hint = did_you_mean(name, names) or f"use architecture: {' or '.join(names)}"
    other = next((b for b in family.back if name in (b.model_type, b.architecture.lower())), None)
    if other is None:
        message = f"a {wanted} model cannot hold the body of a {family.name} model"
    else:
        needs = ", ".join(f"{k}: {_listed(v)}" for k, v in other.when.items())
        message = f"a {wanted} model cannot hold the body of this {family.name} model: it needs {needs}"
    return Obstacle(message, "architecture", hint)


def _other_layers(family: MoeFamily, config: Mapping[str, Any]) -> list[str]:
    """The kinds of layers that a Granite mixture has beside attention; if silent, all are Mamba."""
    if family.name != "granitemoehybrid":
        return []
    kinds = config.get("layer_types") or config.get("layers_block_type") or ["mamba"]
    return [str(kind) for kind in dict.fromkeys(kinds) if kind not in _ATTENTION]


def _nowhere(family: MoeFamily, config: Mapping[str, Any]) -> Obstacle:
    """Why a mixture has no way back: its family has none, or its config fits none."""
    if not family.back:
        reason = WHY_NOT.get(family.name)
        because = "" if reason is None else f": {reason}"
        return Obstacle(f"no dense family has the body of a {family.name} model{because}", "model")
    told = []
    for back in family.back:
        wrong = [
            f"{key} is {stated(family, back, config, key)}, not {_listed(values)}"
            for key, values in back.when.items()
            if stated(family, back, config, key) not in values
        ]
        told.append(f"not {back.model_type} ({', '.join(wrong)})")
    message = f"no dense family has the body of this {family.name} model: {'; '.join(told)}"
    return Obstacle(message, "model")


def _listed(values: tuple[Any, ...]) -> str:
    return " or ".join(str(value) for value in values)


def factors(family: MoeFamily, moe: Dense) -> Factors:
    """What a mixture's output is made up of.

    Where weights of chosen experts do not add up to one, the scaling factor is there to make up for that.
    """
    routed = moe.config.get("routed_scaling_factor", ROUTED_SCALE.get(family.name, 1.0))
    fixed = isinstance(routed, int | float) and uneven(family, moe.config) is None
    scale = float(routed) if fixed else 1.0
    shared = family.shared
    if shared is None or not any(name.endswith(f".{shared.down}") for name in moe.tensors):
        return Factors(scale, None, False)
    if shared.router is not None:
        return Factors(scale, 0.5, True)
    if moe.config.get("shared_expert_combination_strategy", _combination(family)) == "average":
        return Factors(scale / 2, 0.5, False)
    return Factors(scale, 1.0, False)


def _combination(family: MoeFamily) -> str:
    """What the class assumes that is done with routed and shared experts' outputs."""
    return "average" if family.name == "cohere2_moe" else "sum"


def uneven(family: MoeFamily, config: Mapping[str, Any]) -> str | None:
    """Why the weights of the chosen experts do not add up to one, in words; None if they do."""
    active = config.get(family.active_key)
    everyone = any(config.get(key) == active for key in family.expert_keys) and active is not None
    if family.name in _NEVER_NORMALISED:
        return None if everyone else f"{family.name} does not normalise them"
    if family.name not in _UNEVEN or config.get("norm_topk_prob", _UNEVEN[family.name]):
        return None
    return None if everyone else "norm_topk_prob is false"


def completed(family: MoeFamily, moe: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a mixture with what it leaves out, as far as a dense class assumes something else."""
    said = {k: v for k, v in moe.items() if k not in ("head_dim", "layer_types") or v is not None}
    return dict(_assumed(family, moe)) | said


def tidied(back: Back, dense: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a dense model without what was about the mixture's other layers."""
    stale = STALE.get(back.model_type, ())
    return {k: v for k, v in dense.items() if not any(k == key or k.startswith(f"{key}_") for key in stale)}


def _assumed(family: MoeFamily, moe: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield from SILENT.get(family.name, {}).items()
    hidden, heads = moe.get("hidden_size"), moe.get("num_attention_heads")
    if family.name in _DERIVED_HEADS and type(hidden) is int and type(heads) is int and heads > 0:
        yield "head_dim", hidden // heads
    layers, first = moe.get("num_hidden_layers"), moe.get("first_k_dense_replace", 0)
    if family.name == "cohere2_moe" and type(layers) is int and type(first) is int:
        yield "layer_types", [*_windows(first, moe, "prefix_dense_"), *_windows(layers - first, moe, "")]


def _windows(count: int, moe: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """Where attention slides in `count` layers of Command A: in all but every n-th."""
    every = moe.get(f"{prefix}sliding_window_pattern", 1 if prefix else 4)
    for layer in range(1, count + 1):
        yield "full_attention" if layer % every == 0 else "sliding_attention"
