"""Which expert of one mixture corresponds to which of another: an assignment, layer by layer."""

from __future__ import annotations

from functools import partial

import numpy as np
from scipy.optimize import linear_sum_assignment

from mergegraph.architectures import moe_family
from mergegraph.checkpoint.names import layer_and_suffix
from mergegraph.compiler.experts import Place
from mergegraph.compiler.inputs import Input
from mergegraph.compiler.selection import experts_in
from mergegraph.errors import GraphError
from mergegraph.plan.surgery import AlignBy
from mergegraph.routing.weights import STORED, Array, widen
from mergegraph.storage.reader import Reader
from mergegraph.storage.strided import read_view

_ELEMENTS = 1 << 21
"""Elements of each model that are compared at a time."""


def assignments(reference: Input, other: Input, by: AlignBy, reader: Reader) -> dict[str, tuple[int, ...]]:
    """Return, for each layer, which expert of `other` corresponds to each of `reference`.

    Cosines of router rows, or of all matrices of an expert, are summed over the pairs of an assignment, and
    the assignment with the largest sum is taken (Kuhn 1955, "The Hungarian method").

    Raises:
        GraphError: the mixtures do not have the same experts.
        CheckpointError: something cannot be read.
    """
    kinds = [model.index.config.get("model_type") for model in (reference, other)]
    if moe_family(kinds[0]) is None:
        raise GraphError(f"{reference.name} is of no known family of mixtures (model_type: {kinds[0]})")
    if moe_family(kinds[1]) is not moe_family(kinds[0]):
        raise GraphError(f"{other.name} ({kinds[1]}) is not of the family of {reference.name} ({kinds[0]})")
    wanted, given = experts_in(reference.tensors), experts_in(other.tensors)
    if wanted != given:
        raise GraphError(f"{other.name} does not have as many experts in each layer as {reference.name}")
    if not wanted:
        raise GraphError(f"{reference.name} has no experts")
    names = _compared(reference, by)
    found = {}
    for layer, count in wanted.items():
        likeness = np.zeros((count, count))
        for suffix in names[layer]:
            likeness += _likeness(layer, suffix, count, (reference, other), reader)
        found[layer] = tuple(int(i) for i in linear_sum_assignment(-likeness)[1])
    return found


def _compared(model: Input, by: AlignBy) -> dict[str, list[str]]:
    """The names below each layer that are compared, with ``{e}`` for an expert's number."""
    names: dict[str, dict[str, None]] = {}
    family = moe_family(str(model.index.config.get("model_type")))
    routers = [] if family is None else list(family.names.router)[:1]
    for name in model.tensors:
        layer, suffix = layer_and_suffix(name)
        if by == "router" and suffix in routers:
            names.setdefault(layer, {})[suffix] = None
        elif by == "weights" and "experts.0." in suffix:
            names.setdefault(layer, {})[suffix.replace("experts.0.", "experts.{e}.")] = None
    missing = next((layer for layer in experts_in(model.tensors) if layer not in names), None)
    if missing is not None:
        raise GraphError(f"{model.name} has no {'router' if by == 'router' else 'experts'} in {missing}")
    return {layer: list(found) for layer, found in names.items()}


def _likeness(layer: str, suffix: str, count: int, models: tuple[Input, Input], reader: Reader) -> Array:
    """Cosines between the experts of two models by one matrix, or one row of the router, each."""
    products = np.zeros((count, count))
    norms = np.zeros((2, count))
    blocks = [_blocks(layer, suffix, count, model) for model in models]
    size = blocks[0][0][2]
    if any(length != size for found in blocks for _, _, length in found):
        raise GraphError(f"{layer}{suffix} has different shapes in {models[0].name} and {models[1].name}")
    step = max(1, _ELEMENTS // count)
    for begin in range(0, size, step):
        length = min(step, size - begin)
        a, b = (
            np.stack([_read(model, place, first + begin, length, reader) for place, first, _ in found])
            for model, found in zip(models, blocks, strict=True)
        )
        products += a @ b.T
        norms += np.stack([(a * a).sum(axis=1), (b * b).sum(axis=1)])
    scale = np.sqrt(np.outer(norms[0], norms[1]))
    result: Array = np.divide(products, scale, out=np.zeros_like(products), where=scale > 0)
    return result


def _blocks(layer: str, suffix: str, count: int, model: Input) -> list[tuple[Place, int, int]]:
    """For each expert the tensor that holds its elements, the first of them, and how many there are."""
    names = [layer + suffix.format(e=e) for e in range(count)]
    missing = next((name for name in names if name not in model.tensors), None)
    if missing is not None:
        raise GraphError(f"{model.name} has no {missing}")
    places = [model.tensors[name] for name in names]
    if "{e}" in suffix:
        return [(place, 0, place.spec.numel) for place in places]
    length = places[0].spec.numel // count
    return [(place, e * length, length) for e, place in enumerate(places)]


def _read(model: Input, place: Place, begin: int, length: int, reader: Reader) -> Array:
    if place.spec.dtype not in STORED:
        raise GraphError(
            f"{place.tensor} of {model.name} is {place.spec.dtype.torch_name}: dequantise it first"
        )
    stored = np.empty(length, STORED[place.spec.dtype])
    read = partial(reader.read_into, model.key, place.tensor)
    if place.view is None:
        read(begin * stored.itemsize, stored.data)
    else:
        read_view(place.view, stored.itemsize, begin, stored.view(np.uint8), read)
    return widen(stored, place.spec.dtype).astype(np.float64)
