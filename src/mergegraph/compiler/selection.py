"""Experts in another order, or only some of them: a matter of which places outputs are loaded from."""

from __future__ import annotations

import re
from collections.abc import Mapping

from mergegraph.architectures.expert_names import ExpertNames
from mergegraph.checkpoint.names import layer_and_suffix
from mergegraph.checkpoint.view import Picked, View
from mergegraph.compiler.experts import Place
from mergegraph.errors import GraphError
from mergegraph.tensorspec import TensorSpec

_EXPERT = re.compile(r"(?P<head>(?:.*\.)?experts\.)(?P<expert>[0-9]{1,9})(?P<tail>\..*)")

Picks = Mapping[str, tuple[int, ...]]
"""By layer (``model.layers.3.``): the number that each expert of the result had before."""


def experts_in(places: Mapping[str, Place]) -> dict[str, int]:
    """How many experts each layer holds that holds any."""
    counts: dict[str, int] = {}
    for name in places:
        layer, suffix = layer_and_suffix(name)
        match = _EXPERT.fullmatch(suffix)
        if match is not None:
            counts[layer] = max(counts.get(layer, 0), int(match["expert"]) + 1)
    return counts


def selected(places: Mapping[str, Place], picks: Picks, names: ExpertNames) -> dict[str, Place]:
    """The logical tensors of a checkpoint with the experts that `picks` names, renumbered.

    Args:
        places: the logical tensors.
        picks: the experts of each layer; layers that are not in it stay as they are.
        names: what the family calls its experts and routers.

    Raises:
        GraphError: a router is missing, or has no axis of experts; or a layer has experts of two kinds.
    """
    counts = experts_in(places)
    routers = _routers(names)
    found: dict[str, Place] = {}
    routed: dict[str, None] = {}
    blocks: dict[str, str] = {}
    for name, place in places.items():
        layer, suffix = layer_and_suffix(name)
        pick = picks.get(layer)
        match = _EXPERT.fullmatch(suffix)
        if pick is None or match is None:
            has_entries = pick is not None and suffix in routers
            found[name] = _rows(name, place, pick, counts[layer]) if pick and has_entries else place
            routed |= {layer: None} if has_entries else {}
            continue
        if blocks.setdefault(layer, match["head"]) != match["head"]:
            raise GraphError(f"{layer} has experts in {blocks[layer][:-1]} and in {match['head'][:-1]}")
        for new, old in enumerate(pick):
            if old == int(match["expert"]):
                found[f"{layer}{match['head']}{new}{match['tail']}"] = place
    bare = next((layer for layer in picks if layer not in routed), None)
    if bare is not None:
        raise GraphError(f"{bare} has experts, and no router by any known name ({', '.join(routers)})")
    # What is renumbered takes the place of what had its name.
    return {name: found[name] for name in places if name in found}


def _routers(names: ExpertNames) -> dict[str, None]:
    """Every spelling of a tensor that has an entry for each expert, below its layer."""
    known = dict.fromkeys((*names.router, *names.router.values()))
    return known | dict.fromkeys(alias for alias, meant in names.aliases.items() if meant in known)


def _rows(name: str, place: Place, pick: tuple[int, ...], experts: int) -> Place:
    """The rows of a router, or the entries of its bias, that belong to the picked experts."""
    shape = place.spec.shape
    axis = next((i for i, size in enumerate(shape) if size == experts and set(shape[:i]) <= {1}), None)
    if axis is None or place.view is not None:
        raise GraphError(f"{name} of shape {list(shape)} has no entry for each of {experts} experts")
    columns = place.spec.numel // experts
    view = View(0, len(pick), columns, columns, 1, Picked(pick))
    spec = TensorSpec((*shape[:axis], len(pick), *shape[axis + 1 :]), place.spec.dtype)
    return place._replace(spec=spec, view=view)
