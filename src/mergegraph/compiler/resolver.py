"""The parameter values of one output tensor, and where in the plan each comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mergegraph.compiler.groups import Group, Operand
from mergegraph.compiler.parameters import resolve
from mergegraph.graph.node import Origin
from mergegraph.methods.base import MergeMethod, Parameter, Scalar, Values
from mergegraph.plan.merge import MergePlan
from mergegraph.plan.values import Condition, Parameters


@dataclass(frozen=True, slots=True)
class Setting:
    """A resolved parameter: its value, for which model (None: shared), and the plan line (None: default)."""

    name: str
    model: str | None
    value: Scalar | None
    origin: Origin | None


class Resolver:
    """Resolves parameters of a plan for one output tensor after the other.

    Precedence, highest first: the model's own, the slice's, the plan's, the method's default. Per-model
    parameters see the tensor's name in that model, shared ones its name in the output.
    """

    def __init__(self, plan: MergePlan, method: MergeMethod) -> None:
        self._plan = plan
        self._method = method
        self._cache: dict[object, tuple[Scalar | None, Origin | None]] = {}

    def values(self, group: Group, models: Sequence[Operand]) -> tuple[Values, tuple[Values, ...]]:
        """Return the shared values, and one `Values` per model.

        Raises:
            ValueError: a required parameter has no value for this tensor.
        """
        shared = {p.name: self._shared(p, group)[0] for p in self._method.shared}
        each = tuple(Values({p.name: self._each(p, group, o)[0] for p in self._method.each}) for o in models)
        return Values(shared), each

    def settings(self, group: Group, models: Sequence[Operand]) -> list[Setting]:
        """Return every parameter of a tensor with its origin, for showing."""
        found = [Setting(p.name, None, *self._shared(p, group)) for p in self._method.shared]
        for o in models:
            found += [Setting(p.name, o.input.name, *self._each(p, group, o)) for p in self._method.each]
        return found

    def _shared(self, parameter: Parameter, group: Group) -> tuple[Scalar | None, Origin | None]:
        levels = (group.part.parameters, self._plan.parameters)
        return self._lookup(parameter, levels, group.name, group.t, None)

    def _each(self, parameter: Parameter, group: Group, o: Operand) -> tuple[Scalar | None, Origin | None]:
        levels = (o.source.parameters, group.part.parameters, self._plan.parameters)
        return self._lookup(parameter, levels, o.filter_name, group.t, o.input.name)

    def _lookup(
        self, parameter: Parameter, levels: tuple[Parameters, ...], tensor: str, t: float, model: str | None
    ) -> tuple[Scalar | None, Origin | None]:
        # Without filters the name does not matter, and most tensors of a layer share one answer.
        filtered = any(
            c.filter not in (None, "*") for level in levels for c in _conditions(level, parameter.name)
        )
        key = (parameter.name, tuple(map(id, levels)), t, tensor if filtered else None)
        if key not in self._cache:
            self._cache[key] = self._resolve(parameter, levels, tensor, t, model)
        return self._cache[key]

    def _resolve(
        self, parameter: Parameter, levels: tuple[Parameters, ...], tensor: str, t: float, model: str | None
    ) -> tuple[Scalar | None, Origin | None]:
        found = resolve(levels, parameter, tensor, t)
        if found is not None:
            return found.value, found.origin
        if parameter.required:
            whose = f" for {model}" if model else ""
            raise ValueError(
                f"{self._method.name} needs {parameter.name!r}{whose}, and no filter of the plan gives it a "
                f"value for {tensor}; end the list with a condition without filter"
            )
        default = parameter.default
        assert default is None or isinstance(default, bool | int | float | str)
        return default, None


def _conditions(level: Parameters, name: str) -> tuple[Condition, ...]:
    setting = level.get(name)
    return setting.conditions if setting is not None else ()
