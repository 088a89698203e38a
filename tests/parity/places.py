"""Where a plan puts its tensors, and which parameters hold there: a second reading of merge plans.

Deliberately naive and independent of `src`: plain dictionaries, one pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import models
from .oracle import F64

_LAYER = re.compile(r"^(?P<prefix>(?:\w+\.)*(?:layers|h)\.)(?P<index>\d+)\.(?P<rest>.+)$")
_AFTER_THE_STACK = re.compile(r"(^|\.)(lm_head|norm|ln_f)\.")
HEAD = "lm_head.weight"


@dataclass(frozen=True)
class Source:
    """A model in a slice, with the layers it gives and its own parameters."""

    model: str
    start: int
    stop: int
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Slice:
    """A run of output layers."""

    sources: tuple[Source, ...]
    base: str | None
    parameters: Mapping[str, Any]

    @property
    def length(self) -> int:
        """The number of layers it makes."""
        return self.sources[0].stop - self.sources[0].start


@dataclass(frozen=True)
class Place:
    """Where an output tensor stands: its name, its slice, how far along, which layer of the slice it is."""

    name: str
    slice_: Slice
    t: float
    offset: int | None

    def source_name(self, source: Source) -> str:
        """The name of this tensor in a source of the slice."""
        match = _LAYER.match(self.name)
        if match is None or self.offset is None:
            return self.name
        return f"{match['prefix']}{source.start + self.offset}.{match['rest']}"


def _depth(key: str) -> int:
    config = models.config(key)
    return int(config.get("num_hidden_layers") or config["n_layer"])


def _key(reference: Any) -> Any:
    """The checkpoint that a reference names: a string, or a mapping around one."""
    while isinstance(reference, dict):
        reference = reference.get("model") or reference.get("path")
    return reference


def _source(entry: Mapping[str, Any]) -> Source:
    start, stop = entry["layer_range"]
    return Source(_key(entry["model"]), start, stop, entry.get("parameters") or {})


def slices_of(plan: Mapping[str, Any]) -> list[Slice]:
    base = _key(plan.get("base_model"))
    if "slices" in plan:
        return [
            Slice(
                tuple(_source(entry) for entry in part["sources"]),
                _key(part.get("base_model")) or base,
                part.get("parameters") or {},
            )
            for part in plan["slices"]
        ]
    listed = [(_key(entry["model"]), entry.get("parameters") or {}) for entry in plan["models"]]
    if base is not None and base not in [key for key, _ in listed]:
        listed.append((base, {}))
    return [Slice(tuple(Source(key, 0, _depth(key), own) for key, own in listed), base, {})]


def places_of(slices: Sequence[Slice], loaded: Mapping[str, Mapping[str, F64]]) -> list[Place]:
    places: list[Place] = []
    for part, after in ((slices[0], False), (slices[-1], True)):
        names = {name: None for s in part.sources for name in loaded[s.model] if not _LAYER.match(name)}
        if HEAD not in names and any(HEAD in held for held in loaded.values()):
            names[HEAD] = None
        found = [name for name in names if bool(_AFTER_THE_STACK.search(name)) == after]
        places += [Place(name, part, 0.0, None) for name in found]
    first = 0
    for part in slices:
        held = loaded[part.sources[0].model]
        matches = [match for match in map(_LAYER.match, held) if match is not None]
        for offset in range(part.length):
            t = 1.0 if part.length == 1 else offset / (part.length - 1)
            start = str(part.sources[0].start + offset)
            for match in matches:
                if match["index"] == start:
                    name = f"{match['prefix']}{first + offset}.{match['rest']}"
                    places.append(Place(name, part, t, offset))
        first += part.length
    return places


def _choose(setting: Any, name: str, t: float) -> Any:
    """The value of one level for a tensor, or None when the level says nothing about it."""
    conditions = (
        setting if isinstance(setting, list) and setting and isinstance(setting[0], dict) else [setting]
    )
    for condition in conditions:
        if isinstance(condition, dict):
            wanted = condition.get("filter")
            if wanted not in (None, "*") and wanted not in name:
                continue
            condition = condition["value"]
        return _along(condition, t) if isinstance(condition, list) else condition
    return None


def _along(gradient: Sequence[Any], t: float) -> Any:
    position = t * (len(gradient) - 1)
    low = int(position)
    if any(isinstance(value, bool) for value in gradient):
        return gradient[low]
    high = min(low + 1, len(gradient) - 1)
    share = position - low
    return (1 - share) * float(gradient[low]) + share * float(gradient[high])


class Lookup:
    """Parameter values for one output tensor."""

    def __init__(self, plan: Mapping[str, Any], place: Place) -> None:
        self._outer = (place.slice_.parameters, plan.get("parameters") or {})
        self._place = place

    def _first(self, levels: Sequence[Mapping[str, Any]], parameter: str, name: str) -> Any:
        for level in levels:
            if parameter in level:
                value = _choose(level[parameter], name, self._place.t)
                if value is not None:
                    return value
        return None

    def shared(self, parameter: str, default: Any) -> Any:
        """A parameter of the method: matched by output name, never read from a model."""
        value = self._first(self._outer, parameter, self._place.name)
        return default if value is None else value

    def own(self, parameter: str, source: Source, default: float | None = None) -> float | None:
        """A parameter of one model: matched by the name its tensor has there."""
        name = self._place.source_name(source)
        value = self._first((source.parameters, *self._outer), parameter, name)
        return default if value is None else float(value)
