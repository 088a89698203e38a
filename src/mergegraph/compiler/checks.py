"""What can be wrong between a plan, its method and its models before any tensor is looked at."""

from __future__ import annotations

from collections.abc import Mapping

from mergegraph.architectures.roles import is_head, is_token_embedding
from mergegraph.compiler.groups import as_slices
from mergegraph.compiler.inputs import Input
from mergegraph.compiler.parameters import check_parameters
from mergegraph.graph.node import Origin
from mergegraph.methods.base import MergeMethod
from mergegraph.plan.merge import MergePlan, Slice
from mergegraph.plan.source import Problems
from mergegraph.plan.values import ModelRef


def check_plan(
    plan: MergePlan, method: MergeMethod, inputs: Mapping[ModelRef, Input], problems: Problems
) -> None:
    """Note everything that is wrong with roles, counts, ranges and unsupported keys."""
    slices = as_slices(plan)
    problems.extend(check_parameters(plan, method))
    _check_base(plan, method, slices, problems)
    for part in slices:
        _check_count(plan, method, part, problems)
        _check_layers(part, inputs, problems)
    if not plan.slices:
        _check_depth(slices[0], inputs, problems)
    elif all(
        s.layer_range is not None and s.layer_range[0] == s.layer_range[1] for p in slices for s in p.sources
    ):
        problems.add(
            "the slices hold no layer at all", slices[0].origin, "give at least one non-empty layer_range"
        )
    _check_arithmetic(plan, method, inputs, problems)


def _check_base(plan: MergePlan, method: MergeMethod, slices: tuple[Slice, ...], problems: Problems) -> None:
    if method.base != "required":
        return
    if plan.base_model is None and any(part.base_model is None for part in slices):
        problems.add(f"{method.name} needs a base model", plan.method_origin, "add base_model: MODEL")
        return
    for part in slices:
        base = part.base_model or plan.base_model
        if base not in [s.model for s in part.sources]:
            hint = "list it among the sources, with a layer_range of the same length"
            problems.add(f"the base model {base} is not a source of this slice", part.origin, hint)


def _check_count(plan: MergePlan, method: MergeMethod, part: Slice, problems: Problems) -> None:
    base = None if method.base == "ignored" else part.base_model or plan.base_model
    count = sum(s.model != base for s in part.sources)
    least, most = method.inputs
    if least <= count and (most is None or count <= most):
        return
    wanted = (
        f"at least {least}" if most is None else f"exactly {least}" if least == most else f"{least} to {most}"
    )
    besides = " besides the base model" if base is not None else ""
    where = part.origin if plan.slices else plan.method_origin
    hint = None
    if method.base == "ignored" and plan.base_model is not None and not plan.slices:
        hint = f"{method.name} has no base: base_model counts as one more input; remove it, or list it only"
    problems.add(f"{method.name} takes {wanted} model(s){besides}, not {count}", where, hint)


def _check_layers(part: Slice, inputs: Mapping[ModelRef, Input], problems: Problems) -> None:
    for source in part.sources:
        model = inputs[source.model]
        if source.layer_range is None:
            continue
        if model.stack is None:
            problems.add(
                f"{model.name} has no layers to slice", source.origin, "use models: instead of slices:"
            )
        elif source.layer_range[1] > model.layers:
            given = f"layer_range {list(source.layer_range)}"
            message = f"{given} goes beyond the {model.layers} layers of {model.name}"
            hint = f"layers are numbered 0 to {model.layers - 1}; the end is exclusive"
            problems.add(message, source.origin, hint)


def _check_depth(part: Slice, inputs: Mapping[ModelRef, Input], problems: Problems) -> None:
    depths = {inputs[s.model].name: inputs[s.model].layers for s in part.sources}
    if len(dict.fromkeys(depths.values())) > 1:
        text = ", ".join(f"{count} in {name}" for name, count in depths.items())
        hint = "use slices: to say which layers go together"
        problems.add(f"the models have different numbers of layers: {text}", part.origin, hint)


def _check_arithmetic(
    plan: MergePlan, method: MergeMethod, inputs: Mapping[ModelRef, Input], problems: Problems
) -> None:
    for source in plan.sources():
        model = inputs[source.model]
        if source.model.lora is not None:
            hint = "merge the adapter into its model first"
            problems.add(
                f"LoRA adapters ({source.model}) are not supported by this version", source.origin, hint
            )
        if "quantization_config" in model.index.config and method.name != "passthrough":
            hint = "use the unquantised checkpoint; passthrough can copy quantised layers"
            problems.add(f"{model.name} is quantised: its numbers are not weights", source.origin, hint)
    for key, given in (
        ("tokenizer_source", plan.tokenizer_source),
        ("tokenizer", plan.tokenizer),
        ("chat_template", plan.chat_template),
    ):
        if given is not None:
            hint = "remove the key: tokenizer and chat template are then copied from the base or first model"
            problems.add(f"{key} is not supported by this version", given.origin, hint)


def check_shapes(inputs: Mapping[ModelRef, Input], where: Origin, problems: Problems) -> None:
    """Compare equally named tensors of all models, where the plan as a whole cannot be compiled."""
    models = list(inputs.values())
    for model in models[1:]:
        for name, (_, entry) in model.tensors.items():
            other = models[0].tensors.get(name)
            if other is not None and other[1].spec.shape != entry.spec.shape:
                shapes = {models[0].name: other[1].spec.shape, model.name: entry.spec.shape}
                problems.add(*shape_problem(name, shapes, where))


def shape_problem(name: str, shapes: Mapping[str, tuple[int, ...]], where: Origin) -> tuple[str, Origin, str]:
    """Return message, place and hint for a tensor whose shape differs between models."""
    hint = "the models must have one architecture and size"
    if is_head(name) or is_token_embedding(name):
        hint = "the models have vocabularies of different sizes; resize them to one vocabulary first"
    text = "; ".join(f"{list(shape)} in {model}" for model, shape in shapes.items())
    return f"{name} has different shapes: {text}", where, hint
