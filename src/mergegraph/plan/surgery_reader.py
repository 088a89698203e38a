"""Reading the plans of `surgery`, noting everything that is wrong with one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import get_args

from mergegraph.errors import did_you_mean
from mergegraph.plan import schema
from mergegraph.plan.fields import Fields, read_elements, read_number
from mergegraph.plan.models import Reading, read_common, read_expert_layout, read_model_like
from mergegraph.plan.router import BLIND_MODES, RouterOptions, read_gate_mode, read_router
from mergegraph.plan.source import Entry, Located
from mergegraph.plan.surgery import (
    AlignBy,
    AlignPlan,
    ExtractMode,
    ExtractPlan,
    Keep,
    PrunePlan,
    ScoreFile,
    SurgeryPlan,
    UpcycleMethod,
    UpcyclePlan,
)
from mergegraph.plan.values import ModelRef, check_keys, read_model_ref

_DEFAULT_MODE = "random"
_INITIAL_STD = 0.02
"""What new linear layers are usually drawn with: routing starts out nearly even."""


def read_surgery(root: Located, reading: Reading) -> SurgeryPlan | None:
    """Read a mapping that has the key ``surgery``, noting what is wrong with it.

    With problems the plan must not be run, but more can still be said about it; None if the kind of surgery,
    its model or its experts cannot be told.
    """
    fields = Fields(root, reading.problems)
    kinds = f"one of {', '.join(_READERS)}"
    fields.required("surgery", "a plan for surgery", kinds)
    kind = fields.optional_choice("surgery", _READERS, "for example surgery: prune")
    return None if kind is None else _READERS[kind](fields, reading)


def _upcycle(fields: Fields, reading: Reading) -> UpcyclePlan | None:
    what = "an upcycling plan"
    check_keys(fields.mapping, schema.UPCYCLE.names, what, fields.problems)
    entry = fields.required("model", what, "add model: MODEL, a dense one")
    model = None if entry is None else read_model_like(entry.value, reading)
    fields.required("experts", what, "for example experts: 8")
    granularity = fields.whole("granularity", least=1) or 1
    experts, active = _counts(fields, granularity)
    mode = read_gate_mode(fields, BLIND_MODES, _DEFAULT_MODE)
    router = read_router(fields, mode, RouterOptions(std=_INITIAL_STD))
    method = fields.choice("method", get_args(UpcycleMethod), "sparse", "sparse makes plain copies")
    ratio, noise = _ratio(fields, method), fields.number("noise_scale", least=0)
    architecture, layout = fields.text("architecture", "mixtral"), read_expert_layout(fields)
    common = read_common(fields, reading)
    if model is None or experts is None:
        return None
    return UpcyclePlan(
        model=model,
        model_origin=fields.origin_of("model"),
        experts=experts,
        experts_per_token=active,
        granularity=granularity,
        method=method,
        ratio=ratio,
        noise_scale=noise,
        gate_mode=mode or _DEFAULT_MODE,
        gate_origin=fields.origin_of("gate_mode"),
        router=router,
        architecture=architecture,
        architecture_origin=fields.origin_of("architecture"),
        expert_layout=layout,
        expert_layout_origin=fields.origin_of("expert_layout"),
        **common,
    )


def _counts(fields: Fields, granularity: int) -> tuple[int | None, int]:
    """Read how many experts there are, and how many a token uses."""
    experts = fields.whole("experts", least=1)
    given = fields.whole("experts_per_token", least=1, most=experts)
    copies = 2 if experts is None else max(experts // granularity, 1)
    for key, value in (("experts", experts), ("experts_per_token", given)):
        if value is not None and value % granularity:
            message = f"{key} is {value}, which is not a multiple of granularity {granularity}"
            hint = "each copy of the model becomes that many experts, which are used together"
            fields.problems.add(message, fields.origin_of(key), hint)
    return experts, granularity * min(2, copies) if given is None else given


def _ratio(fields: Fields, method: UpcycleMethod) -> float:
    ratio, origin = fields.number("ratio", above=0), fields.origin_of("ratio")
    if ratio is None:
        return 0.5
    if method != "drop":
        hint = "remove it, or write method: drop"
        fields.problems.add(f"ratio has no effect with method {method}", origin, hint)
    if ratio > 1:
        fields.problems.add(f"ratio is {ratio:g}, more than 1", origin, "it is a share of the neurons")
    return ratio


def _checkpoint(fields: Fields, reading: Reading, what: str) -> ModelRef | None:
    """Read the mixture that is operated on."""
    entry = fields.required("model", what, "add model: MODEL, a mixture of experts")
    if entry is None:
        return None
    if reading.stage(entry.value) is not None or "merge_method" in (entry.value.entries or {}):
        message = f"{what} takes a checkpoint, not a merge"
        reading.problems.add(message, entry.origin, "run the merge first, and give its result here")
        return None
    return read_model_ref(entry.value, reading.problems)


def _extract(fields: Fields, reading: Reading) -> ExtractPlan | None:
    what = "an extraction plan"
    check_keys(fields.mapping, schema.EXTRACT.names, what, fields.problems)
    model = _checkpoint(fields, reading, what)
    entry = _one_of(fields, "expert", "experts", what)
    one = fields.whole("expert", least=0)
    listed = fields.entry("experts")
    ids = _ids(listed, reading) if listed is not None else () if one is None else (one,)
    mode = fields.optional_choice("mode", get_args(ExtractMode), "pick takes one expert as it is")
    if mode == "pick" and len(ids) > 1:
        message = f"mode pick takes one expert, and {len(ids)} are given"
        reading.problems.add(message, fields.origin_of("mode"), "write mode: mean or mode: concatenate")
    if mode in ("mean", "concatenate") and entry is not None and entry.key == "expert":
        message = f"mode {mode} combines several experts"
        reading.problems.add(message, fields.origin_of("mode"), "write experts: [0, 1], or mode: pick")
    shares = _shares(fields, ids)
    architecture, common = fields.text("architecture", "llama"), read_common(fields, reading)
    if model is None or entry is None or not ids:
        return None
    return ExtractPlan(
        model=model,
        model_origin=fields.origin_of("model"),
        experts=ids,
        experts_origin=entry.origin,
        shares=shares,
        mode=mode or ("pick" if entry.key == "expert" else "mean"),
        architecture=architecture,
        architecture_origin=fields.origin_of("architecture"),
        **common,
    )


def _one_of(fields: Fields, first: str, second: str, what: str) -> Entry | None:
    """Return the entry of the only one of two keys."""
    found = [entry for entry in (fields.entry(first), fields.entry(second)) if entry is not None]
    if not found:
        fields.problems.add(f"{what} needs {first} or {second}", fields.origin, f"add {first}: or {second}:")
    elif len(found) == 2:
        later = max(found, key=lambda entry: entry.origin.line)
        fields.problems.add(f"{first} and {second} cannot both be given", later.origin, "remove one of them")
    return found[0] if found else None


def _ids(entry: Entry, reading: Reading) -> tuple[int, ...]:
    """Read a list of different experts; empty if something is wrong with it."""
    items = read_elements(entry, "the number of an expert", reading.problems)
    ids: list[int] = []
    for item in items:
        if type(item.value) is not int or item.value < 0:
            said = item.value if type(item.value) is int else item.kind()
            message = f"an expert is a whole number from 0, not {said}"
            reading.problems.add(message, item.origin, "experts are counted from 0")
        elif item.value in ids:
            reading.problems.add(f"expert {item.value} is listed twice", item.origin, "remove one of them")
        else:
            ids.append(item.value)
    return tuple(ids) if len(ids) == len(items) else ()


def _shares(fields: Fields, ids: tuple[int, ...]) -> tuple[float, ...]:
    """Read the weights of the experts, as parts of one."""
    entry, equal = fields.entry("weights"), tuple(1 / len(ids) for _ in ids)
    if entry is None:
        return equal
    read = [read_number("a weight", item, fields.problems) for item in fields.elements("weights", "a number")]
    weights = [weight for weight in read if weight is not None]
    if len(weights) != len(read) or not read:
        return equal
    if ids and len(weights) != len(ids):
        message = f"there are {len(weights)} weights, but {len(ids)} experts"
        fields.problems.add(message, entry.origin, "write one weight for each expert")
    elif min(weights) < 0 or sum(weights) == 0:
        message = "weights must not be negative, nor all zero"
        fields.problems.add(message, entry.origin, "they are divided by their sum")
    else:
        return tuple(weight / sum(weights) for weight in weights)
    return equal


def _prune(fields: Fields, reading: Reading) -> PrunePlan | None:
    what = "a pruning plan"
    check_keys(fields.mapping, schema.PRUNE.names, what, fields.problems)
    model = _checkpoint(fields, reading, what)
    entry = _one_of(fields, "keep", "scores", what)
    keep = _keep(fields, entry, reading)
    active = fields.whole("experts_per_token", least=1)
    layout, common = read_expert_layout(fields), read_common(fields, reading)
    if model is None or keep is None or entry is None:
        return None
    plan = PrunePlan(
        model=model,
        model_origin=fields.origin_of("model"),
        keep=keep,
        keep_origin=entry.origin,
        experts_per_token=active,
        experts_per_token_origin=fields.origin_of("experts_per_token"),
        expert_layout=layout,
        **common,
    )
    if active is not None and active > plan.count:
        message = f"experts_per_token is {active}, but {plan.count} stay in each layer"
        hint = f"write a number from 1 to {plan.count}"
        reading.problems.add(message, plan.experts_per_token_origin, hint)
    return plan


def _keep(fields: Fields, entry: Entry | None, reading: Reading) -> Keep | None:
    """Read which experts stay."""
    count = fields.whole("count", least=1)
    if entry is None:
        return None
    if entry.key == "scores":
        path = fields.text("scores", "scores.json")
        fields.required("count", "a pruning plan with scores", "for example count: 4")
        return None if path is None or count is None else ScoreFile(path, count, entry.origin)
    if count is not None:
        origin = fields.origin_of("count")
        reading.problems.add("count belongs to scores", origin, "remove it; keep says which experts stay")
    if entry.value.entries is None:
        return _ids(entry, reading) or None
    return _keep_by_layer(entry, reading)


def _keep_by_layer(entry: Entry, reading: Reading) -> Keep | None:
    layers: dict[int, tuple[int, ...]] = {}
    for key, item in (entry.value.entries or {}).items():
        if not key.isdecimal():
            message = f"keep has the layer {key!r}, which is not a number"
            reading.problems.add(message, item.origin, "write LAYER: [experts], with layers counted from 0")
        else:
            layers[int(key)] = _ids(item, reading)
    sizes = [len(ids) for ids in layers.values() if ids]
    if not layers:
        reading.problems.add("keep is empty", entry.origin, "add LAYER: [experts] for every layer")
    elif sizes and min(sizes) != max(sizes):
        message = f"the layers keep between {min(sizes)} and {max(sizes)} experts"
        hint = "keep equally many in every layer; no configuration can say anything else"
        reading.problems.add(message, entry.origin, hint)
    return layers if layers and all(layers.values()) else None


def _align(fields: Fields, reading: Reading) -> AlignPlan | None:
    what = "an alignment plan"
    check_keys(fields.mapping, schema.ALIGN.names, what, fields.problems)
    merge = reading.merge(_as_merge(fields.mapping))
    by = fields.choice("by", get_args(AlignBy), "router", "router compares what routers look for")
    layout = read_expert_layout(fields)
    if merge is None or not merge.models:
        return None
    known = merge.referenced_models()
    if len(known) < 2:
        message = "there is one mixture only, and nothing to align it with"
        reading.problems.add(message, fields.origin_of("models"), "list at least two models")
    entry = fields.entry("reference")
    given = None if entry is None else read_model_ref(entry.value, reading.problems)
    if entry is not None and given is not None and given not in known:
        near = did_you_mean(str(given), [str(ref) for ref in known])
        message = f"the reference {given} is not a model of this plan"
        hint = near or f"one of {', '.join(str(ref) for ref in known)}"
        reading.problems.add(message, entry.origin, hint)
    return AlignPlan(
        merge=merge,
        reference=given or merge.base_model or merge.models[0].model,
        reference_origin=fields.origin_of("reference"),
        by=by,
        expert_layout=layout,
        text=reading.text,
        file=reading.file,
        dtype=merge.dtype,
        out_dtype=merge.out_dtype,
        seed=merge.seed,
        notes=merge.notes,
    )


def _as_merge(root: Located) -> Located:
    """Return the merge plan in a plan for alignment; a model alone is short for an entry with it."""
    known = [key for key in schema.ALIGN.names if key in schema.MERGE.names]
    entries = {key: entry for key, entry in (root.entries or {}).items() if key in known}
    listed = entries.get("models")
    if listed is not None and listed.value.items is not None:
        items = tuple(_as_source(item) for item in listed.value.items)
        entries["models"] = replace(listed, value=replace(listed.value, value=items))
    return replace(root, value=entries)


def _as_source(item: Located) -> Located:
    if isinstance(item.value, str):
        return replace(item, value={"model": Entry("model", item, item.origin)})
    return item


_READERS: Mapping[str, Callable[[Fields, Reading], SurgeryPlan | None]] = {
    "upcycle": _upcycle,
    "extract": _extract,
    "prune": _prune,
    "align": _align,
}
