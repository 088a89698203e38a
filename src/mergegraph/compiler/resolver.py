"""The parameter values of one output tensor, and where in the plan each comes from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mergegraph.compiler.groups import Group, Operand
from mergegraph.compiler.parameters import resolve
from mergegraph.graph.node import Origin
from mergegraph.methods.base import MergeMethod, Parameter, Scalar, Values
from mergegraph.plan.merge import MergePlan
from mergegraph.plan.values import Parameters

Resolved = tuple[Values, tuple[Values, ...]]
"""The shared values, and one `Values` per model."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A resolved parameter: its value, for which model (None: shared), and the plan line (None: default)."""

    name: str
    model: str | None
    value: Scalar | None
    origin: Origin | None


class UnresolvedError(ValueError):
    """A required parameter has no value for a tensor; `origin` and `model` say whose it is."""

    def __init__(self, message: str, origin: Origin, model: str | None) -> None:
        super().__init__(message)
        self.origin = origin
        self.model = model


class Resolver:
    """Resolves parameters of a plan for one output tensor after the other.

    Precedence, highest first: the model's own, the slice's, the plan's, the method's default. Per-model
    parameters see the tensor's name in that model, shared ones its name in the output.
    """

    def __init__(self, plan: MergePlan, method: MergeMethod) -> None:
        self._plan = plan
        self._method = method
        self._met: dict[tuple[int, ...], tuple[tuple[str, ...], bool]] = {}
        self._cache: dict[object, Resolved] = {}
        self._answers: dict[Resolved, Resolved] = {}

    def values(self, group: Group, models: Sequence[Operand]) -> Resolved:
        """Return the shared values, and one `Values` per model.

        Raises:
            UnresolvedError: a required parameter has no value for this tensor.
        """
        # Of a tensor's name only matters which filters it meets, so most tensors of a layer share one answer.
        who, filters, gradual = self._conditions_met(group, models)
        where = (group.t if gradual else None, group.position if self._method.positional else None)
        key: object = (who, where)
        if filters:
            names = (group.filter_name, *(o.filter_name for o in models))
            key = (who, where, tuple(text in name for text in filters for name in names))
        found = self._cache.get(key)
        if found is None:
            shared = Values({p.name: self._shared(p, group)[0] for p in self._method.shared})
            if self._method.positional:
                shared = shared.including("position", group.position)
            each = (Values({p.name: self._each(p, group, o)[0] for p in self._method.each}) for o in models)
            made = (shared, tuple(each))
            # Equal answers are one object, for whoever goes by identity.
            found = self._cache[key] = self._answers.setdefault(made, made)
        return found

    def same_in_all_layers(self, group: Group, models: Sequence[Operand]) -> bool:
        """Whether the values are the same for every layer of the slice that has these models."""
        _, filters, gradual = self._conditions_met(group, models)
        return not filters and not gradual and not self._method.positional

    def settings(self, group: Group, models: Sequence[Operand]) -> list[Setting]:
        """Return every parameter of a tensor with its origin, for showing."""
        found = [Setting(p.name, None, *self._shared(p, group)) for p in self._method.shared]
        for o in models:
            found += [Setting(p.name, o.input.name, *self._each(p, group, o)) for p in self._method.each]
        return found

    def _conditions_met(
        self, group: Group, models: Sequence[Operand]
    ) -> tuple[tuple[int, ...], tuple[str, ...], bool]:
        """The slice and models, by identity, and `_conditions_of` them."""
        who = (id(group.part), *(id(o.source) for o in models))
        met = self._met.get(who)
        if met is None:
            met = self._met[who] = self._conditions_of(group, models)
        return who, *met

    def _conditions_of(self, group: Group, models: Sequence[Operand]) -> tuple[tuple[str, ...], bool]:
        """The filters that values may depend on, and whether they may depend on the layer's position."""
        levels = [self._plan.parameters, group.part.parameters, *(o.source.parameters for o in models)]
        used = [level[p.name] for level in levels for p in self._method.parameters if p.name in level]
        conditions = [condition for setting in used for condition in setting.conditions]
        texts = dict.fromkeys(c.filter for c in conditions if c.filter is not None and c.filter != "*")
        return tuple(texts), any(isinstance(c.value, tuple) and len(c.value) > 1 for c in conditions)

    def _shared(self, parameter: Parameter, group: Group) -> tuple[Scalar | None, Origin | None]:
        levels = (group.part.parameters, self._plan.parameters)
        found = self._lookup(parameter, levels, group.filter_name, group.t)
        if found is None:
            where = group.part.origin if self._plan.slices else self._plan.method_origin
            raise self._unresolved(parameter, levels, where, None)
        return found

    def _each(self, parameter: Parameter, group: Group, o: Operand) -> tuple[Scalar | None, Origin | None]:
        levels = (o.source.parameters, group.part.parameters, self._plan.parameters)
        found = self._lookup(parameter, levels, o.filter_name, group.t)
        if found is None:
            raise self._unresolved(parameter, levels, o.source.origin, o.input.name)
        return found

    def _lookup(
        self, parameter: Parameter, levels: tuple[Parameters, ...], tensor: str, t: float
    ) -> tuple[Scalar | None, Origin | None] | None:
        """Value and origin; None if the parameter is required and no level has a value."""
        found = resolve(levels, parameter, tensor, t)
        if found is not None:
            return found.value, found.origin
        if parameter.required:
            return None
        default = parameter.default
        assert default is None or isinstance(default, bool | int | float | str)
        return default, None

    def _unresolved(
        self, parameter: Parameter, levels: Iterable[Parameters], where: Origin, model: str | None
    ) -> UnresolvedError:
        """The error, at the line of the nearest setting whose filters leave the tensor out."""
        setting = next((level[parameter.name] for level in levels if parameter.name in level), None)
        whose = f" for {model}" if model else ""
        message = (
            f"{self._method.name} needs {parameter.name!r}{whose}, and no filter of the plan gives it a value"
        )
        return UnresolvedError(message, where if setting is None else setting.origin, model)
