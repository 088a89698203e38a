"""A recipe and the models it names → the graph of a mixture of experts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mergegraph.architectures.moe import Fill, Gate, MoeFamily, OutTensor, Part, Recipe
from mergegraph.architectures.slots import spelt
from mergegraph.checkpoint.names import layer_and_suffix
from mergegraph.checkpoint.view import RowOrder, View
from mergegraph.compiler.drop import redrawn
from mergegraph.compiler.models import Model
from mergegraph.compiler.seeds import stream_of
from mergegraph.errors import GraphError, Problem
from mergegraph.graph.graph import Graph, Output, Piece, SourceTensor, filled
from mergegraph.graph.node import Node, Origin
from mergegraph.graph.simplify import simplify
from mergegraph.ops import affine, cast, gate, load, noise, spread, stream
from mergegraph.tensorspec import DType, TensorSpec, heaviest

_LAYER = re.compile(r"\.[0-9]+\.")
_DOWN = ("down_proj.weight", "w2.weight", "output_linear.weight")


@dataclass(frozen=True, slots=True)
class Adjust:
    """What happens to the MLP of a model that becomes an expert.

    Attributes:
        origin: the line of the plan that says so.
        noise: standard deviation of normal noise on all its matrices.
        residual: factor on its down projection.
        drop: share of its neurons that are drawn anew.
    """

    origin: Origin
    noise: float | None = None
    residual: float | None = None
    drop: float | None = None


@dataclass(frozen=True, slots=True)
class Router:
    """Where router rows come from.

    Attributes:
        mode: ``zero``, ``random``, ``uniform_random``, or a mode that reads prompts.
        size: standard deviation of random rows; uniform ones reach as far as usual for linear layers.
        temperature: what rows are divided by; rows from prompts come divided.
        key: the checkpoint key of rows from prompts.
        repeat: how many experts in a row have equal rows.
    """

    mode: str
    size: float = 1.0
    temperature: float = 1.0
    key: str = ""
    repeat: int = 1


@dataclass(frozen=True)
class Parts:
    """Everything that a recipe's sources stand for.

    Attributes:
        base: the model of everything but experts.
        experts: one model for each routed expert.
        shared: one for each shared expert.
        adjust: what happens to each expert's MLP.
        adjust_shared: what happens to each shared expert's.
        router: where router rows come from.
        seed: of everything random.
        dtype: of the output, where loaders do not expect another.
        origin: the line of the plan that names the base.
    """

    base: Model
    experts: Sequence[Model]
    shared: Sequence[Model]
    adjust: Sequence[Adjust]
    adjust_shared: Sequence[Adjust]
    router: Router
    seed: int | None
    dtype: DType
    origin: Origin


@dataclass(slots=True)
class Building:
    """Builds outputs one by one, and collects what cannot be built."""

    parts: Parts
    problems: list[Problem] = field(default_factory=list)
    _templates: dict[object, Node] = field(default_factory=dict)

    def graph(self, recipe: Recipe) -> Graph:
        """The graph of all tensors of `recipe`; look at `problems` before using it."""
        return Graph({t.name: self._output(t) for t in recipe.tensors})

    def _output(self, tensor: OutTensor) -> Output:
        spec = TensorSpec(tensor.shape, tensor.dtype or self.parts.dtype)
        pieces: list[Piece] = []
        for part in tensor.parts:
            try:
                pieces += self._pieces(tensor, part, spec)
            except GraphError as error:
                self._problem(part, Problem(f"{tensor.name}: {error.message}", hint=error.hint))
        return Output(spec, tuple(pieces))

    def _problem(self, part: Part | Fill | Gate, problem: Problem) -> None:
        """Note a problem at the line of its model, once for all layers."""
        origin = self.parts.origin
        if isinstance(part, Part) and part.source.kind != "base":
            origin = self._adjust(part).origin
        found = replace(problem, where=str(origin))
        like = _LAYER.sub(".*.", found.message)
        if not any(p.where == found.where and _LAYER.sub(".*.", p.message) == like for p in self.problems):
            self.problems.append(found)

    def _pieces(self, tensor: OutTensor, part: Part | Fill | Gate, spec: TensorSpec) -> Iterator[Piece]:
        if isinstance(part, Gate):
            yield from self._router(tensor, part, spec)
        elif isinstance(part, Fill):
            shape = spec.shape if part.place is None else (part.place.rows, part.place.columns)
            yield Piece(load(0, TensorSpec(shape, spec.dtype)), (filled(part.value),), place=part.place)
        else:
            yield self._part(tensor, part, spec.dtype)

    # ---- parts of models -----------------------------------------------------------------------

    def _part(self, tensor: OutTensor, part: Part, dtype: DType) -> Piece:
        model, view, place = self._model(part), part.view, part.place
        (whole,) = model.outputs[part.tensor].parts
        if view is not None and isinstance(view.order, RowOrder) and whole.expression.op.name != "load":
            # Rows of what is computed are put in order as they are written.
            if place is not None or view.numel != math.prod(tensor.shape) or view.row_step != view.columns:
                raise GraphError(f"the rows of {part.tensor} of {model.name} cannot be put in order")
            place = View(0, view.rows, view.columns, view.columns, 1, view.order.inverse)
            view = replace(view, order=None)
            view = None if view.numel == whole.expression.spec.numel else view
        piece = model.piece(part.tensor, view)
        if not piece.expression.spec.dtype.arithmetic:
            kind = piece.expression.spec.dtype.torch_name
            raise GraphError(f"{part.tensor} of {model.name} is {kind}: dequantise the model first")
        adjust = None if part.source.kind == "base" else self._adjust(part)
        streams = self._streams(tensor, part, piece, adjust)
        key = (
            piece.expression.key,
            part.scale,
            part.shift,
            _shape_of(adjust, part.tensor),
            dtype,
            len(piece.sources),
        )
        if key not in self._templates:
            self._templates[key] = self._template(piece, part, adjust, dtype)
        return Piece(self._templates[key], piece.sources, streams, place, piece.window)

    def _template(self, piece: Piece, part: Part, adjust: Adjust | None, dtype: DType) -> Node:
        x: Any = piece.expression
        slot = len(piece.sources)
        if adjust is not None and adjust.drop:
            x = redrawn(x, adjust.drop, stream(slot + 1), stream(slot + 2), down=_is_down(part.tensor))
        if adjust is not None and adjust.noise:
            x = noise(x, adjust.noise, stream(slot))
        factor = part.scale
        if adjust is not None and adjust.residual is not None and _is_down(part.tensor):
            factor *= adjust.residual
        if factor != 1.0 or part.shift != 0.0:
            x = affine(x, (factor, part.shift))
        return simplify(cast(x, dtype=dtype.name))

    def _streams(
        self, tensor: OutTensor, part: Part, piece: Piece, adjust: Adjust | None
    ) -> tuple[tuple[float, float], ...]:
        if adjust is None or not (adjust.noise or adjust.drop):
            return piece.streams
        own = piece.streams or ((0.0, 0.0),) * len(piece.sources)
        # Named by layer, expert and matrix, as neither layout nor the place in a stack may matter; the
        # neurons that are drawn anew are the same in all matrices of an expert.
        layer, _ = layer_and_suffix(tensor.name)
        seed, expert = self.parts.seed, f"{part.source.kind} {part.source.index}"
        matrix = f"{expert} {layer_and_suffix(part.tensor)[1]} {part.view or ''}"
        return (
            *own,
            stream_of(seed, layer, f"noise {matrix}"),
            stream_of(seed, layer, f"neurons {expert}"),
            stream_of(seed, layer, f"values {matrix}"),
        )

    def _model(self, part: Part) -> Model:
        match part.source.kind:
            case "base":
                return self.parts.base
            case "expert":
                return self.parts.experts[part.source.index]
            case _:
                return self.parts.shared[part.source.index]

    def _adjust(self, part: Part) -> Adjust:
        listed = self.parts.adjust if part.source.kind == "expert" else self.parts.adjust_shared
        return listed[part.source.index]

    # ---- routers -------------------------------------------------------------------------------

    def _router(self, tensor: OutTensor, part: Gate, spec: TensorSpec) -> Iterator[Piece]:
        router = self.parts.router
        if router.mode == "zero" or (part.kind == "shared" and not router.key):
            yield Piece(load(0, spec), (filled(0.0),))
        elif router.key:
            rows = load(0, TensorSpec(spec.shape, DType.F32))
            name = f"{'layers' if part.kind == 'router' else 'shared'}.{part.layer}"
            expression = simplify(cast(gate(rows), dtype=spec.dtype.name))
            yield Piece(expression, (SourceTensor(router.key, name),))
        else:
            yield from self._drawn(tensor, spec)

    def _drawn(self, tensor: OutTensor, spec: TensorSpec) -> Iterator[Piece]:
        """Random rows; `repeat` experts in a row have the same."""
        router = self.parts.router
        experts, hidden = spec.shape
        each = experts if router.repeat == 1 else 1
        layer, _ = layer_and_suffix(tensor.name)
        for first in range(0, experts, each):
            zeros = load(0, TensorSpec((each, hidden), DType.F32))
            stream_ = stream_of(self.parts.seed, layer, f"router {first // router.repeat}")
            if router.mode == "random":
                rows = noise(zeros, router.size / router.temperature, stream(0))
            else:
                rows = spread(zeros, 1 / math.sqrt(hidden) / router.temperature, stream(0))
            expression = simplify(cast(gate(rows), dtype=spec.dtype.name))
            place = None if each == experts else View(first * hidden, 1, hidden, hidden)
            yield Piece(expression, (filled(0.0),), (stream_,), place)


def _is_down(tensor: str) -> bool:
    return tensor.endswith(_DOWN)


def _shape_of(adjust: Adjust | None, tensor: str) -> object:
    """What of an adjustment decides the expression."""
    if adjust is None:
        return None
    return adjust.noise, adjust.drop, adjust.residual if _is_down(tensor) else None, _is_down(tensor)


def facts(family: MoeFamily, recipe: Recipe, graph: Graph, parts: Parts, active: int) -> dict[str, Any]:
    """What a dry run tells of a mixture: its sizes, its routers, and what comes from where."""
    routed, origins = 0, Counter[str]()
    routers: dict[str, list[int]] = {}
    ours = next(iter(family.names.router))
    spellings = tuple(f".{name}" for name in (ours, spelt(family.names, "stacked", ours)))
    for tensor in recipe.tensors:
        for part in tensor.parts:
            size = _part_size(tensor, part)
            if isinstance(part, Gate) or tensor.name.endswith(spellings):
                routers[tensor.name] = list(tensor.shape)
                origins[f"gate_mode {parts.router.mode}"] += size
            elif isinstance(part, Fill):
                origins["filled with a constant"] += size
            else:
                origins[_origin(part, parts)] += size
                routed += size if part.source.kind == "expert" else 0
    total = sum(output.spec.numel for output in graph.outputs.values())
    experts = len(parts.experts)
    return {
        "architecture": family.name,
        "experts": experts,
        "experts_per_token": active,
        "shared_experts": len(parts.shared),
        "parameters": total,
        "parameters_active": total - routed + routed * active // max(1, experts),
        "gate_mode": parts.router.mode,
        "routers": routers,
        "origins": dict(origins),
    }


def _origin(part: Part, parts: Parts) -> str:
    if part.source.kind == "base":
        return f"base: {parts.base.name}"
    listed = parts.experts if part.source.kind == "expert" else parts.shared
    kind = "expert" if part.source.kind == "expert" else "shared expert"
    return f"{kind} {part.source.index}: {listed[part.source.index].name}"


def _part_size(tensor: OutTensor, part: Part | Fill | Gate) -> int:
    place = None if isinstance(part, Gate) else part.place
    return math.prod(tensor.shape) if place is None else place.numel


def output_dtype(stated: DType | None, config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> DType:
    """The dtype of an output: as the plan says, else as the base's config does, else that of most of it."""
    if stated is not None:
        return stated
    for key in ("dtype", "torch_dtype"):
        found = next((d for d in DType if d.torch_name == config.get(key) and d.arithmetic), None)
        if found is not None:
            return found
    return heaviest(specs.values()) or DType.F32
