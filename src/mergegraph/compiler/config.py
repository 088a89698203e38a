"""The output's config.json: the donor's, with everything that merging made untrue put right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from mergegraph.architectures import family_of
from mergegraph.architectures.roles import is_head
from mergegraph.compiler.groups import layer_range
from mergegraph.compiler.inputs import Input, layer_counts
from mergegraph.graph.graph import Graph
from mergegraph.plan.merge import MergePlan, Slice
from mergegraph.plan.values import ModelRef
from mergegraph.tensorspec import DType

_INDEX_LISTS = (
    "full_attn_idxs",
    "mlp_only_layers",
    "cross_attention_layers",
    "attn_layer_indices",
    "no_rope_layer_indices",
)
"""Keys whose value lists layer numbers."""
_PREFIX_COUNTS = ("max_window_layers", "first_k_dense_replace")
"""Keys that count leading layers of one kind."""

Layers = list[tuple[Input, int]]
"""For each output layer, the model it takes its config from and its number there."""


def output_config(
    plan: MergePlan,
    slices: tuple[Slice, ...],
    inputs: Mapping[ModelRef, Input],
    donor: Input,
    graph: Graph,
) -> dict[str, Any]:
    """Return the config of the output; empty if the donor has none."""
    config = deepcopy(dict(donor.index.config))
    if not config:
        return config
    layers = _layers(slices, inputs)
    if [(m.key, i) for m, i in layers] != [(layers[0][0].key, i) for i in range(donor.layers)]:
        _renumber(config, layers, donor)
    _set_dtype(config, plan, graph)
    _set_tie(config, inputs, graph)
    return config


def _layers(slices: tuple[Slice, ...], inputs: Mapping[ModelRef, Input]) -> Layers:
    layers: Layers = []
    for part in slices:
        model = inputs[part.sources[0].model]
        layers += [(model, i) for i in range(*layer_range(part.sources[0], model))]
    return layers


def _renumber(config: dict[str, Any], layers: Layers, donor: Input) -> None:
    """Adapt layer counts and everything that is said layer by layer to the new sequence of layers."""
    count = donor.layers
    for path, value in list(layer_counts(config)):
        if value == count:
            _part(config, path)[path[-1]] = len(layers)
            _renumber_lists(_part(config, path), layers, path[:-1], count)
    _write_layer_types(config, layers, count)


def _renumber_lists(part: dict[str, Any], layers: Layers, path: tuple[str, ...], count: int) -> None:
    for key, value in list(part.items()):
        if key in _INDEX_LISTS and isinstance(value, list):
            part[key] = [at for at, (m, i) in enumerate(layers) if i in (_lookup(m, path, key) or value)]
        elif key in _PREFIX_COUNTS and isinstance(value, int):
            part[key] = _leading(layers, path, key, value)
        elif isinstance(value, list) and len(value) == count and count > 1:
            rows = [(_lookup(m, path, key) or value, i) for m, i in layers]
            part[key] = [row[i] if i < len(row) else value[i % count] for row, i in rows]


def _leading(layers: Layers, path: tuple[str, ...], key: str, default: int) -> int:
    """How many leading output layers come from the leading layers of their models."""
    flags = [i < (_lookup(m, path, key) or default) for m, i in layers]
    return flags.index(False) if False in flags else len(flags)


def _lookup(model: Input, path: tuple[str, ...], key: str) -> Any:
    part: Any = model.index.config
    for step in path:
        part = part.get(step, {}) if isinstance(part, dict) else {}
    return part.get(key) if isinstance(part, dict) else None


def _part(config: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for step in path[:-1]:
        config = config[step]
    return config


def _write_layer_types(config: dict[str, Any], layers: Layers, count: int) -> None:
    """Families that derive a layer's type from its position must be told it after slicing."""
    rule = family_of(config.get("model_type")).layer_types
    if rule is not None and not isinstance(config.get("layer_types"), list):
        types = rule(count, config)
        moved = [types[i % count] for _, i in layers]
        if moved != rule(len(layers), config):
            config["layer_types"] = moved


def _set_dtype(config: dict[str, Any], plan: MergePlan, graph: Graph) -> None:
    """State the dtype that most of the output is in."""
    sizes: Counter[DType] = Counter()
    for output in graph.outputs.values():
        if output.spec.dtype.arithmetic:
            sizes[output.spec.dtype] += output.spec.nbytes
    wanted = plan.out_dtype or plan.dtype or (sizes.most_common(1)[0][0] if sizes else None)
    if wanted is None:
        return
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    for key in keys:
        config[key] = wanted.torch_name
    inner = config.get("text_config")
    for key in ("dtype", "torch_dtype"):
        if isinstance(inner, dict) and key in inner:
            inner[key] = wanted.torch_name


def _set_tie(config: dict[str, Any], inputs: Mapping[ModelRef, Input], graph: Graph) -> None:
    """Make ``tie_word_embeddings`` agree with whether the output has a head of its own."""
    has_head = any(is_head(name) for name in graph.outputs)
    heads = [any(is_head(name) for name in model.outside) for model in inputs.values()]
    if has_head and not all(heads):
        config["tie_word_embeddings"] = False
    elif any(heads) and not has_head:
        config["tie_word_embeddings"] = True
