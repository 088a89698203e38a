"""The small languages inside a plan: model references, settings, dtypes and layer ranges.

Every reader here takes a `Located` value and the collector of problems. What is wrong is noted there and
None returned, so that one pass over a plan finds everything.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mergegraph.errors import did_you_mean
from mergegraph.graph.node import Origin
from mergegraph.plan.source import Entry, Located, Problems
from mergegraph.tensorspec import PLAN_DTYPES, DType, dtype_from_torch_name

Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model, as a plan names it: ``path[@revision][+lora[@revision]]`` or a mapping of the parts.

    Attributes:
        path: local path or hub id.
        revision: hub revision.
        lora: an adapter to apply, with its own ``@revision`` if it has one.
        override_architecture: class name that replaces the config's; from the mapping form only.
        raw: the string as written; None for the mapping form, whose parts are never reinterpreted.

    Reading a plan does not look at the file system, so it cannot know that ``models/a+b`` is one
    directory. Whoever resolves a reference must therefore first ask whether `raw` exists as a local
    path, and if so use `as_path` instead. A string that the grammar cannot split (two ``+``, an empty
    part) is one path already.
    """

    path: str
    revision: str | None = None
    lora: str | None = None
    override_architecture: str | None = None
    raw: str | None = field(default=None, compare=False)

    def as_path(self) -> ModelRef:
        """Return the reference with the whole of `raw` as its local path."""
        return self if self.raw is None else ModelRef(self.raw, raw=self.raw)

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.path}{revision}+{self.lora}" if self.lora else f"{self.path}{revision}"


@dataclass(frozen=True, slots=True)
class Condition:
    """A value for the tensors whose name contains `filter` (None or ``*``: for all of them).

    A tuple is a gradient over the layers; an empty one means "not set".
    """

    filter: str | None
    value: Scalar | tuple[Scalar, ...]
    origin: Origin

    def matches(self, tensor: str) -> bool:
        """Whether the condition applies to `tensor`."""
        return self.filter is None or self.filter == "*" or self.filter in tensor


@dataclass(frozen=True, slots=True)
class Setting:
    """The value of one parameter at one level: the first condition that matches decides.

    `origin` is the line of the parameter's name.
    """

    conditions: tuple[Condition, ...]
    origin: Origin


ExpertLayout = Literal["per-expert", "stacked"]
"""How experts are written: a tensor each, or one for all experts of a layer."""

Parameters = Mapping[str, Setting]


def parse_model_ref(text: str) -> ModelRef:
    """Split a reference string; one that does not follow the grammar is a path as a whole.

    Raises:
        ValueError: the string is empty.
    """
    if not text.strip():
        raise ValueError("a model reference must not be empty")
    model, plus, lora = text.partition("+")
    path, at, revision = model.partition("@")
    adapter, adapter_at, adapter_revision = lora.partition("@")
    parts = [path, *([revision] if at else ()), *([adapter] if plus else ())]
    parts += [adapter_revision] if adapter_at else ()
    if not all(parts) or "+" in lora or "@" in revision or "@" in adapter_revision:
        return ModelRef(text, raw=text)
    return ModelRef(path, revision or None, lora or None, raw=text)


def read_model_ref(value: Located, problems: Problems) -> ModelRef | None:
    """Read a reference in its string or mapping form."""
    if isinstance(value.value, str) and value.value.strip():
        return parse_model_ref(value.value)
    if value.entries is None:
        said = "an empty string" if isinstance(value.value, str) else value.kind()
        hint = "write a local path or a hub id, in quotes if it looks like a number or a date"
        problems.add(f"a model must be named by a string, not {said}", value.origin, hint)
        return None
    check_keys(value, ("model", "lora", "override_architecture"), "a model reference", problems)
    entries = value.entries
    if "model" not in entries:
        problems.add("a model reference needs the key 'model'", value.origin, "add model: PATH")
        return None
    model = _read_path(entries["model"].value, problems)
    lora = entries.get("lora")
    adapter = None if lora is None or lora.value.value is None else _read_path(lora.value, problems)
    override = entries.get("override_architecture")
    name = None if override is None else override.value.value
    if override is not None and not (name is None or isinstance(name, str)):
        message = f"override_architecture must be a class name, not {override.value.kind()}"
        problems.add(message, override.origin, "for example LlamaForCausalLM")
    if model is None:
        return None
    spelled = None if adapter is None else "@".join(part for part in adapter if part)
    return ModelRef(*model, spelled, name if isinstance(name, str) else None)


def _read_path(value: Located, problems: Problems) -> tuple[str, str | None] | None:
    """Read ``path[@revision]`` or ``{path, revision}`` within the mapping form."""
    if isinstance(value.value, str) and value.value.strip():
        path, at, revision = value.value.partition("@")
        well_formed = path and at and revision and "@" not in revision
        return (path, revision) if well_formed else (value.value, None)
    if value.entries is None:
        message = f"a model path must be a string, not {value.kind()}"
        problems.add(message, value.origin, "write a local path or a hub id")
        return None
    check_keys(value, ("path", "revision"), "a model path", problems)
    parts: dict[str, Any] = {key: entry.value.value for key, entry in value.entries.items()}
    location, pin = parts.get("path"), parts.get("revision")
    if not isinstance(location, str) or not location.strip():
        problems.add("a model path needs the key 'path', a string", value.origin, "add path: PATH")
        return None
    if pin is not None and not isinstance(pin, str):
        line = value.entries["revision"].origin
        problems.add("a revision must be a string", line, f'write revision: "{pin}"')
        return None
    return location, pin


def read_parameters(entry: Entry, problems: Problems) -> dict[str, Setting]:
    """Read a ``parameters:`` block."""
    value = entry.value
    if value.entries is None:
        message = f"parameters must be a mapping of names to values, not {value.kind()}"
        problems.add(message, entry.origin, "write them as NAME: VALUE, without dashes")
        return {}
    read = {e.key: _read_setting(e.key, e.value, e.origin, problems) for e in value.entries.values()}
    return {name: setting for name, setting in read.items() if setting is not None}


def _read_setting(name: str, value: Located, origin: Origin, problems: Problems) -> Setting | None:
    """Read a scalar, a gradient, one condition, or a list of conditions."""
    items = value.items
    if items and any(item.entries is not None for item in items):
        if any(item.entries is None for item in items):
            message = f"{name} mixes plain values and conditions in one list"
            problems.add(message, origin, "make it all values, or all {filter, value} conditions")
            return None
        read = [_read_condition(name, item, problems) for item in items]
    elif value.entries is not None:
        read = [_read_condition(name, value, problems)]
    else:
        plain = _read_plain(name, value, problems)
        read = [None if plain is None else Condition(None, plain, origin)]
    conditions = tuple(condition for condition in read if condition is not None)
    return Setting(conditions, origin) if len(conditions) == len(read) else None


def _read_condition(name: str, value: Located, problems: Problems) -> Condition | None:
    entries = value.entries or {}
    check_keys(value, ("filter", "value"), f"a condition of {name}", problems)
    if "value" not in entries:
        problems.add(f"a condition of {name} needs the key 'value'", value.origin, "add value: …")
        return None
    found = entries.get("filter")
    text = None if found is None else found.value.value
    if found is not None and not (text is None or isinstance(text, str)):
        message = f"the filter of {name} must be a string, not {found.value.kind()}"
        problems.add(message, found.origin, "quote it")
        return None
    plain = _read_plain(name, entries["value"].value, problems)
    return None if plain is None else Condition(text, plain, value.origin)


def _read_plain(name: str, value: Located, problems: Problems) -> Scalar | tuple[Scalar, ...] | None:
    """Read a scalar or a gradient."""
    if value.items is None:
        return _read_scalar(name, value, problems)
    read = [_read_scalar(name, item, problems) for item in value.items]
    scalars = tuple(item for item in read if item is not None)
    return scalars if len(scalars) == len(read) else None


def _read_scalar(name: str, value: Located, problems: Problems) -> Scalar | None:
    if isinstance(value.value, float) and not math.isfinite(value.value):
        problems.add(f"{name} is {value.value}", value.origin, "parameters must be finite numbers")
    elif isinstance(value.value, bool | int | float | str):
        return value.value
    elif value.value is None:
        problems.add(f"{name} has no value", value.origin, f"write {name}: VALUE, or remove the line")
    else:
        message = f"{name} must be a number, boolean or string, not {value.kind()}"
        problems.add(message, value.origin, "lists and conditions cannot be nested")
    return None


_DTYPE_NICKNAMES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "full": "float32",
    "fp64": "float64",
    "f64": "float64",
    "double": "float64",
}


def read_dtype(entry: Entry, problems: Problems) -> DType | None:
    """Read a dtype name."""
    name, value, origin = entry.key, entry.value, entry.origin
    known = f"one of {', '.join(PLAN_DTYPES)}"
    if not isinstance(value.value, str):
        problems.add(f"{name} must be a string, not {value.kind()}", origin, f"write {known}")
        return None
    dtype = dtype_from_torch_name(value.value)
    if dtype is not None and dtype.torch_name in PLAN_DTYPES:
        return dtype
    near = _DTYPE_NICKNAMES.get(value.value.lower())
    hint = f"did you mean {near!r}?" if near else did_you_mean(value.value, PLAN_DTYPES)
    what = "cannot be merged in" if dtype is not None else "is not a dtype"
    problems.add(f"{name}: {value.value!r} {what}", origin, hint or f"write {known}")
    return None


def read_layer_range(entry: Entry, problems: Problems) -> tuple[int, int] | None:
    """Read ``[start, end)``."""
    value, origin, items = entry.value, entry.origin, entry.value.items
    numbers = [i.value for i in items or () if type(i.value) is int]
    if items is None or len(items) != 2 or len(numbers) != 2:
        message = f"layer_range must be two integers, not {str(value.plain())[:40]}"
        problems.add(message, origin, "write [start, end]: the first layer, and one past the last")
        return None
    start, end = numbers
    if start < 0 or end < 0:
        problems.add(f"layer_range [{start}, {end}] is negative", origin, "layers are counted from 0")
    elif start > end:
        problems.add(f"layer_range [{start}, {end}] is reversed", origin, f"write [{end}, {start}]")
    elif start == end:
        message = f"layer_range [{start}, {end}] is empty"
        problems.add(message, origin, f"the end is not included: [{start}, {end + 1}] is layer {start}")
    else:
        return start, end
    return None


PARAMETER_NAMES = (
    "weight",
    "t",
    "scale",
    "density",
    "normalize",
    "lambda",
    "gamma",
    "epsilon",
    "rescale",
    "int8_mask",
)
"""Names that are often written one level too high; only used to choose a hint."""


def check_keys(
    value: Located, known: tuple[str, ...], what: str, problems: Problems, refused: tuple[str, ...] = ()
) -> None:
    """Note every key of a mapping that is not one of `known`; `refused` ones are noted elsewhere."""
    for key, entry in (value.entries or {}).items():
        if key in known or key in refused:
            continue
        parameter = did_you_mean(key, PARAMETER_NAMES) if "parameters" in known else None
        if key in PARAMETER_NAMES and parameter:
            hint = f"{key} is a parameter: write it below 'parameters:'"
        elif near := did_you_mean(key, known):
            hint = near
        elif parameter:
            hint = f"{parameter} Parameters are written below 'parameters:'"
        else:
            hint = f"the keys are {', '.join(known)}"
        problems.add(f"{what} has no key {key!r}", entry.origin, hint)
