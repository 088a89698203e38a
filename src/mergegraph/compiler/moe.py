"""A MoE plan and its models → the graph of a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from mergegraph.architectures.fit import choose
from mergegraph.architectures.moe import MoeFamily, Obstacle, Options
from mergegraph.architectures.recipe import recipe
from mergegraph.architectures.roles import is_derived
from mergegraph.compiler.build import Adjust, Building, Parts, Router, facts, output_dtype
from mergegraph.compiler.checks import is_quantised
from mergegraph.compiler.config import state_dtype
from mergegraph.compiler.merge import Compiled
from mergegraph.compiler.models import Model
from mergegraph.compiler.report import CompileReport, Dropped
from mergegraph.errors import Problem
from mergegraph.graph.graph import Graph
from mergegraph.graph.node import Origin
from mergegraph.plan.moe import MoeExpert, MoePlan
from mergegraph.plan.router import reads_prompts
from mergegraph.plan.source import Problems
from mergegraph.plan.values import ExpertLayout


@dataclass(frozen=True)
class Mixture:
    """The models of a MoE plan, in its order; `backbone` is what all but the experts comes from."""

    base: Model
    experts: Sequence[Model]
    shared: Sequence[Model]
    backbone: Model


@dataclass(frozen=True)
class Request:
    """What a plan asks to be built, besides the parts it is built from.

    Attributes:
        architecture: the family, as the plan spells it; None: the one that suits the base best.
        options: numbers, layout.
        origins: the plan line of each key that may be at fault.
        otherwise: the line for any other.
        experts: the lines of the experts and of the shared experts, by their key.
        notes: remarks so far.
    """

    architecture: str | None
    options: Options
    origins: Mapping[str, Origin]
    otherwise: Origin
    experts: Mapping[str, Sequence[Origin]] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def origin(self, obstacle: Obstacle) -> Origin:
        """The line that an obstacle is about."""
        listed = self.experts.get(obstacle.key, ())
        if listed:
            index = obstacle.index or 0
            return listed[index if index < len(listed) else 0]
        return self.origins.get(obstacle.key, self.otherwise)


def compile_mixture(request: Request, models: Mixture, parts: Parts) -> Compiled:
    """Compile a mixture of experts.

    Raises:
        PlanError: with every problem found.
    """
    problems = Problems()
    options, base = request.options, models.backbone.dense
    dense = [model.dense for model in models.experts]
    family = choose(request.architecture, base, options)
    made = (
        (family,)
        if isinstance(family, Obstacle)
        else recipe(family, base, dense, [m.dense for m in models.shared], options)
    )
    if isinstance(made, tuple):
        problems.extend([Problem(o.message, str(request.origin(o)), hint=o.hint) for o in made])
        problems.raise_if_any()
    assert isinstance(family, MoeFamily) and not isinstance(made, tuple)
    building = Building(parts)
    graph = building.graph(made)
    problems.extend(building.problems)
    problems.raise_if_any()
    config = dict(made.config)
    state_dtype(config, parts.dtype)
    return Compiled(
        graph,
        config,
        _report(models, graph, (*request.notes, *made.notes)),
        facts(family, made, graph, parts, options.active),
    )


def compile_moe(
    plan: MoePlan, models: Mixture, seed: int | None = None, layout: ExpertLayout | None = None
) -> Compiled:
    """Compile `plan` over its opened models.

    Args:
        plan: the plan.
        models: what it names, opened or compiled.
        seed: of routers and noise.
        layout: of experts; else the plan's, else one tensor per expert.

    Raises:
        PlanError: with every problem found.
    """
    problems = Problems()
    _check_models(plan, models, problems)
    problems.raise_if_any()
    request = Request(
        architecture=plan.architecture,
        options=Options(
            experts=len(plan.experts),
            active=plan.experts_per_token,
            shared=len(plan.shared),
            layout=layout or plan.expert_layout,
            zero_router=plan.gate_mode == "zero",
            shared_prompts=reads_prompts(plan.gate_mode) and any(e.positive for e in plan.shared),
        ),
        origins={
            "architecture": plan.architecture_origin,
            "experts_per_token": plan.experts_per_token_origin,
            "gate_mode": plan.gate_origin,
            "shared_experts": plan.architecture_origin,
            "expert_layout": plan.expert_layout_origin,
        },
        otherwise=plan.base_origin,
        experts={
            "experts": [e.origin for e in plan.experts],
            "shared_experts": [e.origin for e in plan.shared],
        },
        notes=plan.notes,
    )
    return compile_mixture(request, models, _parts(plan, models, seed))


def _parts(plan: MoePlan, models: Mixture, seed: int | None) -> Parts:
    return Parts(
        base=models.backbone,
        experts=models.experts,
        shared=models.shared,
        adjust=[_adjust(e) for e in plan.experts],
        adjust_shared=[_adjust(e) for e in plan.shared],
        router=Router(
            str(plan.gate_mode),
            plan.router.std,
            plan.router.temperature,
            rows_key(plan, models.base) if reads_prompts(plan.gate_mode) else "",
        ),
        seed=seed,
        dtype=output_dtype(plan.out_dtype or plan.dtype, models.base.config, models.base.dense.tensors),
        origin=plan.base_origin,
    )


def _adjust(expert: MoeExpert) -> Adjust:
    return Adjust(expert.origin, expert.noise_scale, expert.residual_scale)


def rows_key(plan: MoePlan, base: Model) -> str:
    """The checkpoint key of router rows from prompts: all that they depend on in the plan."""
    prompts = [e.prompts for e in (*plan.experts, *plan.shared)]
    merged = "" if base.merged is None else base.merged.graph.fingerprint
    how = (plan.gate_mode, plan.router, base.donor.key, merged, len(plan.experts))
    return f"rows:{blake2b(repr((prompts, how)).encode(), digest_size=8).hexdigest()}"


def _check_models(plan: MoePlan, models: Mixture, problems: Problems) -> None:
    named = [(plan.base_origin, models.base)]
    named += [
        (e.origin, m)
        for e, m in zip((*plan.experts, *plan.shared), (*models.experts, *models.shared), strict=True)
    ]
    told: list[str] = []
    for origin, model in named:
        if is_quantised(model.config) and model.name not in told:
            told.append(model.name)
            problems.add(f"{model.name} is quantised", origin, "use the unquantised checkpoint")


def _report(models: Mixture, graph: Graph, notes: Sequence[str]) -> CompileReport:
    """The account of every tensor of every checkpoint; what merges leave out is theirs to tell."""
    every = (models.base, *models.experts, *models.shared, models.backbone)
    plain = {m.donor.key: m for m in every if m.merged is None}
    merges = {id(m.merged): m.merged for m in every if m.merged is not None}
    used = {source.name for source in graph.sources()}
    dropped = [
        Dropped(model.name, place.tensor, _reason(name, model is models.backbone))
        for model in plain.values()
        for name, place in model.donor.tensors.items()
        if (model.donor.key, place.tensor) not in used
    ]
    for merged in merges.values():
        dropped += merged.report.dropped
    return CompileReport(
        partial=tuple(p for m in merges.values() for p in m.report.partial),
        dropped=tuple(dropped),
        config_differences=(),
        notes=(*notes, *(note for m in merges.values() for note in m.report.notes)),
        parameters=tuple(a for m in merges.values() for a in m.report.parameters),
    )


def _reason(name: str, backbone: bool) -> str:
    if is_derived(name, 1):
        return "derived buffer"
    if backbone:
        return "the experts, or the tied embedding, take its place"
    return "of an expert's model only the MLP is used"
