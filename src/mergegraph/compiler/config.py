"""The output's config.json: the donor's, with everything that merging made untrue put right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from mergegraph.architectures.roles import is_head
from mergegraph.compiler.groups import layer_range
from mergegraph.compiler.inputs import NESTED, Input
from mergegraph.compiler.layerwise import Layers, renumber
from mergegraph.graph.graph import Graph
from mergegraph.plan.merge import MergePlan, Slice
from mergegraph.plan.values import ModelRef
from mergegraph.tensorspec import DType, heaviest

_DTYPE_KEYS = ("dtype", "torch_dtype")


def output_config(
    plan: MergePlan,
    slices: tuple[Slice, ...],
    inputs: Mapping[ModelRef, Input],
    donor: Input,
    graph: Graph,
) -> tuple[dict[str, Any], list[str]]:
    """Return the config of the output (empty if the donor has none), and remarks on it."""
    config = deepcopy(dict(donor.index.config))
    if not config:
        return config, []
    layers = _layers(slices, inputs)
    remarks = []
    if [(m.key, i) for m, i in layers] != [(layers[0][0].key, i) for i in range(donor.layers)]:
        remarks = renumber(config, layers, donor)
    _set_dtype(config, plan, graph)
    _set_tie(config, inputs, graph)
    return config, remarks


def _layers(slices: tuple[Slice, ...], inputs: Mapping[ModelRef, Input]) -> Layers:
    layers: Layers = []
    for part in slices:
        model = inputs[part.sources[0].model]
        layers += [(model, i) for i in range(*layer_range(part.sources[0], model))]
    return layers


def _set_dtype(config: dict[str, Any], plan: MergePlan, graph: Graph) -> None:
    """State the dtype that most of the output is in; a nested config may keep one that some of it is in."""
    specs = [output.spec for output in graph.outputs.values() if output.spec.dtype.arithmetic]
    forced = plan.out_dtype or plan.dtype
    wanted = forced or heaviest(specs)
    if wanted is None:
        return
    for key in [key for key in _DTYPE_KEYS if key in config] or ["torch_dtype"]:
        config[key] = wanted.torch_name
    written = [] if forced else list(dict.fromkeys(spec.dtype.torch_name for spec in specs))
    for name, part in _nested(config):
        for key in _DTYPE_KEYS:
            if part.get(key) is not None and (name in NESTED or part[key] not in written):
                part[key] = wanted.torch_name


def state_dtype(config: dict[str, Any], dtype: DType) -> None:
    """Say that all of a model is in `dtype`, in the key that every loader knows."""
    config["torch_dtype"] = dtype.torch_name
    config.pop("dtype", None)


def _nested(config: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (key, config) of every model inside the model."""
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config") and key != "quantization_config":
            yield key, value
            yield from _nested(value)


def _set_tie(config: dict[str, Any], inputs: Mapping[ModelRef, Input], graph: Graph) -> None:
    """Make ``tie_word_embeddings`` agree with whether the output has a head of its own."""
    key = "tie_word_embeddings"
    has_head = any(is_head(name) for name in graph.outputs)
    heads = [any(is_head(name) for name in model.outside) for model in inputs.values()]
    tied = not has_head and any(heads)
    if not tied and (all(heads) or not has_head):
        return
    config[key] = tied
    for name, part in _nested(config):
        if name in NESTED and key in part:
            part[key] = tied
