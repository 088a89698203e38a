"""What a parameter is worth for one tensor: precedence, filters, gradients, types and ranges.

The rules are those of ``mergekit``: levels are asked from the most specific to the most general; within a
level the first condition whose filter is part of the tensor's name decides; a list is a gradient over the
position ``t`` of the layer in its slice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mergegraph.compiler.groups import as_slices
from mergegraph.errors import Problem, did_you_mean
from mergegraph.graph.node import Origin
from mergegraph.methods import all_methods
from mergegraph.methods.base import Kind, MergeMethod, Parameter, Scalar
from mergegraph.plan.merge import MergePlan, Source
from mergegraph.plan.source import Problems
from mergegraph.plan.values import Parameters, Setting

_KIND_NAMES: dict[Kind, str] = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
_BOOLEANS = {
    **dict.fromkeys(("true", "t", "yes", "y", "on", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "off", "0"), False),
}

FOREIGN = (
    *("weight", "density", "t", "scale", "normalize", "rescale", "int8_mask", "lambda", "gamma", "epsilon"),
    *("select_topk", "max_iter", "tol", "filter_wise", "nuslerp_row_wise", "nuslerp_flatten"),
    *("normalize_weights", "eps", "r", "alpha"),
)
"""Parameters of any method that configurations in the wild carry over to others, where they do nothing."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A typed value, and the plan line that set it."""

    value: Scalar
    origin: Origin


def resolve(levels: Sequence[Parameters], parameter: Parameter, tensor: str, t: float) -> Resolved | None:
    """Return what `levels` (most specific first) say of `parameter` for `tensor`, or None for nothing.

    `t` in [0, 1] is the position of the tensor's layer in its slice. `check_parameters` has made sure
    beforehand that no value can fail to convert.

    Raises:
        ValueError: a value has the wrong type or is out of range; the text says which.
    """
    for level in levels:
        setting = level.get(parameter.name)
        condition = next((c for c in setting.conditions if c.matches(tensor)), None) if setting else None
        if condition is None or condition.value == ():
            continue  # this level says nothing; a matching empty list hides later conditions, as in mergekit
        value = condition.value
        scalars = value if isinstance(value, tuple) else (value,)
        return Resolved(check_range(at_position(scalars, t, parameter.kind), parameter), condition.origin)
    return None


def at_position(values: Sequence[Scalar], t: float, kind: Kind) -> Scalar:
    """Return the value of a gradient at `t`: interpolated for numbers, else the last one reached.

    Values are converted first, because ``1e-3`` is a string to YAML: as a number it interpolates.

    Raises:
        ValueError: a value cannot be converted to `kind`, or the interpolated one is no integer.
    """
    typed = [coerce(value, kind) for value in values]
    position = t * (len(typed) - 1)
    before = int(position)
    if kind is bool or kind is str:
        return typed[before]
    after = min(len(typed) - 1, before + 1)
    fraction = position - before
    return coerce((1 - fraction) * float(typed[before]) + fraction * float(typed[after]), kind)


def coerce(value: Scalar, kind: Kind) -> Scalar:
    """Convert a plan value to the type that a parameter declares.

    Raises:
        ValueError: it does not mean a value of that type without loss.
    """
    converted: Scalar | None
    if kind is bool:
        converted = _to_bool(value)
    elif kind is str:
        converted = value if isinstance(value, str) else None
    else:
        number = _to_number(value)
        whole = number is not None and number.is_integer()
        converted = number if kind is float else int(number) if number is not None and whole else None
    if converted is None:
        raise ValueError(f"{value!r} is not {_KIND_NAMES[kind]}")
    return converted


def _to_bool(value: Scalar) -> bool | None:
    if isinstance(value, str):
        return _BOOLEANS.get(value.lower())
    return bool(value) if value in (0, 1) else None


def _to_number(value: Scalar) -> float | None:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def check_range(value: Scalar, parameter: Parameter) -> Scalar:
    """Return `value` if it lies within what `parameter` allows.

    Raises:
        ValueError: it does not.
    """
    if isinstance(value, str):
        return value
    if parameter.minimum is not None and value < parameter.minimum:
        raise ValueError(f"{value} is less than {parameter.minimum:g}, the least allowed")
    if parameter.maximum is not None and value > parameter.maximum:
        raise ValueError(f"{value} is more than {parameter.maximum:g}, the most allowed")
    return value


def check_parameters(plan: MergePlan, method: MergeMethod | None) -> list[Problem]:
    """Return what is wrong with the parameters of `plan`, in line order.

    Reports names that no method has, values of the wrong type or out of range, and required parameters
    that no level sets. Whether filters leave a tensor without a required value shows only when it is
    resolved. Of an unknown method (None) only names that no method has can be reported.
    """
    problems = Problems()
    if method is None:
        _check_names(plan, problems)
        return problems.sorted()
    _check_level(plan.parameters, method, None, problems)
    for part in plan.slices:
        _check_level(part.parameters, method, None, problems)
    for source in plan.sources():
        _check_level(source.parameters, method, source, problems)
    for parameter in method.parameters:
        if parameter.required and not _is_set(plan.parameters, parameter.name):
            (_missing_shared if parameter.scope == "shared" else _missing_each)(
                plan, method, parameter, problems
            )
    return problems.sorted()


def parameter_notes(plan: MergePlan, method: MergeMethod) -> list[str]:
    """Return remarks on parameters that are accepted and have no effect, with their lines."""
    notes = []
    levels = [(plan.parameters, False), *((part.parameters, False) for part in plan.slices)]
    levels += [(source.parameters, True) for source in plan.sources()]
    for level, below_model in levels:
        for name, setting in level.items():
            parameter = method.parameter(name)
            if parameter is None:
                notes.append(f"{setting.origin}: {name} has no effect: {method.name} does not use it")
            elif below_model and parameter.scope == "shared":
                notes.append(
                    f"{setting.origin}: {name} has no effect below one model: it is one value for all; "
                    "move it to the parameters of the slice or of the plan"
                )
    return notes


def _check_names(plan: MergePlan, problems: Problems) -> None:
    known = [*FOREIGN, *(p.name for method in all_methods().values() for p in method.parameters)]
    levels: list[tuple[Parameters, str | None]] = [(plan.parameters, None)]
    levels += [(part.parameters, None) for part in plan.slices]
    levels += [(source.parameters, str(source.model)) for source in plan.sources()]
    for level, model in levels:
        for name, setting in level.items():
            if name not in known:
                hint = did_you_mean(name, known) or "remove the line"
                problems.add(f"no merge method has a parameter {name!r}", setting.origin, hint, model)


def _check_level(level: Parameters, method: MergeMethod, source: Source | None, problems: Problems) -> None:
    """Check one ``parameters:`` block; `source` is the model it belongs to, if it belongs to one."""
    model = None if source is None else str(source.model)
    names = [p.name for p in method.parameters]
    for name, setting in level.items():
        parameter = method.parameter(name)
        if parameter is None and name in FOREIGN:
            continue  # said in a note: plans in the wild carry parameters of other methods along
        if parameter is None:
            known = f"its parameters are {', '.join(names)}" if names else "it has none; remove the line"
            message = f"{method.name} has no parameter {name!r}"
            problems.add(message, setting.origin, did_you_mean(name, names) or known, model)
            continue
        _check_values(setting, parameter, model, problems)


def _check_values(setting: Setting, parameter: Parameter, model: str | None, problems: Problems) -> None:
    for condition in setting.conditions:
        values = condition.value if isinstance(condition.value, tuple) else (condition.value,)
        try:
            typed = [check_range(coerce(value, parameter.kind), parameter) for value in values]
        except ValueError as error:
            problems.add(f"{parameter.name}: {error}", condition.origin, parameter.doc or None, model)
            continue
        if parameter.kind is int and any(value != typed[0] for value in typed):
            message = f"{parameter.name} is an integer and cannot change gradually"
            problems.add(message, condition.origin, "write conditions with filters instead", model)


def _is_set(level: Parameters, name: str) -> bool:
    """Whether a level sets a parameter for at least some tensors; an empty list does not."""
    return name in level and any(condition.value != () for condition in level[name].conditions)


def _missing_shared(plan: MergePlan, method: MergeMethod, parameter: Parameter, problems: Problems) -> None:
    message = f"{method.name} needs the parameter {parameter.name!r}"
    without = [part for part in plan.slices if not _is_set(part.parameters, parameter.name)]
    if len(without) == len(plan.slices):
        hint = f"add {parameter.name}: below parameters: at the top level"
        problems.add(message, plan.method_origin, hint)
        return
    for part in without:
        hint = f"add {parameter.name}: below the parameters: of this slice, or of the plan"
        problems.add(message, part.origin, hint)


def _missing_each(plan: MergePlan, method: MergeMethod, parameter: Parameter, problems: Problems) -> None:
    for part in as_slices(plan):
        if _is_set(part.parameters, parameter.name):
            continue
        base = None if method.base == "ignored" else part.base_model or plan.base_model
        for source in part.sources:
            if source.model != base and not _is_set(source.parameters, parameter.name):
                message = f"{method.name} needs the parameter {parameter.name!r} for every model"
                hint = f"add parameters: {{{parameter.name}: VALUE}} to this model"
                problems.add(message, source.origin, hint, str(source.model))
