"""What can be wrong between a plan, its method and its models before any tensor is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergegraph.compiler.groups import as_slices
from mergegraph.compiler.inputs import Input
from mergegraph.compiler.parameters import check_parameters
from mergegraph.compiler.tokenizers import check_tokenizers
from mergegraph.graph.node import Origin
from mergegraph.methods.base import MergeMethod
from mergegraph.plan.merge import MergePlan, Slice
from mergegraph.plan.source import Problems
from mergegraph.plan.values import ModelRef


@dataclass(frozen=True, slots=True)
class Sound:
    """What of a plan is sound enough for further questions.

    Attributes:
        roles: models, layers and method fit together, so it is known what goes into each tensor.
        parameters: values can be resolved.
    """

    roles: bool
    parameters: bool


def check_plan(
    plan: MergePlan, method: MergeMethod | None, inputs: Mapping[ModelRef, Input], problems: Problems
) -> Sound:
    """Note everything that is wrong with roles, counts, ranges and unsupported keys.

    Of an unknown method (None), and of models that are not in `inputs`, only what concerns them is left out.
    """
    wrong = check_parameters(plan, method)
    problems.extend(wrong)
    roles = Problems()
    slices = as_slices(plan)
    if method is not None:
        _check_roles(plan, method, slices, roles)
    _check_layers(plan, slices, inputs, roles)
    problems.found += roles.found
    _check_kinds(plan, method, inputs, problems)
    check_tokenizers(plan, inputs, problems)
    complete = all(ref in inputs for ref in plan.referenced_models())
    filled = bool(slices) and all(part.sources for part in slices)
    return Sound(method is not None and complete and filled and not roles.found, not wrong)


# ---- roles ---------------------------------------------------------------------------------------


def _check_roles(plan: MergePlan, method: MergeMethod, slices: tuple[Slice, ...], problems: Problems) -> None:
    """Every slice has the base that the method needs, and as many models as it takes."""
    without = [part for part in slices if (part.base_model or plan.base_model) is None]
    if method.base == "required" and without:
        problems.add(f"{method.name} needs a base model", plan.method_origin, "add base_model: MODEL")
    for part in slices:
        base = None if method.base == "ignored" else part.base_model or plan.base_model
        if method.base == "required":
            if base is None:
                continue  # how many of the models are not the base cannot be said
            if base not in [s.model for s in part.sources]:
                hint = "list it among the sources, with a layer_range of the same length"
                problems.add(f"the base model {base} is not a source of this slice", part.origin, hint)
        _check_count(plan, method, part, base, problems)


def _check_count(
    plan: MergePlan, method: MergeMethod, part: Slice, base: ModelRef | None, problems: Problems
) -> None:
    count = sum(s.model != base for s in part.sources)
    least, most = method.inputs
    if least <= count and (most is None or count <= most):
        return
    wanted = (
        f"at least {least}" if most is None else f"exactly {least}" if least == most else f"{least} to {most}"
    )
    besides = " besides the base model" if base is not None else ""
    where = part.origin if plan.slices else plan.method_origin
    hint = "list more models" if count < least else "remove models, or choose a method that takes more"
    if method.base == "ignored" and plan.base_model is not None and not plan.slices:
        hint = f"{method.name} has no base: base_model counts as one more input; remove it, or list it only"
    problems.add(f"{method.name} takes {wanted} model(s){besides}, not {count}", where, hint)


# ---- layers --------------------------------------------------------------------------------------


def _check_layers(
    plan: MergePlan, slices: tuple[Slice, ...], inputs: Mapping[ModelRef, Input], problems: Problems
) -> None:
    if not plan.slices:
        for part in slices:
            _check_depth(part, inputs, problems)
        return
    sources = [source for part in slices for source in part.sources]
    ranges = [source.layer_range for source in sources]
    if sources and all(bounds is not None and bounds[0] == bounds[1] for bounds in ranges):
        hint = "give at least one non-empty layer_range"
        problems.add("the slices hold no layer at all", slices[0].origin, hint)
    refused: list[str] = []
    for source in sources:
        model = inputs.get(source.model)
        if model is None or source.layer_range is None:
            continue
        if model.encodes_and_decodes:
            if model.name not in refused:
                message = f"{model.name} has layers of an encoder and of a decoder, which cannot be sliced"
                problems.add(message, source.origin, "use models: to merge such models whole")
                refused.append(model.name)
        elif model.stack is None:
            hint = "use models: instead of slices:"
            problems.add(f"{model.name} has no layers to slice", source.origin, hint)
        elif source.layer_range[1] > model.layers:
            given = f"layer_range {list(source.layer_range)}"
            message = f"{given} goes beyond the {model.layers} layers of {model.name}"
            hint = f"layers are numbered 0 to {model.layers - 1}; the end is exclusive"
            problems.add(message, source.origin, hint)


def _check_depth(part: Slice, inputs: Mapping[ModelRef, Input], problems: Problems) -> None:
    present = [s for s in part.sources if s.model in inputs]
    depths = {inputs[s.model].name: inputs[s.model].layers for s in present}
    if len(dict.fromkeys(depths.values())) > 1:
        odd = next(s for s in present if inputs[s.model].layers != inputs[present[0].model].layers)
        text = ", ".join(f"{count} in {name}" for name, count in depths.items())
        hint = "use slices: to say which layers go together"
        problems.add(f"the models have different numbers of layers: {text}", odd.origin, hint)


# ---- kinds of models -----------------------------------------------------------------------------


def _check_kinds(
    plan: MergePlan, method: MergeMethod | None, inputs: Mapping[ModelRef, Input], problems: Problems
) -> None:
    """Adapters and quantised models, wherever the plan names them: also as a base that is not listed."""
    for ref in plan.referenced_models():
        where = line_of(plan, ref)
        model = inputs.get(ref)
        # Whoever opened it knows whether "a+b" is a directory of that name.
        if (ref if model is None else model.ref).lora is not None:
            hint = "merge the adapter into its model first"
            problems.add(f"LoRA adapters ({ref}) are not supported by this version", where, hint)
        if model is None or method is None or not is_quantised(model.index.config):
            continue
        if method.name != "passthrough":
            hint = "use the unquantised checkpoint; passthrough can copy quantised layers"
            problems.add(f"{model.name} is quantised: its numbers are not weights", where, hint)
            continue
        for key, line in _changes(plan, where):
            text = f"{model.name} is quantised: it can be copied, and {key} would change its numbers"
            problems.add(text, line, f"remove {key}, or use the unquantised checkpoint")


def is_quantised(config: Mapping[str, Any]) -> bool:
    """Whether a config, or that of a model inside the model, says that weights are packed."""
    if config.get("quantization_config") or config.get("compression_config"):
        return True
    return any(is_quantised(part) for part in config.values() if isinstance(part, dict))


def _changes(plan: MergePlan, where: Origin) -> list[tuple[str, Origin]]:
    """(key, line) of everything in a passthrough plan that changes what passes through."""
    dtypes = (("dtype", plan.dtype), ("out_dtype", plan.out_dtype))
    levels = [plan.parameters, *(part.parameters for part in plan.slices)]
    levels += [source.parameters for source in plan.sources()]
    scales = [level["scale"].origin for level in levels if "scale" in level]
    return [(key, where) for key, dtype in dtypes if dtype is not None] + [("scale", line) for line in scales]


def line_of(plan: MergePlan, ref: ModelRef) -> Origin:
    """Where a plan first names a model: in a list, else as a base."""
    for source in plan.sources():
        if source.model == ref:
            return source.origin
    for part in plan.slices:
        if part.base_model == ref:
            return part.origin
    return plan.base_origin or plan.method_origin
