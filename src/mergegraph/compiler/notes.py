"""Remarks on a plan that compiles: what it says without effect, and what may surprise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mergegraph.compiler.groups import Group, Operand
from mergegraph.compiler.inputs import Input
from mergegraph.compiler.parameters import parameter_notes
from mergegraph.compiler.tokenizers import tokenizer_notes
from mergegraph.methods.base import MergeMethod
from mergegraph.plan.merge import MergePlan, Slice, Source
from mergegraph.plan.values import Condition, ModelRef, Parameters, Setting

Names = dict[str, None]


class FilterUse:
    """Keeps account of the names that the filters of a plan are tried on.

    A filter that is part of none of them is most likely mistyped. Shared parameters see the names of
    outputs, those of one model its own, so the same filter may be idle in one place and not in another.
    """

    def __init__(self, plan: MergePlan, method: MergeMethod, slices: tuple[Slice, ...]) -> None:
        self._method = method
        listed = [source for part in slices for source in part.sources]
        levels: list[tuple[Parameters, Sequence[Slice], Sequence[Source]]] = [
            (plan.parameters, slices, listed),
            *((part.parameters, (part,), part.sources) for part in slices),
            *((source.parameters, (), (source,)) for source in listed),
        ]
        self._levels = [level for level in levels if any(_filters(s) for s in level[0].values())]
        self._names: dict[int, Names] = {}

    @property
    def watches(self) -> bool:
        """Whether the plan has any filters, so that every name counts."""
        return bool(self._levels)

    def note(self, group: Group, models: Sequence[Operand]) -> None:
        """Take note that the parameters of a tensor were resolved."""
        if self.watches:
            self._names.setdefault(id(group.part), {})[group.filter_name] = None
            for o in models:
                self._names.setdefault(id(o.source), {})[o.filter_name] = None

    def idle(self) -> list[str]:
        """Say which filters match nothing, with their lines."""
        return [
            f"{condition.origin}: the filter {condition.filter!r} matches no tensor"
            for condition, seen in self._tried()
            if not any(str(condition.filter) in name for names in seen for name in names)
        ]

    def _tried(self) -> Iterator[tuple[Condition, list[Names]]]:
        """Every condition with a filter, and the names it was tried on."""
        for parameters, parts, sources in self._levels:
            for name, setting in parameters.items():
                parameter = self._method.parameter(name)
                if parameter is None:
                    continue  # that the whole parameter has no effect is said elsewhere
                users: Sequence[Slice | Source] = parts if parameter.scope == "shared" else sources
                for condition in _filters(setting) if users else ():
                    yield condition, [self._names.get(id(user), {}) for user in users]


def notes(
    plan: MergePlan, method: MergeMethod, inputs: Mapping[ModelRef, Input], donor: Input, use: FilterUse
) -> tuple[str, ...]:
    """Return the remarks, in the order of the plan's keys."""
    found = [*plan.notes, *tokenizer_notes(plan, donor), *parameter_notes(plan, method), *use.idle()]
    found += _repeated(inputs)
    found += [
        f"override_architecture of {ref} is not needed: layers are recognised by tensor names"
        for ref in inputs
        if ref.override_architecture is not None
    ]
    return tuple(dict.fromkeys(found))


def _filters(setting: Setting) -> list[Condition]:
    return [c for c in setting.conditions if c.filter is not None and c.filter != "*"]


def _repeated(inputs: Mapping[ModelRef, Input]) -> list[str]:
    """Checkpoints that the plan names twice: links, or ``./a`` and ``a``."""
    first: dict[str, str] = {}
    found = []
    for model in inputs.values():
        if first.setdefault(model.key, model.name) != model.name:
            found.append(f"{model.name} is the same checkpoint as {first[model.key]}")
    return found
