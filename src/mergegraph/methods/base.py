"""What a merge method is: a formula over tensor-like operands, and all that is said about it.

`MergeMethod.build` is ordinary Python. Called with tensors it computes, called with nodes it builds
a graph, so one definition serves both. Everything else here is declaration: the compiler checks a
plan against it, and the documentation is generated from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

Scalar = bool | int | float | str
Kind = type[bool] | type[int] | type[float] | type[str]
Scope = Literal["shared", "each"]
BasePolicy = Literal["required", "optional", "ignored"]


class _Required(Enum):
    REQUIRED = "required"

    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED: Final = _Required.REQUIRED
"""The default of a parameter that a plan must set."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a method, as a plan may set it.

    Attributes:
        name: its key under ``parameters:``.
        kind: `float`, `int`, `bool` or `str`; values are converted to it.
        scope: ``shared`` is one value per output tensor, ``each`` one per merged input.
        default: the value when no level of the plan sets it; `REQUIRED`, or None for "not set".
        minimum: smallest allowed value, inclusive.
        maximum: largest allowed value, inclusive.
        doc: one sentence for the user.
    """

    name: str
    kind: Kind
    scope: Scope
    default: Scalar | _Required | None
    minimum: float | None = None
    maximum: float | None = None
    doc: str = ""

    def __post_init__(self) -> None:
        if self.kind not in (bool, int, float, str):
            raise TypeError(f"parameter {self.name}: kind must be bool, int, float or str")
        if self.scope not in get_args(Scope):
            raise ValueError(f"parameter {self.name}: scope must be one of {get_args(Scope)}")
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        if low > high:
            raise ValueError(f"parameter {self.name}: minimum {low} exceeds maximum {high}")

    @property
    def required(self) -> bool:
        """Whether a plan must set it."""
        return self.default is REQUIRED


class Values:
    """The resolved parameters of one output tensor: ``p.weight`` or ``p["weight"]``.

    A name that Python reserves is read with a trailing underscore: ``p.lambda_``.
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Scalar | None]) -> None:
        object.__setattr__(self, "_values", MappingProxyType(dict(values)))

    def including(self, name: str, value: Any) -> Values:
        """The same values and one more."""
        return Values({**self._values, name: value})

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_values":
            raise AttributeError(name)
        try:
            return self._values[name.removesuffix("_")]
        except KeyError:
            raise AttributeError(f"the method declares no parameter {name!r}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("parameter values are read-only")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Values) and self._values == other._values

    def __hash__(self) -> int:
        return hash(tuple(self._values.items()))

    def __repr__(self) -> str:
        return f"Values({dict(self._values)!r})"


Build = Callable[[Any, tuple[Any, ...], Values, tuple[Values, ...]], Any]
"""(base or None, models, shared values, one `Values` per model) → merged tensor or node."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a method comes from: the paper (or program), its address, and the equation used."""

    paper: str
    link: str
    equation: str


@dataclass(frozen=True, slots=True)
class MergeMethod:
    """A merge method. A file in this package defines one, called ``METHOD``.

    Attributes:
        name: the value of ``merge_method:``, and the name of the file.
        summary: one sentence.
        formula: plain text.
        reference: paper, link and equation.
        deviations: how this differs from the reference, or "none".
        base: whether a base model is required or optional as an operand of its own. ``ignored``
            means that a base model in the plan is one more input like any other.
        inputs: least and most number of inputs besides the base; None for no limit.
        parameters: all that a plan may set.
        build: the formula; see `Build`. Its models come in plan order.
        example: a minimal plan that runs.
        random: whether it draws at random; each model's values then hold its ``stream``: two whole numbers
            below 2**24 that name the sequence, or the node for the sequence that a plan's seed gives.
        positional: whether it depends on depth; the shared values then hold the tensor's ``position`` in the
            output model: 0 in its first layer and before, 1 in its last layer and after.
    """

    name: str
    summary: str
    formula: str
    reference: Reference
    deviations: str
    base: BasePolicy
    inputs: tuple[int, int | None]
    parameters: tuple[Parameter, ...]
    build: Build
    example: str
    random: bool = False
    positional: bool = False

    def __post_init__(self) -> None:
        if self.base not in get_args(BasePolicy):
            raise ValueError(f"method {self.name}: base must be one of {get_args(BasePolicy)}")
        least, most = self.inputs
        if least < 1 or (most is not None and most < least):
            raise ValueError(f"method {self.name}: {self.inputs} is not a range of input counts")
        names = [p.name for p in self.parameters]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise ValueError(f"method {self.name} declares the parameter {twice!r} twice")

    @property
    def shared(self) -> tuple[Parameter, ...]:
        """The parameters with one value per output tensor."""
        return tuple(p for p in self.parameters if p.scope == "shared")

    @property
    def each(self) -> tuple[Parameter, ...]:
        """The parameters with one value per merged input."""
        return tuple(p for p in self.parameters if p.scope == "each")

    def parameter(self, name: str) -> Parameter | None:
        """Return the parameter called `name`, or None."""
        return next((p for p in self.parameters if p.name == name), None)
