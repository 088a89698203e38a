"""What a plan should give, tensor by tensor: whole tensors in float64, by the formulas of this package.

Deliberately naive and independent of `src`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import yaml

from . import experts, masks, models, oracle, spheres
from .masks import Draw
from .oracle import F64, Answer, Sum
from .places import HEAD, Lookup, Place, Source, places_of, slices_of

_EMBEDDING = "model.embed_tokens.weight"
_WIDTH = {"float64": 64, "float32": 32, "float16": 16, "bfloat16": 16}
# Gamma of the outlier methods, epsilon of the ranked ones.
_GAMMA, _EPSILON = 0.01, 0.15


@dataclass(frozen=True)
class Expected:
    """One output tensor: its dtype, what it should hold, and whether mergekit kept 32 bits throughout.

    What it should hold is a `Draw` where chance has a say.
    """

    dtype: str
    answer: Answer | Draw
    wide: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape it should have."""
        return (self.answer.base if isinstance(self.answer, Draw) else self.answer.values).shape


def read(text: str, *, stacked: bool = False) -> dict[str, Expected]:
    """Every output tensor of the plan `text`, in which checkpoints are named by their keys.

    Experts are tensors of their own, whichever layout a checkpoint has; or, if `stacked`, those of a layer
    are two tensors, as mergekit reads them.
    """
    plan = yaml.safe_load(text)
    slices = slices_of(plan)
    keys = list(dict.fromkeys(source.model for part in slices for source in part.sources))
    layout = experts.stacked if stacked else experts.per_expert
    loaded = {key: layout(models.tensors(key)) for key in keys}
    return {place.name: _expected(plan, place, loaded) for place in places_of(slices, loaded)}


def _fetch(held: Mapping[str, F64], name: str) -> F64:
    return held[_EMBEDDING] if name == HEAD and name not in held else held[name]


def _expected(plan: Mapping[str, Any], place: Place, loaded: Mapping[str, Mapping[str, F64]]) -> Expected:
    sources = place.slice_.sources
    inputs = [_fetch(loaded[s.model], place.source_name(s)) for s in sources]
    common = _promoted([models.MODELS[s.model].dtype for s in sources])
    asked = str(plan["dtype"]).removeprefix("torch.") if "dtype" in plan else common
    answer = METHODS[plan["merge_method"]](Lookup(plan, place), place, inputs, asked == "float64")
    out = str(plan.get("out_dtype", asked))
    return Expected(out, answer, min(_WIDTH[asked], _WIDTH[out]) >= 32)


def _promoted(dtypes: Sequence[str]) -> str:
    if len(set(dtypes)) == 1:
        return dtypes[0]
    return "float64" if "float64" in dtypes else "float32"


def _required(value: float | None) -> float:
    if value is None:
        raise ValueError("a required parameter is missing")
    return value


def _linear(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    weights = [_required(look.own("weight", s)) for s in place.slice_.sources]
    return oracle.linear(inputs, weights, normalize=look.shared("normalize", True))


def _split(place: Place, inputs: Sequence[F64]) -> tuple[F64, list[tuple[Source, F64]]]:
    pairs = list(zip(place.slice_.sources, inputs, strict=True))
    (base,) = [x for s, x in pairs if s.model == place.slice_.base]
    return base, [(s, x) for s, x in pairs if s.model != place.slice_.base]


def _slerp(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    base, [(_, other)] = _split(place, inputs)
    return oracle.slerp(base, other, t=_required(float(look.shared("t", None))))


def _task_arithmetic(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    base, others = _split(place, inputs)
    return oracle.task_arithmetic(
        base,
        [x for _, x in others],
        _weights(look, others),
        normalize=look.shared("normalize", False),
        scale=float(look.shared("lambda", 1.0)),
    )


def _added(
    look: Lookup,
    place: Place,
    inputs: Sequence[F64],
    double: bool,
    *,
    keep: Callable[[Lookup, Source, F64, bool], tuple[F64, oracle.Mask]],
    consensus: bool,
    normalize: bool = False,
) -> Answer:
    """Pruned task vectors, added up."""
    base, others = _split(place, inputs)
    kept = []
    for source, x in others:
        delta = x - base
        what, unsure = keep(look, source, delta, double)
        kept.append((oracle.lengthened(delta, what) if look.shared("rescale", False) else what, unsure))
    return oracle.added(base, kept, _weights(look, others), _sum(look, consensus, normalize))


def _weights(look: Lookup, others: Sequence[tuple[Source, F64]]) -> list[float]:
    return [_required(look.own("weight", s)) for s, _ in others]


def _sum(look: Lookup, consensus: bool, normalize: bool) -> Sum:
    scale = float(look.shared("lambda", 1.0))
    return Sum(consensus, bool(look.shared("normalize", normalize)), scale)


def _largest(look: Lookup, source: Source, delta: F64, double: bool) -> tuple[F64, oracle.Mask]:
    return oracle.trim(delta, _required(look.own("density", source, 1.0)), double=double)


def _crumbs(look: Lookup, source: Source, delta: F64, double: bool) -> tuple[F64, oracle.Mask]:
    gamma = _required(look.own("gamma", source, _GAMMA))
    return oracle.crumbs(delta, _required(look.own("density", source, 1.0)), gamma, double=double)


def _drawn(
    look: Lookup,
    place: Place,
    inputs: Sequence[F64],
    double: bool,
    *,
    ranked: bool,
    consensus: bool,
    normalize: bool = False,
) -> Answer | Draw:
    """Task vectors pruned by chance, added up."""
    base, others = _split(place, inputs)
    deltas, chances = [], []
    for source, x in others:
        density = _required(look.own("density", source, 1.0))
        epsilon = _required(look.own("epsilon", source, _EPSILON)) if ranked else 0.0
        deltas.append(x - base)
        chances.append(masks.ranked(x - base, min(max(density, 0.0), 1.0), epsilon))
    how = _sum(look, consensus, normalize)
    rescale = bool(look.shared("rescale", True))
    draw = Draw(base, tuple(deltas), tuple(_weights(look, others)), tuple(chances), how, rescale)
    return draw if draw.is_random else draw.settled()


def _passthrough(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    (values,) = inputs
    return oracle.passthrough(values, scale=look.own("scale", place.slice_.sources[0]))


def _nuslerp(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    base, others = _optional_base(place, inputs)
    flatten, row_wise = look.shared("nuslerp_flatten", True), look.shared("nuslerp_row_wise", False)
    pair = [x for _, x in others]
    return spheres.nuslerp(base, pair, _weights(look, others), flatten=flatten, row_wise=row_wise)


def _multislerp(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    base, others = _optional_base(place, inputs)
    normalize, eps = look.shared("normalize_weights", True), float(look.shared("eps", 1e-8))
    weights = _weights(look, others)
    return spheres.multislerp(base, [x for _, x in others], weights, normalize=normalize, eps=eps)


def _optional_base(place: Place, inputs: Sequence[F64]) -> tuple[F64 | None, list[tuple[Source, F64]]]:
    if place.slice_.base is not None:
        return _split(place, inputs)
    return None, list(zip(place.slice_.sources, inputs, strict=True))


def _karcher(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    steps, tol = int(look.shared("max_iter", 10)), float(look.shared("tol", 1e-5))
    return spheres.karcher(inputs, max_iter=steps, tol=tol)


def _model_stock(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    base, others = _split(place, inputs)
    return spheres.model_stock(base, [x for _, x in others], filter_wise=look.shared("filter_wise", False))


def _nearswap(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    base, [(_, other)] = _split(place, inputs)
    return oracle.nearswap(base, other, t=float(_required(look.shared("t", None))))


def _arcee_fusion(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    base, [(_, other)] = _split(place, inputs)
    return oracle.arcee_fusion(base, other)


def _sce(look: Lookup, place: Place, inputs: Sequence[F64], double: bool) -> Answer:
    base, others = _split(place, inputs)
    return oracle.sce(base, [x for _, x in others], select_topk=float(look.shared("select_topk", 1.0)))


def _ram(look: Lookup, place: Place, inputs: Sequence[F64], double: bool, *, plus: bool = False) -> Answer:
    base, others = _split(place, inputs)
    r = float(look.shared("r", 0.1)) if plus else 0.0
    alpha, epsilon = float(look.shared("alpha", 0.2)), float(look.shared("epsilon", 1e-5))
    return oracle.ram(base, [x for _, x in others], epsilon=epsilon, r=r, alpha=alpha)


Method = Callable[[Lookup, Place, Sequence[F64], bool], Answer | Draw]
METHODS: Mapping[str, Method] = {
    "linear": _linear,
    "slerp": _slerp,
    "nuslerp": _nuslerp,
    "multislerp": _multislerp,
    "karcher": _karcher,
    "task_arithmetic": _task_arithmetic,
    "ties": partial(_added, keep=_largest, consensus=True, normalize=True),
    "breadcrumbs": partial(_added, keep=_crumbs, consensus=False),
    "breadcrumbs_ties": partial(_added, keep=_crumbs, consensus=True),
    "dare_linear": partial(_drawn, ranked=False, consensus=False),
    "dare_ties": partial(_drawn, ranked=False, consensus=True),
    "della_linear": partial(_drawn, ranked=True, consensus=False),
    "della": partial(_drawn, ranked=True, consensus=True, normalize=True),
    "model_stock": _model_stock,
    "nearswap": _nearswap,
    "arcee_fusion": _arcee_fusion,
    "sce": _sce,
    "ram": _ram,
    "ramplus_tl": partial(_ram, plus=True),
    "passthrough": _passthrough,
}
