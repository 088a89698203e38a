"""An extraction plan → the graph of a dense model: one expert, a mean of experts, or several in one MLP."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mergegraph.architectures import all_moe_families, moe_family
from mergegraph.architectures.dense import Dense
from mergegraph.architectures.dense_recipe import Chosen, dense_recipe
from mergegraph.architectures.inverse import Factors, completed, factors, tidied, uneven, way_back
from mergegraph.architectures.moe import Back, Fill, Gate, MoeFamily, Obstacle, OutTensor, Part, Recipe
from mergegraph.architectures.roles import is_derived, is_head
from mergegraph.checkpoint.names import layer_and_suffix
from mergegraph.checkpoint.view import View
from mergegraph.compiler.checks import is_quantised
from mergegraph.compiler.config import state_dtype
from mergegraph.compiler.inputs import Input
from mergegraph.compiler.merge import Compiled
from mergegraph.compiler.report import CompileReport, Dropped
from mergegraph.compiler.selection import experts_in
from mergegraph.errors import GraphError, did_you_mean
from mergegraph.graph.graph import Graph, Output, Piece, SourceTensor, filled
from mergegraph.graph.node import Node
from mergegraph.graph.simplify import simplify
from mergegraph.ops import cast, load, scale, weighted_sum
from mergegraph.plan.source import Problems
from mergegraph.plan.surgery import ExtractPlan
from mergegraph.tensorspec import DType, TensorSpec, promote

_LAYER = re.compile(r"\blayer [0-9]+\b")
_EXPERT = re.compile(r"(?:^|\.)experts\.([0-9]{1,9})\.")


@dataclass(frozen=True)
class _Mixture:
    """A checkpoint with experts, and what its plan wants of it."""

    plan: ExtractPlan
    model: Input
    family: MoeFamily
    dense: Dense
    factors: Factors
    counts: Mapping[str, int]

    @property
    def joins_shared(self) -> bool:
        """Whether the shared expert becomes a part of the MLP."""
        return self.plan.mode == "concatenate" and self.factors.shared is not None


def compile_extract(plan: ExtractPlan, model: Input) -> Compiled:
    """Compile the extraction of a dense model from a mixture of experts.

    Args:
        plan: the plan.
        model: the mixture, in any layout.

    Raises:
        PlanError: with every problem found.
    """
    problems = Problems()
    mixture = _mixture(plan, model, problems)
    back = way_back(mixture.family, mixture.dense.config, plan.architecture)
    if isinstance(back, Obstacle):
        _note(plan, (back,), problems)
    problems.raise_if_any()
    assert isinstance(back, Back)
    made = _recipe(mixture, back)
    if isinstance(made, tuple):
        _note(plan, made, problems)
        problems.raise_if_any()
    assert isinstance(made, _Made)
    try:
        graph = _Building(model, plan.out_dtype or plan.dtype, plan.dtype is DType.F64).graph(made)
    except GraphError as error:
        problems.add(error.message, plan.model_origin)
        problems.raise_if_any()
        raise
    config = tidied(back, made.recipe.config)
    stated = plan.out_dtype or plan.dtype
    if stated is not None:
        state_dtype(config, stated)
    notes = (*plan.notes, *made.recipe.notes, *_remarks(mixture))
    report = CompileReport((), _dropped(mixture, graph), (), notes, ())
    return Compiled(graph, config, report, _facts(mixture, back, graph))


def _mixture(plan: ExtractPlan, model: Input, problems: Problems) -> _Mixture:
    """What the checkpoint is; experts that it lacks are noted.

    Raises:
        PlanError: it is no mixture of a known family.
    """
    config, origin = model.index.config, plan.model_origin
    family, counts = moe_family(str(config.get("model_type"))), experts_in(model.tensors)
    if not counts:
        problems.add(f"{model.name} has no experts", origin, "extract takes a mixture of experts")
    elif family is None:
        said = config.get("model_type")
        known = [name for f in all_moe_families() for name in f.model_types]
        hint = did_you_mean(str(said), known) or "put its config.json right, if that is not what it is"
        problems.add(
            f"{model.name} is of no known family of mixtures: its model_type is {said}", origin, hint
        )
    if family is None or not counts:
        problems.raise_if_any()
    assert family is not None
    if is_quantised(config):
        problems.add(f"{model.name} is quantised", origin, "use the unquantised checkpoint")
    fewest = min(counts.values())
    missing = [str(e) for e in plan.experts if e >= fewest]
    if missing:
        what = f"expert {missing[0]}" if len(missing) == 1 else f"experts {', '.join(missing)}"
        hint = f"experts are numbered 0 to {fewest - 1}"
        problems.add(f"{model.name} has no {what}", plan.experts_origin, hint)
    specs = {name: entry.spec for name, entry in model.index.tensors.items()}
    dense = Dense(completed(family, config), specs)
    return _Mixture(plan, model, family, dense, factors(family, dense), counts)


def _note(plan: ExtractPlan, obstacles: Sequence[Obstacle], problems: Problems) -> None:
    """Note what is in the way; what is wrong with several layers is told of the first."""
    origins = {"architecture": plan.architecture_origin, "experts": plan.experts_origin}
    alike: dict[str, list[Obstacle]] = {}
    for obstacle in obstacles:
        alike.setdefault(_LAYER.sub("layer", obstacle.message), []).append(obstacle)
    for first, *others in alike.values():
        more = f" (and {len(others)} more layer{'s' if len(others) > 1 else ''})" if others else ""
        problems.add(first.message + more, origins.get(first.key, plan.model_origin), first.hint)


# ---- what goes where -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Made:
    """A recipe, and the parts that are averaged: output tensor → what comes in place of its only part."""

    recipe: Recipe
    means: Mapping[str, tuple[Part, ...]]


def _recipe(mixture: _Mixture, back: Back) -> _Made | tuple[Obstacle, ...]:
    plan, (routed, shared, _) = mixture.plan, mixture.factors
    family = replace(mixture.family, back=(back,))
    together = plan.mode == "concatenate"
    sides = [Chosen(e, share * routed) for e, share in zip(plan.experts, plan.shares, strict=True)]
    every = dense_recipe(family, mixture.dense, sides, (shared or 0.0) if together else 0.0)
    if isinstance(every, tuple) or together:
        return every if isinstance(every, tuple) else _Made(every, {})
    # The first expert alone says where things go; beside it stand those that it is averaged with.
    alone = dense_recipe(family, mixture.dense, [Chosen(plan.experts[0], routed)])
    if isinstance(alone, tuple):
        return alone
    means: dict[str, tuple[Part, ...]] = {}
    for one, several in zip(alone.tensors, every.tensors, strict=True):
        parts = [part for part in several.parts if isinstance(part, Part)]
        (own,) = (part for part in one.parts if isinstance(part, Part))
        if len(parts) == len(plan.shares) > 1:
            shares = zip(parts, plan.shares, strict=True)
            means[one.name] = tuple(replace(p, place=own.place, scale=s * own.scale) for p, s in shares)
    return _Made(alone, means)


@dataclass
class _Building:
    """Builds outputs one by one, in the dtype that is `stated`; `wide` computes in float64."""

    model: Input
    stated: DType | None
    wide: bool
    _templates: dict[object, Node] = field(default_factory=dict)

    def graph(self, made: _Made) -> Graph:
        return Graph({t.name: self._output(t, made.means.get(t.name)) for t in made.recipe.tensors})

    def _output(self, tensor: OutTensor, mean: tuple[Part, ...] | None) -> Output:
        read = [part for part in tensor.parts if isinstance(part, Part)]
        kinds = [self._spec(part).dtype for part in mean or read]
        packed = next((kind for kind in kinds if not kind.arithmetic), None)
        if packed is not None and (mean or len(read) > 1 or read[0].scale != 1.0):
            name = packed.torch_name
            raise GraphError(f"{read[0].tensor} is {name}: use a checkpoint that is not quantised")
        dtype = kinds[0] if packed is not None else self.stated or promote(kinds)
        pieces = tuple(self._piece(part, mean, tensor.shape, dtype) for part in tensor.parts)
        return Output(TensorSpec(tensor.shape, dtype), pieces)

    def _piece(
        self, part: Part | Fill | Gate, mean: tuple[Part, ...] | None, shape: tuple[int, ...], dtype: DType
    ) -> Piece:
        if isinstance(part, Part):
            parts = mean or (part,)
            sources = tuple(SourceTensor(self.model.key, p.tensor, p.view) for p in parts)
            return Piece(self._expression(parts, dtype), sources, place=part.place)
        assert isinstance(part, Fill)  # dense models have no routers
        size = shape if part.place is None else (part.place.rows, part.place.columns)
        return Piece(load(0, TensorSpec(size, dtype)), (filled(part.value),), place=part.place)

    def _expression(self, parts: Sequence[Part], dtype: DType) -> Node:
        specs, factors_ = tuple(self._spec(p) for p in parts), tuple(p.scale for p in parts)
        key = specs, factors_, dtype
        if key not in self._templates:
            self._templates[key] = self._template(specs, factors_, dtype)
        return self._templates[key]

    def _template(self, specs: Sequence[TensorSpec], factors_: tuple[float, ...], dtype: DType) -> Node:
        loads = [load(i, spec) for i, spec in enumerate(specs)]
        if not specs[0].dtype.arithmetic:
            return loads[0]
        xs = [cast(x, dtype="F64") for x in loads] if self.wide else loads
        x = scale(xs[0], factors_) if len(xs) == 1 else weighted_sum(*xs, factors_)
        return simplify(cast(x, dtype=dtype.name))

    def _spec(self, part: Part) -> TensorSpec:
        stored = self.model.index.tensors[part.tensor].spec
        view: View | None = part.view
        return stored if view is None else TensorSpec((view.rows, view.columns), stored.dtype)


def _expert_number(name: str) -> int | None:
    match = _EXPERT.search(name)
    return None if match is None else int(match[1])


# ---- what is told --------------------------------------------------------------------------------


def _remarks(mixture: _Mixture) -> list[str]:
    plan, said = mixture.plan, []
    routed, shared, guessed = mixture.factors
    reason = uneven(mixture.family, mixture.dense.config)
    if reason is not None:
        said.append(
            f"the weights of the chosen experts do not add up to one ({reason}), but here they count as if so"
        )
    if routed != 1.0:
        said.append(f"down projections are scaled by {routed:g}, as the sum of chosen experts is")
    if shared is not None and not mixture.joins_shared:
        said.append(f"the shared expert, which adds to every token, is left out: mode {plan.mode}")
    elif guessed:
        said.append(f"the shared expert counts {shared:g}, whatever its gate would make of a token")
    kept = len(_plain_layers(mixture))
    if kept:
        count = f"{kept} layer{'s' if kept > 1 else ''}"
        said.append(f"{count} without experts keep their MLP; zero neurons make all MLPs equally large")
    return said


def _plain_layers(mixture: _Mixture) -> list[str]:
    stack = mixture.model.stack
    prefix = "" if stack is None else f"{stack.prefix}."
    stated = mixture.dense.config.get("num_hidden_layers")
    count = stated if type(stated) is int else mixture.model.layers
    return [f"{prefix}{i}." for i in range(count) if f"{prefix}{i}." not in mixture.counts]


def _dropped(mixture: _Mixture, graph: Graph) -> tuple[Dropped, ...]:
    """The account of every tensor that the dense model does not have."""
    model, used = mixture.model, graph.sources()
    whole = {source.name for source in used if source.view is None}
    partly = {source.name for source in used}
    found = []
    for name, place in model.tensors.items():
        source = SourceTensor(model.key, place.tensor, place.view)
        read = source.name in partly if place.view is None else source in used
        if source.name not in whole and not read:
            reason = _reason(mixture, name, place.tensor, len(place.spec.shape))
            found.append(Dropped(model.name, source.label, reason))
    return tuple(found)


def _reason(mixture: _Mixture, name: str, stored: str, rank: int) -> str:
    family, shared = mixture.family, mixture.family.shared
    layer, suffix = layer_and_suffix(name)
    own = family.names.aliases.get(layer_and_suffix(stored)[1], layer_and_suffix(stored)[1])
    number = layer.rstrip(".").rpartition(".")[2]
    stated = mixture.dense.config.get("num_hidden_layers")
    if is_derived(name, rank):
        return "derived buffer"
    if number.isdecimal() and type(stated) is int and int(number) >= stated:
        return f"the config says that there are {stated} layers"
    if layer in mixture.counts and _expert_number(suffix) is not None:
        return "its expert is not extracted"
    if shared is not None and own == shared.router:
        return "a dense model has no gate for a shared expert"
    if shared is not None and own in (shared.gate, shared.up, shared.down):
        return f"the shared expert is left out (mode: {mixture.plan.mode})"
    if is_head(name):
        return "the output head is tied to the embedding"
    return "a dense model has no router"


def _facts(mixture: _Mixture, back: Back, graph: Graph) -> dict[str, Any]:
    plan, model = mixture.plan, mixture.model
    return {
        "architecture": back.model_type,
        "mode": plan.mode,
        "shares": {str(e): share for e, share in zip(plan.experts, plan.shares, strict=True)},
        "shared_expert": mixture.joins_shared,
        "experts_before": max(mixture.counts.values()),
        "parameters": sum(output.spec.numel for output in graph.outputs.values()),
        "parameters_before": sum(place.spec.numel for place in model.tensors.values()),
        "origins": _origins(mixture, graph),
    }


def _origins(mixture: _Mixture, graph: Graph) -> dict[str, int]:
    """How many parameters come from where."""
    key, places = mixture.model.key, mixture.model.tensors
    names = {SourceTensor(key, place.tensor, place.view): name for name, place in places.items()}
    sizes: Counter[str] = Counter()
    for output in graph.outputs.values():
        for piece in output.parts:
            size = output.spec.numel if piece.place is None else piece.place.numel
            first = names.get(piece.sources[0], piece.sources[0].tensor)
            sizes[_origin(mixture, piece, first)] += size
    return dict(sizes)


def _origin(mixture: _Mixture, piece: Piece, first: str) -> str:
    shared = mixture.family.shared
    expert = _expert_number(first)
    if piece.sources[0].filled is not None:
        return "zero neurons"
    if len(piece.sources) > 1:
        return f"mean of experts {', '.join(map(str, mixture.plan.experts))}"
    if expert is not None:
        return f"expert {expert}"
    if shared is not None and first.endswith((shared.gate, shared.down, shared.up or shared.gate)):
        return "shared expert"
    return "everything else"
