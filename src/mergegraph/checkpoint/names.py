"""Tensor names: their natural order, and the layer stacks that they spell out.

Layers are recognised by names alone (``model.layers.11.mlp.up_proj.weight``), so an architecture
that nobody has listed is sliced as well as any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# At most 18 digits at a time: int() refuses absurdly long ones, and names come from strangers.
_NUMBER = re.compile(r"([0-9]{1,18})")
# No leading zeros: "01" would not survive the way to an int and back.
_LAYER = re.compile(r"\.(0|[1-9][0-9]{0,8})\.")
_INDEX = re.compile(r"(0|[1-9][0-9]{0,8})\.")


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return a sort key that compares numbers in names as numbers: layer 2 before layer 10."""
    parts: list[str | int] = list(_NUMBER.split(name))
    for i in range(1, len(parts), 2):
        parts[i] = int(parts[i])
    return parts, name


@dataclass(frozen=True, slots=True)
class LayerStack:
    """A run of layers ``{prefix}.0.`` to ``{prefix}.{count-1}.``."""

    prefix: str
    count: int


def layer_stacks(names: Iterable[str]) -> tuple[LayerStack, ...]:
    """Return the layer stacks among `names`, in order of appearance.

    The first ``.<integer>.`` in a name marks its layer. Indices that do not run from 0 without
    gaps are no stack: they are some other numbering.
    """
    indices: dict[str, dict[int, None]] = {}
    for layer in dict.fromkeys(layer for layer, _ in layers_and_suffixes(names) if layer):
        prefix, _, index = layer[:-1].rpartition(".")
        indices.setdefault(prefix, {})[int(index)] = None
    return tuple(
        LayerStack(prefix, len(found)) for prefix, found in indices.items() if max(found) == len(found) - 1
    )


def split_layer(name: str, prefix: str) -> tuple[int, str] | None:
    """Return ``(index, suffix)`` of a tensor in the stack `prefix`, or None if it is not in it."""
    if not name.startswith(f"{prefix}."):
        return None
    match = _INDEX.match(name, len(prefix) + 1)
    return None if match is None else (int(match[1]), name[match.end() :])


def with_layer(prefix: str, index: int, suffix: str) -> str:
    """Return the name that `split_layer` would take apart into `index` and `suffix`."""
    return f"{prefix}.{index}.{suffix}"


def layer_and_suffix(name: str) -> tuple[str, str]:
    """Split ``model.layers.3.mlp.gate.weight`` after the first number: ``model.layers.3.`` and the rest."""
    match = _LAYER.search(name)
    return ("", name) if match is None else (name[: match.end()], name[match.end() :])


def layers_and_suffixes(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield `layer_and_suffix` of each name; quicker, as neighbours are mostly of one layer."""
    layer = ""
    for name in names:
        if layer and name.startswith(layer):
            yield layer, name[len(layer) :]
        else:
            layer, suffix = layer_and_suffix(name)
            yield layer, suffix
