"""What a config says layer by layer, and how to say it of another sequence of layers.

Configs spell one value per layer in several ways: as a list or a string of that length, as the numbers of
the layers that are special, as the number of leading layers that are, or not at all, because the family
derives it from the position. All are read into rows of values, and rows are written back the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mergegraph.architectures import family_of
from mergegraph.architectures.roles import is_derived
from mergegraph.compiler.inputs import Input, layer_counts

_INDEX_LISTS = (
    *("full_attn_idxs", "mlp_only_layers", "cross_attention_layers", "attn_layer_indices"),
    *("no_rope_layer_indices", "moe_layers", "hybrid_layer_ids"),
)
"""Keys whose value lists layer numbers."""
_PREFIX_COUNTS = ("max_window_layers", "first_k_dense_replace")
"""Keys that count leading layers of one kind."""
_PATTERNS = ("hybrid_override_pattern",)
"""Keys whose value is a string with a letter per layer."""
_CYCLES = "attention_types"
"""GPT-Neo's key: ``[[["global", "local"], 12]]`` is a cycle of kinds, and how often it is repeated."""
_NOT_BY_LAYER = (
    *("architectures", "mrope_section", "rope_section", "image_size", "image_grid_pinpoints"),
    *("vision_feature_layer", "torch_dtype", "keys_to_ignore_at_inference"),
)
_NOT_BY_LAYER_ENDS = ("token_id", "token_ids", "token_index", "_tokens", "_modules", "_names", "_factor")

Layers = list[tuple[Input, int]]
"""For each output layer, the model it takes its config from and its number there."""
Rows = dict[str, list[Any]]
"""One value per layer, by config key."""


def renumber(config: dict[str, Any], layers: Layers, donor: Input) -> list[str]:
    """Adapt layer counts, and everything said layer by layer, in the donor's config to `layers`.

    Returns remarks on what could not be adapted.
    """
    count = donor.layers
    counts = list(layer_counts(config))
    agreeing = [path for path, value in counts if value == count]
    if not agreeing:
        stated = ", ".join(f"{'.'.join(path)}: {value}" for path, value in counts) or "no number of layers"
        return [
            f"the config of {donor.name} says {stated}, and its checkpoint holds {count} layers: what the "
            f"config says of layers was left as it is, and must be corrected by hand to {len(layers)}"
        ]
    told: list[tuple[Rows, Rows]] = []
    for path in dict.fromkeys(path[:-1] for path in agreeing):
        part = _at(config, path)
        before = _rows(config, part, count)
        moved = _moved(before, layers, path)
        for key in [p[-1] for p in agreeing if p[:-1] == path]:
            part[key] = len(layers)
        derived = family_rows(config, part, len(layers))
        for key, values in moved.items():
            if key not in derived or values != derived[key]:
                part[key] = _write(key, values, part.get(key))
        told.append((before, _rows(config, part, len(layers))))
    return _untold(layers, donor, told)


def family_rows(config: Mapping[str, Any], part: Mapping[str, Any], count: int) -> Rows:
    """What the family derives from the position of each layer, for keys that `part` does not set."""
    family = family_of(part.get("model_type") or config.get("model_type"))
    rules = family.per_layer.items()
    return {key: rule(count, part) for key, rule in rules if not _is_set(key, part.get(key))}


def _is_set(key: str, value: Any) -> bool:
    """Whether a config gives a value: an empty list is one only where it lists the special layers."""
    return value is not None and (value != [] or key in _INDEX_LISTS)


def _rows(config: Mapping[str, Any], part: Mapping[str, Any], count: int) -> Rows:
    """Everything that `part` of a config says, or leaves to be derived, of `count` layers."""
    read = {key: _read(key, value, count) for key, value in part.items()}
    return family_rows(config, part, count) | {key: row for key, row in read.items() if row is not None}


def _read(key: str, value: Any, count: int) -> list[Any] | None:
    """One value per layer, if `key` says that; else None."""
    if key in _PREFIX_COUNTS:
        return [i < value for i in range(count)] if type(value) is int else None
    if key in _PATTERNS:
        return list(value) if isinstance(value, str) and len(value) == count else None
    if not isinstance(value, list):
        return None
    if key in _INDEX_LISTS:
        return [i in value for i in range(count)]
    if key == _CYCLES:
        value = _unrolled(value, count)
    by_layer = key not in _NOT_BY_LAYER and not key.endswith(_NOT_BY_LAYER_ENDS)
    return value if by_layer and len(value) == count and (count > 1 or key == "layer_types") else None


def _unrolled(value: list[Any], count: int) -> list[Any]:
    """The kinds of `count` layers; nothing if the cycles are not that long, whatever else they are."""
    try:
        fits = sum(len(cycle) * times for cycle, times in value) == count
        return [kind for cycle, times in value for _ in range(times) for kind in cycle] if fits else []
    except (TypeError, ValueError):
        return []


def _write(key: str, values: list[Any], old: Any) -> Any:
    """The inverse of `_read`; `old` is what the donor's config said."""
    if key in _INDEX_LISTS:
        return [i for i, listed in enumerate(values) if listed]
    if key in _PREFIX_COUNTS:
        # A limit beyond all layers means "never", and stays beyond them.
        return values.index(False) if False in values else max(old, len(values))
    if key in _PATTERNS:
        return "".join(values)
    return [[[kind], 1] for kind in values] if key == _CYCLES else values


def _moved(before: Rows, layers: Layers, path: tuple[str, ...]) -> Rows:
    """The donor's rows with the values of `layers`, each from its own model where that has the key."""
    own: dict[str, Rows] = {}
    for model, _ in layers:
        if model.key not in own:
            own[model.key] = _rows_of(model, path)
    return {
        key: [own[model.key].get(key, row)[i % len(own[model.key].get(key, row))] for model, i in layers]
        for key, row in before.items()
        if row
    }


def _rows_of(model: Input, path: tuple[str, ...]) -> Rows:
    """A model's rows: from the same place as the donor's, or from where it counts its layers."""
    config = model.index.config
    places = [p[:-1] for p, value in layer_counts(config) if value == model.layers]
    place = path if path in places else next(iter(places), None)
    return {} if place is None else _rows(config, _at(config, place), model.layers)


def _at(config: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        config = config[step]
    return config


def _untold(layers: Layers, donor: Input, told: list[tuple[Rows, Rows]]) -> list[str]:
    """Remark on layers that hold other tensors than the donor's in their place, if no key can say so."""
    odd = [
        at
        for at, (model, i) in enumerate(layers[: donor.layers])
        if model.by_layer[i].keys() != donor.by_layer[at].keys()
        and _learned(model, i) != _learned(donor, at)
        and all(
            row[at] == before[key][at]
            for before, after in told
            for key, row in after.items()
            if key in before
        )
    ]
    if not odd:
        return []
    listed = ", ".join(map(str, odd[:8])) + (", …" if len(odd) > 8 else "")
    return [
        f"output layers {listed} hold other tensors than these layers of {donor.name}, and config.json has "
        "no key that says which layer is of which kind: a loader may refuse the result"
    ]


def _learned(model: Input, layer: int) -> dict[str, None]:
    return {suffix: None for suffix in model.by_layer[layer] if not is_derived(suffix, 1)}
