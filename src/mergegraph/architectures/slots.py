"""Where the matrices of one expert lie in the tensors of a layer, in any layout of its family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

from mergegraph.architectures.expert_names import ExpertNames
from mergegraph.architectures.moe import Layout
from mergegraph.checkpoint.view import View
from mergegraph.tensorspec import TensorSpec

Role = Literal["gate", "up", "down"]
ROLES: tuple[Role, ...] = ("gate", "up", "down")


class Slot(NamedTuple):
    """A matrix: the tensor that holds it (relative to the layer), that tensor's shape, and where."""

    tensor: str
    shape: tuple[int, ...]
    view: View


class Sizes(NamedTuple):
    """How many experts a layer has, their size, and the model's."""

    experts: int
    size: int
    hidden: int


def slot(names: ExpertNames, layout: Layout, role: Role, expert: int, sizes: Sizes) -> Slot | None:
    """Where a matrix of an expert lies: ``[I, H]`` for gate and up, ``[H, I]`` for down.

    None: there is no such matrix, or no such layout in this family.
    """
    rows, columns = (sizes.hidden, sizes.size) if role == "down" else (sizes.size, sizes.hidden)
    if layout == "per-expert":
        template = {"gate": names.gate, "up": names.up, "down": names.down}[role]
        if template is None:
            return None
        return Slot(template.replace("{e}", str(expert)), (rows, columns), View(0, rows, columns, columns))
    return _stacked(names, role, expert, sizes)


def _stacked(names: ExpertNames, role: Role, e: int, sizes: Sizes) -> Slot | None:
    experts, size, hidden = sizes
    apart = names.stacked_gate if role == "gate" else names.stacked_up
    name = names.stacked_down if role == "down" else names.stacked_gate_up or apart
    if name is None:
        return None
    first = e * size * hidden
    if names.form == "flat":
        shape: tuple[int, ...] = (experts * size, hidden)
        down = View(first, hidden, size, 1, hidden)
        return Slot(name, shape, down if role == "down" else View(first, size, hidden, hidden))
    if role == "down" and names.form == "rows":
        return Slot(name, (experts, hidden, size), View(first, hidden, size, size))
    if role == "down":
        return Slot(name, (experts, size, hidden), View(first, hidden, size, 1, hidden))
    if names.stacked_gate_up is None:
        return Slot(name, (experts, size, hidden), View(first, size, hidden, hidden))
    second = 1 if role == "up" else 0
    if names.form == "rows":
        view = View(2 * first + second * size * hidden, size, hidden, hidden)
        return Slot(name, (experts, 2 * size, hidden), view)
    if names.form == "columns":
        view = View(2 * first + second * size, size, hidden, 1, 2 * size)
    else:
        view = View(2 * first + second, size, hidden, 2, 2 * size)
    return Slot(name, (experts, hidden, 2 * size), view)


def router_names(names: ExpertNames, layout: Layout) -> Iterator[str]:
    """Yield the tensors that have an entry for each expert, as `layout` spells them."""
    yield from (names.router.values() if layout == "stacked" else names.router)


def spelt(names: ExpertNames, layout: Layout, name: str) -> str:
    """A router tensor's name, given as beside per-expert tensors, in the spelling of `layout`."""
    return names.router.get(name, name) if layout == "stacked" else name


def layout_of(names: ExpertNames, layer: Mapping[str, TensorSpec]) -> Layout | None:
    """How a layer's experts are stored, by its tensors' names; None: it has no experts."""
    if names.stacked_down is not None and names.stacked_down in layer:
        return "stacked"
    if names.down is not None and names.down.replace("{e}", "0") in layer:
        return "per-expert"
    return None


def sizes_of(names: ExpertNames, layout: Layout, layer: Mapping[str, TensorSpec]) -> Sizes | None:
    """The sizes of a layer's experts, from the router's shape and a down projection's."""
    router = layer.get(next(router_names(names, layout), ""))
    name = names.stacked_down if layout == "stacked" else (names.down or "").replace("{e}", "0")
    down = layer.get(name or "")
    if router is None or down is None or len(router.shape) != 2:
        return None
    experts, hidden = router.shape
    if hidden == 0 or experts == 0:
        return None
    per_expert = down.numel // hidden if layout == "per-expert" else down.numel // (experts * hidden)
    return Sizes(experts, per_expert, hidden)
