"""The tensors of a mixture, each with the parts of dense models that it is put together from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mergegraph.architectures.dense import Body, Matrix
from mergegraph.architectures.moe import (
    Fill,
    Gate,
    Layout,
    MoeFamily,
    Options,
    OutTensor,
    Part,
    Source,
)
from mergegraph.architectures.roles import is_before_layers, is_head
from mergegraph.architectures.slots import ROLES, Sizes, slot, spelt
from mergegraph.checkpoint.view import RowOrder, View
from mergegraph.tensorspec import DType

BASE = Source("base")
_ROTATED = re.compile(r"self_attn\.[qk]_proj\.(weight|bias)")
_NORM = re.compile(r"(.*norm|.*layernorm)\.weight")


@dataclass(frozen=True)
class Builder:
    """Everything that decides the tensors of one mixture; `size` and `shared_size` are those of MLPs."""

    family: MoeFamily
    base: Body
    experts: Sequence[Body]
    shared: Sequence[Body]
    options: Options
    layout: Layout
    size: int
    shared_size: int

    def tensors(self) -> Iterator[OutTensor]:
        """Yield every tensor: what comes before the layers, the layers, and what comes after."""
        outside = [n for n in self.base.outside() if not (self.base.tied and is_head(n))]
        for name in outside:
            if is_before_layers(name):
                yield self._outside(name)
        for layer in range(self.base.layers):
            yield from self._layer(layer)
        for name in outside:
            if not is_before_layers(name):
                yield self._outside(name)
        if self._rescaled and self.base.tied and self.base.embedding is not None:
            shape = self.base.dense.tensors[self.base.embedding].shape
            yield OutTensor("lm_head.weight", shape, (Part(BASE, self.base.embedding),))

    @property
    def _rescaled(self) -> bool:
        """Whether the base scales embeddings and norms by itself and the mixture does not."""
        can = (*self.family.can, *self.family.must)
        return "scaled_embedding" in self.base.family.has and "scaled_embedding" in can

    def _outside(self, name: str) -> OutTensor:
        shape = self.base.dense.tensors[name].shape
        scale = math.sqrt(self.base.hidden) if self._rescaled and name == self.base.embedding else 1.0
        shift = 1.0 if self._rescaled and _NORM.fullmatch(name) else 0.0
        return OutTensor(name, shape, (Part(BASE, name, scale=scale, shift=shift),))

    def _layer(self, layer: int) -> Iterator[OutTensor]:
        for name in self.base.by_layer.get(layer, ()):
            if name not in self.base.mlp_names:
                yield from self._beside_mlp(layer, name)
        yield from self._added_biases(layer)
        if layer < self.options.keep_dense_layers:
            yield from self._dense_mlp(layer)
            return
        yield self._router(layer)
        yield from self._constants(layer)
        yield from self._experts(layer)
        if self.shared_size:
            yield from self._shared(layer)

    # ---- what is copied ------------------------------------------------------------------------

    def _beside_mlp(self, layer: int, name: str) -> Iterator[OutTensor]:
        whole = self.base.full(layer, name)
        if name == self.base.family.fused_qkv:
            yield from self._split_qkv(layer, whole)
            return
        shape = self.base.dense.tensors[whole].shape
        view = None
        if _ROTATED.fullmatch(name) and self._order is not None:
            columns = shape[1] if len(shape) == 2 else 1
            view = View(0, shape[0], columns, columns, 1, self._order)
        shift = 1.0 if self._rescaled and _NORM.fullmatch(name) else 0.0
        yield OutTensor(whole, shape, (Part(BASE, whole, view, shift=shift),))

    @property
    def _order(self) -> RowOrder | None:
        """The order of query and key rows, if the mixture pairs rotary dimensions otherwise."""
        if self.base.family.interleaved == self.family.interleaved:
            return None
        head, rotary = self.base.head_dim, self.base.rotary
        return RowOrder(head, rotary, "interleaved" if self.family.interleaved else "halves")

    def _split_qkv(self, layer: int, whole: str) -> Iterator[OutTensor]:
        first, columns = 0, self.base.hidden
        for name, rows in self._projections():
            if name == "o":
                continue
            order = self._order if name in ("q", "k") else None
            view = View(first * columns, rows, columns, columns, 1, order)
            own = self.base.full(layer, f"self_attn.{name}_proj.weight")
            yield OutTensor(own, (rows, columns), (Part(BASE, whole, view),))
            first += rows

    def _projections(self) -> tuple[tuple[str, int], ...]:
        queries, keys = self.base.heads * self.base.head_dim, self.base.kv_heads * self.base.head_dim
        return (("q", queries), ("k", keys), ("v", keys), ("o", self.base.hidden))

    def _added_biases(self, layer: int) -> Iterator[OutTensor]:
        """Zero biases where the mixture has some that the base model has not."""
        if self.family.keys is None or not (self.base.biased or self.family.always_biased):
            return
        for name, rows in self._projections():
            if name in self.family.biases and name not in self.base.biased:
                whole = self.base.full(layer, f"self_attn.{name}_proj.bias")
                yield OutTensor(whole, (rows,), (Fill(0.0),))

    # ---- MLPs ----------------------------------------------------------------------------------

    def _dense_mlp(self, layer: int) -> Iterator[OutTensor]:
        for name, matrix in zip(self.family.block, _matrices(self.base, layer), strict=True):
            part = Part(BASE, matrix.tensor, matrix.view)
            yield OutTensor(self.base.full(layer, name), (matrix.rows, matrix.columns), (part,))

    def _router(self, layer: int) -> OutTensor:
        name = spelt(self.family.names, self.layout, next(iter(self.family.names.router)))
        rows = Fill(0.0) if self.options.zero_router else Gate(layer)
        dtype = DType.F32 if self.family.router_f32 else None
        return OutTensor(
            self.base.full(layer, name), (self.options.experts, self.base.hidden), (rows,), dtype
        )

    def _constants(self, layer: int) -> Iterator[OutTensor]:
        sizes = {"E": self.options.experts, "H": self.base.hidden, "1": 1}
        for constant in self.family.constants:
            name = self.base.full(layer, spelt(self.family.names, self.layout, constant.name))
            shape = tuple(sizes[axis] for axis in constant.axes)
            yield OutTensor(name, shape, (Fill(constant.value),), constant.dtype)
        for name, copied in self.family.copies.items():
            whole = self.base.full(layer, copied)
            shape = self.base.dense.tensors[whole].shape
            yield OutTensor(self.base.full(layer, name), shape, (Part(BASE, whole),))

    def _experts(self, layer: int) -> Iterator[OutTensor]:
        sizes = Sizes(self.options.experts, self.size, self.base.hidden)
        scales = (self.family.scale_in, self.family.scale_in, 1.0)
        if self.family.exact == "zero router":
            scales = (*scales[:2], 1 / self.options.active)
        found: dict[str, tuple[tuple[int, ...], list[Part | Fill]]] = {}
        for e, body in enumerate(self.experts):
            for role, matrix, scale in zip(ROLES, _matrices(body, layer), scales, strict=True):
                place = slot(self.family.names, self.layout, role, e, sizes)
                if place is None:  # a family that can be built has every role in every layout it offers
                    raise ValueError(f"{self.family.name} has no {role} matrices in the {self.layout} layout")
                parts = found.setdefault(place.tensor, (place.shape, []))[1]
                parts += _placed(Source("expert", e), matrix, place.view, role == "down", scale)
        for name, (shape, parts) in found.items():
            yield OutTensor(self.base.full(layer, name), shape, full_cover(shape, parts))

    def _shared(self, layer: int) -> Iterator[OutTensor]:
        shared = self.family.shared
        if shared is None:
            return
        sources = [(Source("shared", i), body) for i, body in enumerate(self.shared)]
        if not sources and shared.absent == "base":
            sources = [(BASE, self.base)]
        matrices = [(source, _matrices(body, layer)) for source, body in sources]
        size = self.shared_size if shared.absent != "base" else sum(m[2].columns for _, m in matrices)
        hidden = self.base.hidden
        if shared.router is not None:
            rows = Gate(layer, "shared") if self.options.shared_prompts else Fill(0.0)
            yield OutTensor(self.base.full(layer, shared.router), (1, hidden), (rows,))
        ups = (shared.gate, shared.up) if shared.up is not None else (shared.gate,)
        for i, name in enumerate(ups):
            halves = (0, 1) if shared.up is None else (i,)
            shape = (len(halves) * size, hidden)
            parts: list[Part | Fill] = []
            for at, role in enumerate(halves):
                whole = View(at * size * hidden, size, hidden, hidden)
                parts += _side_by_side([(s, m[role]) for s, m in matrices], whole, down=False)
            yield OutTensor(self.base.full(layer, name), shape, full_cover(shape, parts))
        downs = _side_by_side([(s, m[2]) for s, m in matrices], View(0, hidden, size, size), down=True)
        yield OutTensor(self.base.full(layer, shared.down), (hidden, size), full_cover((hidden, size), downs))


def _matrices(body: Body, layer: int) -> tuple[Matrix, Matrix, Matrix]:
    found = body.mlp(layer)
    if found is None:
        raise ValueError(f"layer {layer} has no MLP")  # `recipe` has checked that it has one
    return found


def _placed(
    source: Source, matrix: Matrix, place: View, down: bool, scale: float = 1.0
) -> Iterator[Part | Fill]:
    """A matrix at a place for one at least as large; what it does not fill is zero.

    Neurons that are zero add nothing, so an expert may be smaller than the others.
    """
    size = matrix.columns if down else matrix.rows
    yield Part(source, matrix.tensor, matrix.view, neurons_of(place, 0, size, down), scale)
    yield from zeros_after(place, size, down)


def zeros_after(place: View, size: int, down: bool) -> Iterator[Fill]:
    """Zero neurons at a place from number `size` on, if there is room for any."""
    room = place.columns if down else place.rows
    if size < room:
        yield Fill(0.0, neurons_of(place, size, room, down))


def _side_by_side(matrices: list[tuple[Source, Matrix]], place: View, down: bool) -> Iterator[Part | Fill]:
    """The neurons of several MLPs one after another; their sum is that of their outputs."""
    at = 0
    for source, matrix in matrices:
        size = matrix.columns if down else matrix.rows
        yield Part(source, matrix.tensor, matrix.view, neurons_of(place, at, at + size, down))
        at += size
    yield from zeros_after(place, at, down)


def neurons_of(place: View, begin: int, end: int, down: bool) -> View:
    """The part of a place that belongs to neurons `begin` to `end`: rows, or columns of a down matrix."""
    if down:
        offset = place.offset + begin * place.column_step
        return View(offset, place.rows, end - begin, place.row_step, place.column_step)
    offset = place.offset + begin * place.row_step
    return View(offset, end - begin, place.columns, place.row_step, place.column_step)


def full_cover(shape: tuple[int, ...], placed: Iterable[Part | Fill]) -> tuple[Part | Fill, ...]:
    """The parts; one that fills the whole tensor in order says no place."""
    parts = tuple(placed)
    only = parts[0]
    if len(parts) > 1 or only.place is None or only.place.numel != math.prod(shape):
        return parts
    if not only.place.contiguous:
        return parts
    if isinstance(only, Fill):
        return (Fill(only.value),)
    return (Part(only.source, only.tensor, only.view, None, only.scale, only.shift),)
