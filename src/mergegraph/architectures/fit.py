"""Which family of mixtures can hold which dense model, and why another cannot."""

from __future__ import annotations

from collections.abc import Iterator

from mergegraph.architectures import all_moe_families
from mergegraph.architectures.dense import Body, Dense, body_of
from mergegraph.architectures.dense_families import DENSE
from mergegraph.architectures.moe import MoeFamily, Obstacle, Options
from mergegraph.architectures.traits import TRAITS
from mergegraph.errors import did_you_mean

ORDER = (
    "mixtral",
    "deepseek",
    "qwen2_moe",
    "qwen3_moe",
    "glm4_moe",
    "granitemoe",
    "dots1",
    "flex_olmo",
    "llama4_text",
)
"""Preference among families that can hold a model; those that are not listed come last, by name."""


def misfits(family: MoeFamily, base: Body) -> Iterator[str]:
    """Yield every reason why `family` cannot hold the weights of `base`, in words."""
    has = base.traits
    for trait in family.must:
        if trait not in has:
            yield f"{family.name} always has {TRAITS[trait]}, and a {base.model_type} model does not"
    held = dict.fromkeys((*family.can, *family.must))
    held |= dict.fromkeys(_held_biases(family, base))
    for trait in has:
        if trait not in held:
            yield f"{family.name} has no place for {TRAITS[trait]}, and this {base.model_type} model has them"


def _held_biases(family: MoeFamily, base: Body) -> Iterator[str]:
    unknown = [] if family.keys is None else [p for p in base.biased if p not in family.biases]
    if "o" not in unknown:
        yield "output_bias"
    if not [p for p in unknown if p != "o"]:
        yield "bias"


def fitting(base: Body) -> tuple[MoeFamily, ...]:
    """The families that can hold `base`, the best first."""
    found = [f for f in all_moe_families() if f.buildable and not any(misfits(f, base))]
    order = (*base.family.prefers, *ORDER)
    ranks = {name: rank for rank, name in reversed(list(enumerate(order)))}
    return tuple(sorted(found, key=lambda f: (ranks.get(f.name, len(order)), f.name)))


def instead(base: Body, family: MoeFamily | None = None) -> str | None:
    """A hint that names the families which can hold `base`."""
    names = [f.name for f in fitting(base) if f is not family and not f.remote]
    return f"use architecture: {' or '.join(names[:3])}" if names else None


def named(name: str) -> MoeFamily | None:
    """The family that a plan calls `name`: a model type, or the start of mergekit's name for it."""
    wanted = name.strip().lower()
    families = [f for f in all_moe_families() if f.buildable]
    exact = next((f for f in families if wanted in f.model_types), None)
    if exact is not None or not wanted:
        return exact
    by_old_name = [f for f in families if any(old.lower().startswith(wanted) for old in f.old_names)]
    return min(by_old_name, key=lambda f: ORDER.index(f.name)) if by_old_name else None


def is_mixture(model: Dense) -> bool:
    """Whether a model of no known dense family is a mixture of experts itself."""
    return any(model.config.get("model_type") in f.model_types for f in all_moe_families())


def unknown_base(base: Dense) -> Obstacle:
    """Says that the base model's family is not known."""
    model_type = base.config.get("model_type")
    if model_type is None:
        message = "the base model's config.json does not say its model_type"
        return Obstacle(message, "base_model", "a mixture of experts needs it to know what to carry over")
    if is_mixture(base):
        message = f"the base model is a mixture of experts itself ({model_type})"
        return Obstacle(message, "base_model", "take a dense model; mixtures are merged by a merge plan")
    known = [name for f in DENSE if f.prefers for name in f.model_types]
    hint = did_you_mean(str(model_type), known) or f"known are {', '.join(known)}"
    return Obstacle(f"no mixture of experts is known for {model_type} models", "base_model", hint)


def choose(name: str | None, base: Dense, options: Options) -> MoeFamily | Obstacle:
    """Return the family to build, or why there is none.

    Args:
        name: what the plan calls it; None: the one that suits the base model best.
        base: the base model; experts only need MLPs of the same kind, which `recipe` checks.
        options: what the plan asks for.
    """
    if name is not None:
        return _by_name(name)
    body = body_of(base)
    if body is None:
        return unknown_base(base)
    able = [f for f in fitting(body) if (f.shared is not None if options.shared else not f.remote)]
    if able:
        return able[0]
    if fitting(body):
        message = f"no mixture of experts that can hold this {body.model_type} model has shared experts"
        return Obstacle(message, "shared_experts", "remove shared_experts:")
    wanted = body.family.prefers or ("mixtral",)
    families = [f for f in all_moe_families() if f.name in wanted]
    reasons = "; ".join(reason for f in families[:1] for reason in misfits(f, body))
    return Obstacle(f"no mixture of experts can hold this {body.model_type} model: {reasons}", "base_model")


def _by_name(name: str) -> MoeFamily | Obstacle:
    found = named(name)
    if found is not None:
        return found
    known = [n for f in all_moe_families() if f.buildable for n in (f.name, *f.old_names)]
    readable = any(name in f.model_types for f in all_moe_families())
    if readable:
        message = f"{name} cannot be made from dense models: no family of them computes the same"
        return Obstacle(message, "architecture", f"choose one of {', '.join(known)}")
    hint = did_you_mean(name, known) or f"choose one of {', '.join(known)}"
    return Obstacle(f"{name!r} is not an architecture of mixtures of experts", "architecture", hint)
