"""From a family, dense models and options to a recipe, or to every reason why there is none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from mergegraph.architectures.dense import Body, Dense, body_of
from mergegraph.architectures.fit import instead, is_mixture, misfits, unknown_base
from mergegraph.architectures.moe import Layout, MoeFamily, Obstacle, Options, Recipe
from mergegraph.architectures.moe_config import config_of
from mergegraph.architectures.moe_tensors import Builder
from mergegraph.architectures.roles import is_head

SMALL = 64
"""Size of a shared expert that is only there because loaders demand one; it is all zeros."""


def recipe(
    family: MoeFamily,
    base: Dense,
    experts: Sequence[Dense],
    shared: Sequence[Dense],
    options: Options,
) -> Recipe | tuple[Obstacle, ...]:
    """Return how to build the mixture, or every reason why it cannot be built.

    Args:
        family: what to build, as `fit.choose` gives it.
        base: the model that everything but the experts comes from.
        experts: the dense models whose MLPs become the experts; fewer than ``options.experts`` repeat.
        shared: the dense models whose MLPs every token passes through.
        options: what the plan asks for; its number of shared experts is that of `shared`.
    """
    body = body_of(base)
    if body is None:
        return (unknown_base(base),)
    options = replace(options, shared=len(shared))
    bodies = [body_of(expert) for expert in experts]
    always = [body_of(expert) for expert in shared]
    found = [
        *_family_obstacles(family, body),
        *_option_obstacles(family, body, options),
        *_base_obstacles(body),
        *_mlp_obstacles(body, experts, bodies, "experts"),
        *_mlp_obstacles(body, shared, always, "shared_experts"),
    ]
    if found:
        return tuple(found)
    known, joined = [b for b in bodies if b is not None], [b for b in always if b is not None]
    size = max(_size(b) for b in known)
    shared_size = _shared_size(family, joined, size)
    if isinstance(shared_size, Obstacle):
        return (shared_size,)
    layout: Layout = options.layout or ("per-expert" if family.names.per_expert else "stacked")
    routed = [known[e % len(known)] for e in range(options.experts)]
    builder = Builder(family, body, routed, joined, options, layout, size, shared_size)
    config = config_of(family, body, options, size, shared_size)
    if "scaled_embedding" in body.family.has:
        config["tie_word_embeddings"] = False
    return Recipe(config, tuple(builder.tensors()), tuple(_notes(family, body, known, options)))


def _size(body: Body) -> int:
    found = (body.mlp(layer) for layer in range(body.layers))
    return max((m[2].columns for m in found if m is not None), default=0)


def _shared_size(family: MoeFamily, shared: Sequence[Body], size: int) -> int | Obstacle:
    """The size of the MLP that every token passes through; zero: there is none."""
    kind = family.shared
    if kind is None:
        return 0
    needed = sum(_size(body) for body in shared)
    if kind.absent == "base":
        return needed or size
    if kind.size_key is not None:
        return needed or (min(SMALL, size) if kind.absent == "zeros" else 0)
    room = size * (max(1, len(shared)) if kind.count_key is not None else 1)
    if needed > room:
        message = f"{family.name} gives its shared expert {room} neurons, and {needed} are listed"
        return Obstacle(message, "shared_experts", "list fewer, or models whose MLP is no larger")
    return room if shared or kind.absent == "zeros" else 0


def _family_obstacles(family: MoeFamily, base: Body) -> Iterator[Obstacle]:
    if not family.buildable:
        yield Obstacle(f"{family.name} cannot be made from dense models", "architecture", instead(base))
        return
    for reason in misfits(family, base):
        yield Obstacle(reason, "architecture", instead(base, family))
    if base.wrapper is not None and base.wrapper not in family.nested:
        message = f"the base model is the language model inside a {base.wrapper} model"
        yield Obstacle(message, "base_model", "extract its text model first")


def _option_obstacles(family: MoeFamily, base: Body, options: Options) -> Iterator[Obstacle]:
    experts, active, name = options.experts, options.active, family.name
    if not options.experts:
        yield Obstacle("a mixture needs at least one expert", "experts")
    elif experts < family.min_experts:
        yield Obstacle(f"{name} needs at least {family.min_experts} experts, not {experts}", "experts")
    if not 1 <= active <= experts:
        message = f"experts_per_token: {active} is not between 1 and the number of experts, {experts}"
        yield Obstacle(message, "experts_per_token")
    elif family.exact == "all active" and active != experts:
        message = (
            f"{name} does not scale the weights of the chosen experts to sum to one, so all must be chosen"
        )
        yield Obstacle(message, "experts_per_token", f"write experts_per_token: {experts}")
    if family.exact == "zero router" and not options.zero_router:
        message = f"{name} scales what goes into an expert, which keeps the model only while routers are zero"
        yield Obstacle(message, "gate_mode", instead(base, family) or "write gate_mode: zero")
    yield from _shared_obstacles(family, options)
    stacked, apart = family.names.stacked_down is not None, family.names.per_expert
    if options.layout == "stacked" and not stacked:
        yield Obstacle(f"{name} is only stored with one tensor per expert", "expert_layout")
    if options.layout == "per-expert" and not apart:
        yield Obstacle(f"{name} is only stored with stacked experts", "expert_layout")
    kept = options.keep_dense_layers
    if kept and family.dense_layers is None:
        yield Obstacle(f"every layer of {name} is a mixture", "keep_dense_layers", "leave it out")
    elif not 0 <= kept < max(1, base.layers):
        message = f"keep_dense_layers: {kept} is not between 0 and {base.layers - 1}"
        yield Obstacle(message, "keep_dense_layers")


def _shared_obstacles(family: MoeFamily, options: Options) -> Iterator[Obstacle]:
    if family.shared is None and options.shared:
        yield Obstacle(f"{family.name} has no shared experts", "shared_experts", "remove shared_experts:")
    elif family.shared is not None and family.shared.absent == "refused" and options.shared != 1:
        yield Obstacle(
            f"{family.name} needs one shared expert",
            "shared_experts",
            "list one under shared_experts:; residual_scale: 0 lets it contribute nothing at first",
        )
    if options.shared_prompts and (family.shared is None or family.shared.router is None):
        message = f"shared experts of {family.name} are always on, so prompts for them mean nothing"
        yield Obstacle(message, "shared_experts", "remove their prompts")


def _base_obstacles(base: Body) -> Iterator[Obstacle]:
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads")
    missing = [key for key in needed if base.number(key) < 1]
    if missing:
        yield Obstacle(f"the base model's config.json has no {', '.join(missing)}", "base_model")
    if base.embedding is None:
        yield Obstacle("the base model has no token embedding", "base_model")
    elif not base.tied and not any(is_head(name) for name in base.outside()):
        message = "the base model has no lm_head.weight, and its config does not tie it to the embedding"
        yield Obstacle(message, "base_model", "set tie_word_embeddings: true in its config.json")
    if base.biased and not base.value("attention_bias", base.value("use_bias", base.family.biased)):
        message = "the base model has attention biases, and by its config it has none"
        yield Obstacle(message, "base_model", "loaders ignore them; say attention_bias in its config.json")
    plain = (layer for layer in range(base.layers) if base.mlp(layer) is None)
    lacking = next(plain, None)
    if lacking is not None and not missing and base.family.prefers:
        message = f"layer {lacking} of the base model has no plain MLP of the shape that its config says"
        yield Obstacle(message, "base_model", "a mixture cannot be the base of another")


def _mlp_obstacles(
    base: Body, models: Sequence[Dense], bodies: Sequence[Body | None], key: str
) -> Iterator[Obstacle]:
    """What is wrong with the MLPs; the base model's own are checked where it lends them."""
    for index, (model, body) in enumerate(zip(models, bodies, strict=True)):
        unknown = "it is a mixture of experts itself" if is_mixture(model) else "its family is not known"
        reason = unknown if body is None else _mlp_reason(base, body)
        if reason is not None:
            yield Obstacle(f"{key}[{index}] cannot be an expert: {reason}", key, index=index)


def _mlp_reason(base: Body, body: Body) -> str | None:
    for trait in ("ungated", "state_space"):
        if trait in body.family.has:
            return f"a {body.model_type} model has no gated MLP"
    if "mlp_bias" in body.traits:
        return "its MLP has biases, which experts do not have"
    for what in ("hidden", "layers"):
        if getattr(body, what) != getattr(base, what):
            words = {"hidden": "hidden size", "layers": "number of layers"}
            return f"its {words[what]} is {getattr(body, what)}, the base model's {getattr(base, what)}"
    act = ("hidden_act", "hidden_activation")
    mine, others = (next((b.value(k) for k in act if b.value(k)), "silu") for b in (body, base))
    if mine != others:
        return f"its activation is {mine}, the base model's {others}"
    lacking = next((layer for layer in range(body.layers) if body.mlp(layer) is None), None)
    if lacking is not None:
        return f"layer {lacking} has no gated MLP of the shape that its config says"
    return None


def _notes(family: MoeFamily, base: Body, experts: Sequence[Body], options: Options) -> Iterator[str]:
    yield from family.notes
    if base.tied and any(is_head(name) for name in base.outside()):
        yield "lm_head.weight is dropped: the head is tied to the embedding"
    extra = [layer for layer in base.by_layer if layer >= base.layers]
    if extra:
        yield f"layers from {extra[0]} on are dropped: the config says that there are {base.layers}"
    if "llama_4_scaling_beta" in base.rope and family.keys is not None:
        limit = base.rope.get("original_max_position_embeddings")
        yield f"queries are not rescaled past position {limit}, as the dense model does"
    if "scaled_embedding" in base.family.has:
        yield "gemma's constants move into norms and embedding: equal in float32, not in bfloat16"
    if any(_size(body) != _size(experts[0]) for body in experts):
        yield "smaller experts are padded with zero neurons to the size of the largest"
    if any(body.model_type != base.model_type for body in experts):
        yield "some experts are of another family than the base model; only their MLPs are used"
