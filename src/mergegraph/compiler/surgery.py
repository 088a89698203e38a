"""Surgery plans → graphs: upcycling a dense model, pruning a mixture."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

from mergegraph.architectures import moe_family
from mergegraph.architectures.fit import choose
from mergegraph.architectures.moe import MoeFamily, Obstacle, Options
from mergegraph.architectures.roles import is_balance
from mergegraph.checkpoint.names import layer_and_suffix
from mergegraph.checkpoint.view import View
from mergegraph.compiler.build import Adjust, Parts, Router, output_dtype
from mergegraph.compiler.checks import is_quantised
from mergegraph.compiler.config import state_dtype
from mergegraph.compiler.experts import Place, output_form, stored_outputs
from mergegraph.compiler.inputs import NESTED, Input
from mergegraph.compiler.merge import Compiled
from mergegraph.compiler.models import Model, checkpoint_model
from mergegraph.compiler.moe import Mixture, Request, compile_mixture
from mergegraph.compiler.report import CompileReport, Dropped
from mergegraph.compiler.selection import Picks, experts_in, selected
from mergegraph.compiler.shards import shards
from mergegraph.errors import GraphError
from mergegraph.graph.graph import Graph, Output, Piece, SourceTensor
from mergegraph.graph.simplify import simplify
from mergegraph.ops import cast
from mergegraph.plan.source import Problems
from mergegraph.plan.surgery import PrunePlan, UpcyclePlan
from mergegraph.plan.values import ExpertLayout
from mergegraph.tensorspec import DType, TensorSpec, promote


def compile_upcycle(
    plan: UpcyclePlan, model: Model, seed: int | None = None, layout: ExpertLayout | None = None
) -> Compiled:
    """Compile the upcycling of a dense model.

    Komatsuzaki et al. 2022, "Sparse Upcycling" (arXiv 2212.05055); with `granularity`, He et al. 2024,
    "Upcycling Large Language Models into Mixture of Experts" (arXiv 2410.07524).

    Raises:
        PlanError: with every problem found.
    """
    problems = Problems()
    copies = plan.experts // plan.granularity
    try:
        pieces = shards(model, plan.granularity)
    except GraphError as error:
        problems.add(error.message, plan.model_origin, "use granularity: 1")
        problems.raise_if_any()
    experts = [piece for _ in range(copies) for piece in pieces]
    options = _options(plan, layout)
    family = choose(plan.architecture, model.dense, options)
    shared, notes = _silent_shared(family, model)
    # The chosen experts' weights add up to one, and a copy's parts have to add up to the copy.
    residual = float(plan.granularity) if plan.granularity > 1 else None
    drop = plan.ratio if plan.method == "drop" else None
    adjust = Adjust(plan.model_origin, plan.noise_scale, residual, drop)
    parts = Parts(
        base=model,
        experts=experts,
        shared=shared,
        adjust=[adjust] * len(experts),
        adjust_shared=[Adjust(plan.model_origin, residual=0.0)] * len(shared),
        router=Router(plan.gate_mode, plan.router.std, plan.router.temperature, repeat=plan.granularity),
        seed=seed,
        dtype=output_dtype(plan.out_dtype or plan.dtype, model.config, model.dense.tensors),
        origin=plan.model_origin,
    )
    request = Request(
        architecture=plan.architecture if isinstance(family, Obstacle) else family.name,
        options=replace(options, shared=len(shared)),
        origins={
            "architecture": plan.architecture_origin,
            "gate_mode": plan.gate_origin,
            "base_model": plan.model_origin,
            "expert_layout": plan.expert_layout_origin,
        },
        otherwise=plan.model_origin,
        notes=(*plan.notes, *notes),
    )
    return compile_mixture(request, Mixture(model, experts, shared, model), parts)


def _options(plan: UpcyclePlan, layout: ExpertLayout | None) -> Options:
    return Options(
        experts=plan.experts,
        active=plan.experts_per_token,
        layout=layout or plan.expert_layout,
        zero_router=plan.gate_mode == "zero",
    )


def _silent_shared(family: MoeFamily | Obstacle, model: Model) -> tuple[tuple[Model, ...], tuple[str, ...]]:
    """A shared expert, for families whose loaders demand one, and what to say of it.

    It is the model's MLP with a down projection of zeros: it adds nothing, but can be trained.
    """
    if isinstance(family, Obstacle) or family.shared is None or family.shared.absent != "refused":
        return (), ()
    text = f"{family.name} has a shared expert: it is the model's MLP, with a down projection of zeros"
    return (model,), (text,)


def compile_prune(plan: PrunePlan, model: Input, keep: Picks, layout: ExpertLayout | None = None) -> Compiled:
    """Compile a mixture with fewer experts: their tensors, and the rows of the routers that choose them.

    Args:
        plan: the plan.
        model: the mixture.
        keep: the experts that stay, by layer.
        layout: of the output; else the plan's, else the model's.

    Raises:
        PlanError: with every problem found.
    """
    problems = Problems()
    family = _family_of(plan, model, problems)
    config = _pruned_config(plan, family, model.index.config, problems)
    problems.raise_if_any()
    try:
        places = selected(model.tensors, keep, family.names)
        form = output_form([model.form], layout or plan.expert_layout, model.spelling)
        logical = dict(checkpoint_model(model, places).outputs)
        cast_to = plan.out_dtype or plan.dtype
        if cast_to is not None:
            logical = {n: _in_dtype(o, _dtype_of(n, family, cast_to)) for n, o in logical.items()}
            state_dtype(config, cast_to)
        stored = stored_outputs(logical, form)
        graph = Graph({name: _leading(output, model) for name, output in stored.items()})
    except GraphError as error:
        problems.add(error.message, plan.keep_origin)
        problems.raise_if_any()
    report = _prune_report(plan, model, places)
    return Compiled(graph, config, report, _prune_facts(family, model, graph, plan, config))


def _family_of(plan: PrunePlan, model: Input, problems: Problems) -> MoeFamily:
    stated = model.index.config.get("model_type")
    family = moe_family(stated)
    if family is None:
        text = f"{model.name} is of no family of mixtures that is known (model_type: {stated})"
        problems.add(text, plan.model_origin, "its config.json must say a model_type with experts")
    if (plan.out_dtype or plan.dtype) is not None and is_quantised(model.index.config):
        hint = "remove dtype: to prune it as it is, or use the unquantised checkpoint"
        problems.add(f"{model.name} is quantised, and cannot be cast", plan.model_origin, hint)
    problems.raise_if_any()
    assert family is not None
    return family


def _leading(output: Output, model: Input) -> Output:
    """The first experts of a stack, copied as one piece, as the part of it that they are."""
    first = output.parts[0]
    source, shape = first.sources[0], output.spec.shape
    whole = model.index.tensors[source.tensor].spec.shape
    if len(output.parts) > 1 or source.view is not None or whole == shape:
        return output
    columns = output.spec.numel // shape[0]
    part = SourceTensor(source.checkpoint, source.tensor, View(0, shape[0], columns, columns))
    return Output(output.spec, (first._replace(sources=(part,)),))


def _dtype_of(name: str, family: MoeFamily, stated: DType) -> DType:
    """The dtype that a tensor is written in: loaders expect some in float32 at least."""
    router = family.router_f32 and layer_and_suffix(name)[1] == next(iter(family.names.router))
    return promote([DType.F32, stated]) if router or is_balance(name) else stated


def _in_dtype(output: Output, dtype: DType) -> Output:
    if not output.spec.dtype.arithmetic or output.spec.dtype is dtype:
        return output
    (part,) = output.parts
    expression = simplify(cast(part.expression, dtype=dtype.name))
    return Output(TensorSpec(output.spec.shape, dtype), (Piece(expression, part.sources),))


def _pruned_config(
    plan: PrunePlan, family: MoeFamily, config: Mapping[str, Any], problems: Problems
) -> dict[str, Any]:
    changed = deepcopy(dict(config))
    count = plan.count
    keys = [key for key in family.expert_keys if _last(key) in _holder(changed, key)]
    for key in keys or family.expert_keys[:1]:
        _holder(changed, key)[_last(key)] = count
    wanted = _active(plan, family, changed, problems)
    inner = _inner(changed)
    groups, chosen = inner.get("n_group"), inner.get("topk_group")
    if type(groups) is int and groups > 1 and (count % groups or count // groups < 2):
        hint = f"keep a multiple of {groups} experts, at least {2 * groups}"
        text = f"the router chooses among {groups} groups of experts, which {count} experts do not fill"
        problems.add(text, plan.keep_origin, hint)
    elif type(groups) is int and type(chosen) is int and wanted > chosen * (count // max(groups, 1)):
        text = f"{wanted} experts per token are more than {chosen} of {groups} groups hold"
        problems.add(text, plan.experts_per_token_origin, "write a smaller experts_per_token:")
    return changed


def _inner(config: Any) -> Any:
    """The config of the language model, which may be inside that of a larger one."""
    return next((config[key] for key in NESTED if isinstance(config.get(key), dict)), config)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _holder(config: Any, key: str) -> Any:
    """The mapping that holds a key of the language model's config; a dot leads into a nested one."""
    inner = _inner(config)
    for step in key.split(".")[:-1]:
        inner = inner.setdefault(step, {})
    return inner


def _active(plan: PrunePlan, family: MoeFamily, config: dict[str, Any], problems: Problems) -> int:
    """Write how many experts a token uses from now on, and return it (the most, if layers differ)."""
    holder, key = _holder(config, family.active_key), _last(family.active_key)
    before, each = holder.get(key), plan.experts_per_token
    listed = before if isinstance(before, list) else [before]
    if each is None and any(type(value) is not int for value in listed):
        text = f"config.json does not say how many experts a token uses ({family.active_key})"
        problems.add(text, plan.model_origin, "write experts_per_token:")
        return 1
    wanted = [min(value, plan.count) if each is None else each for value in listed]
    holder[key] = wanted if isinstance(before, list) else wanted[0]
    return max(wanted)


def _prune_report(plan: PrunePlan, model: Input, kept: Mapping[str, Place]) -> CompileReport:
    used = frozenset((place.tensor, place.view) for place in kept.values())
    partly = frozenset(place.tensor for place in kept.values())
    dropped = [
        Dropped(model.name, SourceTensor(model.key, place.tensor, place.view).label, "its expert is pruned")
        for place in model.tensors.values()
        if (place.tensor, place.view) not in used and (place.view is not None or place.tensor not in partly)
    ]
    return CompileReport((), tuple(dropped), (), plan.notes, ())


def _prune_facts(
    family: MoeFamily, model: Input, graph: Graph, plan: PrunePlan, config: Mapping[str, Any]
) -> dict[str, Any]:
    active = _holder(config, family.active_key)[_last(family.active_key)]
    active = max(active) if isinstance(active, list) else active
    before = sum(place.spec.numel for place in model.tensors.values())
    total = sum(output.spec.numel for output in graph.outputs.values())
    each = max(experts_in(model.tensors).values(), default=0)
    held = sum(place.spec.numel for name, place in model.tensors.items() if ".experts." in name)
    routed = held * plan.count // max(1, each)
    return {
        "architecture": family.name,
        "experts": plan.count,
        "experts_before": each,
        "experts_per_token": active,
        "parameters": total,
        "parameters_before": before,
        "parameters_active": total - routed + routed * active // plan.count,
    }
