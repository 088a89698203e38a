"""An account of every input tensor: nothing is used, left out or found different in silence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mergegraph.architectures.roles import is_derived, is_head
from mergegraph.checkpoint.names import split_layer
from mergegraph.compiler.inputs import Input
from mergegraph.graph.graph import Graph, SourceTensor
from mergegraph.methods.base import Values
from mergegraph.plan.values import ModelRef

_INSIGNIFICANT = (
    "_name_or_path",
    "transformers_version",
    "torch_dtype",
    "dtype",
    "use_cache",
    "architectures",
)


@dataclass(frozen=True, slots=True)
class Dropped:
    """An input tensor that no output uses, and why."""

    model: str
    tensor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Partial:
    """An output tensor that some inputs lack; it is merged from the others."""

    tensor: str
    missing_from: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ConfigDifference:
    """A config key on which inputs disagree, with each model's value (as JSON text; None: absent)."""

    key: str
    values: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The parameters that some output tensors share: the shared values, and each model's."""

    shared: Values
    each: tuple[tuple[str, Values], ...]
    tensors: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values, for the lock file and the manifest."""
        return {
            "shared": {name: self.shared[name] for name in self.shared},
            "each": [
                {"model": model, **{name: values[name] for name in values}} for model, values in self.each
            ],
            "tensors": list(self.tensors),
        }


@dataclass(frozen=True, slots=True)
class CompileReport:
    """What compiling a plan found out besides the graph."""

    partial: tuple[Partial, ...]
    dropped: tuple[Dropped, ...]
    config_differences: tuple[ConfigDifference, ...]
    notes: tuple[str, ...]
    parameters: tuple[Assignment, ...]


def unused(inputs: Mapping[ModelRef, Input], graph: Graph, known: Sequence[Dropped]) -> list[Dropped]:
    """Return the input tensors that no output reads, beyond those already `known` to be dropped."""
    used = graph.sources()
    noted = {(d.model, d.tensor) for d in known}
    found = []
    for model in inputs.values():
        for name, place in model.tensors.items():
            # A plain tuple equals a `SourceTensor` and is made in a fraction of the time.
            if (model.key, place.tensor, place.view) in used:
                continue
            source = SourceTensor(model.key, place.tensor, place.view)
            # A stack that is copied whole is one source, and all of its matrices are used.
            if place.view is not None and SourceTensor(*source.name) in used:
                continue
            if (model.name, source.label) in noted:
                continue
            reason = _reason(model, name, len(place.spec.shape), graph)
            found.append(Dropped(model.name, source.label, reason))
    return found


def _reason(model: Input, name: str, rank: int, graph: Graph) -> str:
    if is_derived(name, rank):
        return "derived buffer"
    if model.stack is not None and split_layer(name, model.stack.prefix) is not None:
        return "its layer is in no slice"
    if is_head(name) and name not in graph.outputs:
        return "the output head is tied to the embedding"
    return "taken from another model's slice"


def config_differences(inputs: Mapping[ModelRef, Input]) -> tuple[ConfigDifference, ...]:
    """Return the config keys on which the inputs disagree, but for those that say nothing of the model."""
    flat = {model.name: _flatten(model.index.config) for model in inputs.values()}
    keys = {key: None for values in flat.values() for key in values}
    found = []
    for key in keys:
        values = {name: config.get(key) for name, config in flat.items()}
        first = next(iter(values.values()))
        if key.split(".")[0] not in _INSIGNIFICANT and any(_differ(v, first) for v in values.values()):
            found.append(ConfigDifference(key, values))
    return tuple(found)


def _differ(a: str | None, b: str | None) -> bool:
    """Whether two values differ as JSON does: 10000 and 10000.0 are one number, 1 and true are two things."""
    if a == b or a is None or b is None:
        return a != b
    x, y = json.loads(a), json.loads(b)
    return isinstance(x, bool) or isinstance(y, bool) or bool(x != y)


def _flatten(config: Mapping[str, Any], path: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = json.dumps(value)
    return flat
