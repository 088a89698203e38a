"""One layer of a mixture as it is stored: which tensors hold which expert, in whatever layout."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from mergegraph.architectures.dense import Matrix
from mergegraph.architectures.moe import Layout, MoeFamily
from mergegraph.architectures.slots import ROLES, Role, Sizes, layout_of, router_names, sizes_of, slot
from mergegraph.checkpoint.view import View
from mergegraph.tensorspec import TensorSpec


@dataclass(frozen=True)
class MoeLayer:
    """A layer with experts. Names are relative to the layer, and those of the checkpoint.

    Attributes:
        family: whose names these are.
        layout: how experts are stored.
        sizes: how many there are, and their shape.
        stored: the name that the family knows a tensor by → the name it is stored under.
        specs: the layer's tensors by the names that the family knows.
    """

    family: MoeFamily
    layout: Layout
    sizes: Sizes
    stored: Mapping[str, str]
    specs: Mapping[str, TensorSpec]

    def matrix(self, expert: int, role: Role) -> Matrix | None:
        """A matrix of an expert; None: its family has no such matrix, or the layer lacks it."""
        place = slot(self.family.names, self.layout, role, expert, self.sizes)
        if place is None or place.tensor not in self.specs:
            return None
        view = None if self.layout == "per-expert" else place.view
        return Matrix(self.stored[place.tensor], place.view.rows, place.view.columns, view)

    @cached_property
    def router(self) -> tuple[tuple[str, int], ...]:
        """Tensors beside the experts with an entry for each of them, and the axis that counts them.

        The first is the router's matrix.
        """
        found = [n for n in router_names(self.family.names, self.layout) if n in self.specs]
        return tuple((self.stored[n], self.specs[n].shape.index(self.sizes.experts)) for n in found)

    @cached_property
    def stacks(self) -> tuple[str, ...]:
        """The tensors that hold all experts, if they are stacked; biases among them."""
        if self.layout == "per-expert":
            return ()
        return tuple(self.stored[n] for n in self.family.names.stacked() if n in self.specs)

    @cached_property
    def shared(self) -> tuple[Matrix, Matrix, Matrix] | None:
        """The gate, up and down matrices of the shared expert, if the layer has one."""
        shared = self.family.shared
        if shared is None or shared.down not in self.specs or shared.gate not in self.specs:
            return None
        hidden, size = self.specs[shared.down].shape
        down = Matrix(self.stored[shared.down], hidden, size, None)
        if shared.up is not None:
            gate, up = (Matrix(self.stored[n], size, hidden, None) for n in (shared.gate, shared.up))
            return gate, up, down
        halves = (View(i * size * hidden, size, hidden, hidden) for i in (0, 1))
        gate, up = (Matrix(self.stored[shared.gate], size, hidden, view) for view in halves)
        return gate, up, down

    def only_in_mixtures(self) -> Iterator[str]:
        """Yield every tensor that a dense layer does not have: routers, experts, shared experts."""
        names, shared = self.family.names, self.family.shared
        known = [
            *router_names(names, self.layout),
            *names.stacked(),
            *(c.name for c in self.family.constants),
        ]
        if shared is not None:
            known += [n for n in (shared.gate, shared.up, shared.down, shared.router) if n is not None]
        for expert in range(self.sizes.experts):
            places = (slot(names, "per-expert", role, expert, self.sizes) for role in ROLES)
            known += [place.tensor for place in places if place is not None]
        yield from (self.stored[n] for n in dict.fromkeys(known) if n in self.specs)


def moe_layer(family: MoeFamily, layer: Mapping[str, TensorSpec]) -> MoeLayer | None:
    """The layer as a mixture of `family`; None: its MLP is a plain one.

    Args:
        family: whose names to look for.
        layer: the layer's tensors by their names relative to the layer.
    """
    stored = {family.names.aliases.get(name, name): name for name in layer}
    specs = {known: layer[name] for known, name in stored.items()}
    layout = layout_of(family.names, specs)
    sizes = sizes_of(family.names, layout, specs) if layout is not None else None
    if layout is None or sizes is None:
        return None
    return MoeLayer(family, layout, sizes, stored, specs)
