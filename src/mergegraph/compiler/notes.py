"""Remarks on a plan that compiles: what it says without effect, and what may surprise."""

from __future__ import annotations

from collections.abc import Mapping

from mergegraph.compiler.inputs import Input
from mergegraph.compiler.parameters import parameter_notes
from mergegraph.graph.graph import Graph
from mergegraph.methods.base import MergeMethod
from mergegraph.plan.merge import MergePlan
from mergegraph.plan.values import ModelRef


def notes(
    plan: MergePlan, method: MergeMethod, inputs: Mapping[ModelRef, Input], graph: Graph
) -> tuple[str, ...]:
    """Return the remarks, in the order of the plan's keys."""
    found = [*plan.notes, *parameter_notes(plan, method), *_idle_filters(plan, inputs, graph)]
    found += _repeated(inputs)
    found += [
        f"override_architecture of {ref} is not needed: layers are recognised by tensor names"
        for ref in inputs
        if ref.override_architecture is not None
    ]
    return tuple(found)


def _idle_filters(plan: MergePlan, inputs: Mapping[ModelRef, Input], graph: Graph) -> list[str]:
    """Filters that are part of no tensor's name: most likely mistyped."""
    levels = [plan.parameters, *(part.parameters for part in plan.slices)]
    levels += [source.parameters for source in plan.sources()]
    filters = {
        condition.filter: condition.origin
        for level in levels
        for setting in level.values()
        for condition in setting.conditions
        if condition.filter not in (None, "*")
    }
    names = [*graph.outputs, *(name for model in inputs.values() for name in model.tensors)]
    return [
        f"{origin}: the filter {text!r} matches no tensor"
        for text, origin in filters.items()
        if not any(str(text) in name for name in names)
    ]


def _repeated(inputs: Mapping[ModelRef, Input]) -> list[str]:
    """Checkpoints that the plan names twice: links, or ``./a`` and ``a``."""
    first: dict[str, str] = {}
    found = []
    for model in inputs.values():
        if first.setdefault(model.key, model.name) != model.name:
            found.append(f"{model.name} is the same checkpoint as {first[model.key]}")
    return found
