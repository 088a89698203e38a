"""Arguments for any merge method, chosen from what it declares: new methods are covered by being there."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mergegraph import ops
from mergegraph.graph.node import Node
from mergegraph.graph.simplify import simplify
from mergegraph.methods.base import MergeMethod, Parameter, Values
from mergegraph.tensorspec import DType
from tests.runtime.harness import loads, stream

USUAL: dict[str, tuple[Any, ...]] = {"weight": (0.6, 0.3, 0.5), "density": (0.3, 0.4, 0.6), "t": (0.4,)}
"""Values for well-known parameters, in turn for each model; anything else takes its default."""

OTHER = {"epsilon": 0.1, "eps": 1e-6}
"""Another value for parameters that do not take just any; 0.7 is tried for all other numbers."""

WITHOUT_A_BASE = {"base_model": None}
"""Settings of a merge in which the plan names no base model; the first operand is not used then."""

Settings = dict[str, Any]


def usual(parameter: Parameter, model: int = 0) -> Any:
    """A value that the parameter allows."""
    if parameter.name in USUAL:
        known = USUAL[parameter.name]
        return known[model % len(known)]
    if not parameter.required:
        return parameter.default
    low = 0.0 if parameter.minimum is None else parameter.minimum
    return parameter.kind(low if parameter.maximum is None else (low + parameter.maximum) / 2)


def variants(method: MergeMethod) -> dict[str, Settings]:
    """Settings to try: the usual ones, then one parameter at a time changed."""
    found: dict[str, Settings] = {"usual": {}}
    for p in method.parameters:
        if p.kind is bool:
            found[f"{p.name} {not p.default}"] = {p.name: not p.default}
        elif p.name == "density":
            found |= {f"density {value}": {p.name: value} for value in (0.0, 1.0)}
        elif p.kind is float and not p.required:
            value = OTHER.get(p.name, min(0.7, p.maximum) if p.maximum is not None else 0.7)
            found[f"{p.name} {value}"] = {p.name: value}
    if method.base == "optional":
        found |= {f"{title}, without a base": {**own, **WITHOUT_A_BASE} for title, own in found.items()}
    return found


def adds_up(method: MergeMethod, settings: Settings) -> bool:
    """Whether equal models are meant to give that model: not with a factor, or weights of another sum."""
    without = method.base == "ignored" or "base_model" in settings
    return "scale" not in settings and not (without and any("normalize" in name for name in settings))


def model_count(method: MergeMethod, wanted: int = 2) -> int:
    """The count of models besides the base that is nearest to `wanted`."""
    least, most = method.inputs
    return max(least, wanted if most is None else min(wanted, most))


def operand_count(method: MergeMethod, wanted: int = 2) -> int:
    """All operands, the base included where the method knows one."""
    return model_count(method, wanted) + (method.base != "ignored")


def values(method: MergeMethod, models: int, settings: Settings) -> tuple[Values, tuple[Values, ...]]:
    """Resolved parameters for so many models."""
    shared = Values({p.name: settings.get(p.name, usual(p)) for p in method.shared})
    each = tuple(
        Values({p.name: settings.get(p.name, usual(p, i)) for p in method.each}) for i in range(models)
    )
    return shared, each


def resolved(
    method: MergeMethod, operands: list[Any], settings: Settings
) -> tuple[Any, tuple[Any, ...], Values, tuple[Values, ...]]:
    """What `build` is called with for these tensors or nodes; the first is the base where there is one.

    Where the method draws at random, each model gets the stream of its place among the operands.
    """
    first = 0 if method.base == "ignored" else 1
    base, models = (operands[0] if first and "base_model" not in settings else None), operands[first:]
    shared, each = values(method, len(models), settings)
    if method.positional:
        shared = shared.including("position", 0.25)
    if method.random:
        streams = [
            ops.stream(i) if isinstance(x, Node) else stream(i) for i, x in enumerate(operands) if i >= first
        ]
        each = tuple(v.including("stream", s) for v, s in zip(each, streams, strict=True))
    return base, tuple(models), shared, each


def build(method: MergeMethod, operands: list[Any], settings: Settings) -> Any:
    """Call the method on tensors or nodes."""
    return method.build(*resolved(method, operands, settings))


def eager_merge(method: MergeMethod, tensors: list[Tensor], settings: Settings, out: DType) -> Tensor:
    """The merged tensor, computed by the method itself."""
    merged: Tensor = ops.cast(build(method, list(tensors), settings), dtype=out.name)
    return merged


def merge_expression(method: MergeMethod, tensors: list[Tensor], settings: Settings, out: DType) -> Node:
    """The expression that a plan with these settings compiles to."""
    return simplify(ops.cast(build(method, list(loads(tensors)), settings), dtype=out.name))
