"""A second reading of merge plans: which inputs and which parameters make each output tensor.

Deliberately naive and independent of `src`: whole tensors in float64, plain dictionaries, one pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from . import models, oracle
from .oracle import F64, Answer

_LAYER = re.compile(r"^(?P<prefix>(?:\w+\.)*(?:layers|h)\.)(?P<index>\d+)\.(?P<rest>.+)$")
_AFTER_THE_STACK = re.compile(r"(^|\.)(lm_head|norm|ln_f)\.")
_HEAD = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"
_WIDTH = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}


@dataclass(frozen=True)
class Expected:
    """One output tensor: its dtype, what it should hold, and whether mergekit kept 32 bits throughout."""

    dtype: str
    answer: Answer
    wide: bool


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


def read(text: str) -> dict[str, Expected]:
    """Every output tensor of the plan `text`, in which checkpoints are named by their keys."""
    plan = yaml.safe_load(text)
    slices = _slices(plan)
    keys = list(dict.fromkeys(source.model for part in slices for source in part.sources))
    loaded = {key: models.tensors(key) for key in keys}
    return {place.name: _expected(plan, place, loaded) for place in _places(slices, loaded)}


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


def _slices(plan: Mapping[str, Any]) -> list[Slice]:
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


def _places(slices: Sequence[Slice], loaded: Mapping[str, Mapping[str, F64]]) -> list[Place]:
    places: list[Place] = []
    for part, after in ((slices[0], False), (slices[-1], True)):
        names = {name: None for s in part.sources for name in loaded[s.model] if not _LAYER.match(name)}
        if _HEAD not in names and any(_HEAD in held for held in loaded.values()):
            names[_HEAD] = None
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


def _fetch(held: Mapping[str, F64], name: str) -> F64:
    return held[_EMBEDDING] if name == _HEAD and name not in held else held[name]


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


def _expected(plan: Mapping[str, Any], place: Place, loaded: Mapping[str, Mapping[str, F64]]) -> Expected:
    sources = place.slice_.sources
    inputs = [_fetch(loaded[s.model], place.source_name(s)) for s in sources]
    common = _promoted([models.MODELS[s.model].dtype for s in sources])
    asked = str(plan["dtype"]).removeprefix("torch.") if "dtype" in plan else common
    answer = _METHODS[plan["merge_method"]](Lookup(plan, place), place, inputs, asked == "float64")
    out = str(plan.get("out_dtype", asked))
    return Expected(out, answer, min(_WIDTH[asked], _WIDTH[out]) >= 32)


def _promoted(dtypes: Sequence[str]) -> str:
    if len(set(dtypes)) == 1:
        return dtypes[0]
    return "float64" if "float64" in dtypes else "float32"


def _required(value: float | None) -> float:
    if value is None:
        raise ValueError("a required parameter is missing")
    return value


def _linear(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    weights = [_required(look.own("weight", s)) for s in place.slice_.sources]
    return oracle.linear(inputs, weights, normalize=look.shared("normalize", True))


def _split(place: Place, inputs: Sequence[F64]) -> tuple[F64, list[tuple[Source, F64]]]:
    pairs = list(zip(place.slice_.sources, inputs, strict=True))
    (base,) = [x for s, x in pairs if s.model == place.slice_.base]
    return base, [(s, x) for s, x in pairs if s.model != place.slice_.base]


def _slerp(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    base, [(_, other)] = _split(place, inputs)
    return oracle.slerp(base, other, t=_required(float(look.shared("t", None))))


def _task_arithmetic(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    base, others = _split(place, inputs)
    weights = [_required(look.own("weight", s)) for s, _ in others]
    return oracle.task_arithmetic(
        base,
        [x for _, x in others],
        weights,
        normalize=look.shared("normalize", False),
        scale=float(look.shared("lambda", 1.0)),
    )


def _ties(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    base, others = _split(place, inputs)
    return oracle.ties(
        base,
        [x for _, x in others],
        [_required(look.own("weight", s)) for s, _ in others],
        [_required(look.own("density", s, 1.0)) for s, _ in others],
        normalize=look.shared("normalize", True),
        rescale=look.shared("rescale", False),
        scale=float(look.shared("lambda", 1.0)),
        double=double,
    )


def _passthrough(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    (values,) = inputs
    return oracle.passthrough(values, scale=look.own("scale", place.slice_.sources[0]))


Method = Callable[[Lookup, Place, Sequence[F64], bool], Answer]
_METHODS: Mapping[str, Method] = {
    "linear": _linear,
    "slerp": _slerp,
    "task_arithmetic": _task_arithmetic,
    "ties": _ties,
    "passthrough": _passthrough,
}
