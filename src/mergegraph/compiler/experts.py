"""Checkpoints as logical tensors, and logical outputs as the tensors that are written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from mergegraph.architectures.expert_names import ExpertNames, expert_names
from mergegraph.architectures.experts import (
    GATED,
    Form,
    Spelling,
    Stack,
    numbered,
    respelled,
    separate_spelling,
    stacked_block,
    stacking,
    stacks_of,
)
from mergegraph.checkpoint.index import TensorEntry
from mergegraph.checkpoint.names import layer_and_suffix, layers_and_suffixes
from mergegraph.checkpoint.view import View
from mergegraph.graph.graph import Output, Piece, SourceTensor
from mergegraph.graph.simplify import simplify
from mergegraph.ops import cast, load
from mergegraph.plan.values import ExpertLayout
from mergegraph.tensorspec import TensorSpec, promote

_SIGNS = ("experts.", "input_linear.")
_LAYERS = 4
"""Layers that show how experts are called: all of a model are alike."""


class Place(NamedTuple):
    """Where a tensor of a model lies: in `tensor` of its checkpoint, or in the part `view` of that."""

    tensor: str
    spec: TensorSpec
    view: View | None = None


def spelling_for(checkpoints: Sequence[tuple[Iterable[str], Mapping[str, Any]]]) -> Spelling | None:
    """What experts are called in a plan over `checkpoints`, (tensor names, config) each.

    As in the first that has a tensor per expert; else as its family writes those, or as most families do.
    """
    # Towers and decoders may both have experts, but only ever of one family.
    held = [_first_experts(names) for names, _ in checkpoints]
    known = next((found for _, config in checkpoints if (found := _family_names(config)) is not None), None)
    blocks = [block for suffixes in held if (block := stacked_block(suffixes)) is not None]
    stacked = blocks[0] if blocks else _family_block(known)
    spelt = next((s for suffixes in held if (s := separate_spelling(suffixes, stacked)) is not None), None)
    own = None if known is None or known.down is None else _family_spelling(known, stacked)
    if spelt is None and blocks:
        spelt = own or Spelling(blocks[0], GATED, blocks[0])
    if known is None:
        return spelt
    if own is None:
        return replace(spelt or Spelling("", GATED, ""), aliases=known.aliases)
    if spelt is None or (own.block, own.roles) != (spelt.block, spelt.roles):
        return spelt
    aliases = {**{there: here for here, there in known.router.items()}, **known.aliases}
    beside = {**known.router, **{here: there for there, here in known.aliases.items()}}
    return replace(spelt, beside=beside, aliases={a: b for a, b in aliases.items() if a != b})


def _first_experts(names: Iterable[str]) -> list[str]:
    """Names below the layer of what is about experts, in the first few layers that have some."""
    layers: dict[str, list[str]] = {}
    listed = list(names)
    for name in listed if _about_experts(listed) else ():
        if any(sign in name for sign in _SIGNS):
            layer, suffix = layer_and_suffix(name)
            if layer not in layers and len(layers) == _LAYERS:
                break
            layers.setdefault(layer, []).append(suffix)
    return [suffix for suffixes in layers.values() for suffix in suffixes]


def _about_experts(names: Iterable[str]) -> bool:
    """Whether any name may be about experts: all at once, as most checkpoints have none."""
    text = "\n".join(names)
    return any(sign in text for sign in _SIGNS)


def _family_names(config: Mapping[str, Any]) -> ExpertNames | None:
    """The names of the family that a config says, or says of the language model inside."""
    parts = [config, *(inner for inner in config.values() if isinstance(inner, Mapping))]
    found = (expert_names(str(part.get("model_type"))) for part in parts)
    return next((names for names in found if names is not None), None)


def _family_block(known: ExpertNames | None) -> str | None:
    names = [] if known is None else [known.stacked_gate_up, known.stacked_up]
    return stacked_block([name for name in names if name is not None])


def _family_spelling(known: ExpertNames, stacked: str | None) -> Spelling | None:
    names = [name for name in (known.gate, known.up, known.down) if name is not None]
    return separate_spelling([numbered(name, 0) for name in names], stacked)


def logical(
    entries: Mapping[str, tuple[str, TensorEntry]], spelling: Spelling | None, config: Mapping[str, Any]
) -> tuple[dict[str, Place], Form]:
    """Return the logical tensors of a checkpoint, in its own order, and how it stores them.

    Args:
        entries: (own name, entry) by name in the donor's spelling.
        spelling: what experts are called; None if no model of the plan has any that could be stacked.
        config: the checkpoint's.
    """
    form = Form()
    places: dict[str, Place] = {}
    if not _about_experts(entries):
        return {name: Place(own, entry.spec) for name, (own, entry) in entries.items()}, form
    layers: dict[str, dict[str, tuple[str, TensorSpec]]] = {}
    for (own, entry), (layer, suffix) in zip(entries.values(), layers_and_suffixes(entries), strict=True):
        layers.setdefault(layer, {})[suffix] = (own, entry.spec)
    # Layers are much alike: what one is made of is found out once.
    known: dict[object, list[_Found]] = {}
    experts = stated_experts(config)
    for layer, tensors in layers.items():
        if not any(sign in suffix for suffix in tensors for sign in _SIGNS):
            places |= {layer + suffix: Place(own, spec) for suffix, (own, spec) in tensors.items()}
            continue
        specs = {suffix: spec for suffix, (_, spec) in tensors.items()}
        key = tuple((suffix, id(spec)) for suffix, spec in specs.items())
        if key not in known:
            known[key] = list(_found(specs, spelling, experts, form))
        places |= {layer + f.name: Place(tensors[f.suffix][0], f.spec, f.view) for f in known[key]}
    return places, form


class _Found(NamedTuple):
    """A logical tensor of a layer, and where it lies: names are those below the layer."""

    name: str
    suffix: str
    spec: TensorSpec
    view: View | None


def _found(
    specs: Mapping[str, TensorSpec], spelling: Spelling | None, experts: int | None, form: Form
) -> Iterator[_Found]:
    stacks = dict(stacks_of(specs, spelling or Spelling("", GATED, ""), experts))
    # Experts that are there twice: loaders take one of the two, and both have to be seen.
    stacks = {n: s for n, s in stacks.items() if not any(slot.name in specs for slot in s.slots)}
    separate = separate_spelling(specs)
    form.kinds |= {name: stack.kind for name, stack in stacks.items()}
    form.separate = form.separate or separate is not None
    held = (stacked_block(stacks), None if separate is None else separate.block)
    blocks = [block for block in held if block is not None]
    taken: dict[str, None] = {}
    for suffix, spec in specs.items():
        if suffix in stacks:
            for slot in stacks[suffix].slots:
                form.inside[slot.name] = suffix
                yield _Found(slot.name, suffix, TensorSpec(slot.shape, spec.dtype), slot.view)
            continue
        name = respelled(suffix, spelling, blocks) if spelling else suffix
        name = suffix if name in specs or name in taken else name
        taken[name] = None
        if name != suffix:
            form.stored[name] = suffix
        yield _Found(name, suffix, spec, None)


def stated_experts(config: Mapping[str, Any]) -> int | None:
    """The number of experts, where only the config tells."""
    inner = config.get("ffn_config")
    count = inner.get("moe_num_experts") if isinstance(inner, Mapping) else None
    return count if type(count) is int and count > 0 else None


def output_form(forms: Sequence[Form], layout: ExpertLayout | None, spelling: Spelling | None) -> Form:
    """How outputs are stored: as `layout` says; without, stacked if all inputs with experts are.

    `forms` are the inputs', the donor's first. Stacks that exist in one form only are always written.
    """
    holding = [f for f in forms if f.stacked or f.separate]
    stack = layout == "stacked" or (layout is None and bool(holding) and all(f.stacked for f in holding))
    own = next((f for f in holding if f.stacked), None)
    only = {name: kind for f in reversed(forms) for name, kind in f.kinds.items() if kind.only}
    taken = [kind.names for kind in only.values()]
    beside = {name: there for f in forms if not holding for name, there in f.stored.items()}
    if not stack:
        return Form(kinds=only, stored=beside)
    if own is not None:
        others = {name: kind for name, kind in own.kinds.items() if kind.names not in taken}
        return Form(kinds={**only, **others}, stored=dict(own.stored))
    return Form(kinds=only if spelling is None else {**spelling.kinds(), **only}, made=spelling)


def stored_outputs(outputs: Mapping[str, Output], form: Form) -> dict[str, Output]:
    """Put logical outputs together as they are to be written."""
    if not form.kinds and not form.stored:
        return dict(outputs)
    layers: dict[str, dict[str, Output]] = {}
    for output, (layer, suffix) in zip(outputs.values(), layers_and_suffixes(outputs), strict=True):
        layers.setdefault(layer, {})[suffix] = output
    found: dict[str, Output] = {}
    for layer, tensors in layers.items():
        found |= {layer + suffix: output for suffix, output in _stored_layer(tensors, form).items()}
    return found


def _stored_layer(tensors: Mapping[str, Output], form: Form) -> dict[str, Output]:
    stacks = stacking({name: output.spec for name, output in tensors.items()}, form.kinds)
    first = {stack.slots[0].name: name for name, stack in stacks.items()}
    inside = {slot.name: None for stack in stacks.values() for slot in stack.slots}
    found: dict[str, Output] = {}
    for name, output in tensors.items():
        if name in first:
            found[first[name]] = _stacked(stacks[first[name]], tensors)
        elif name not in inside:
            renamed = form.stored.get(name, name if form.made is None else form.made.in_stack(name))
            found[renamed if stacks else name] = output
    return found


def _stacked(stack: Stack, tensors: Mapping[str, Output]) -> Output:
    """One tensor of all slots; a stack that is copied as a whole is copied as one piece."""
    held = [tensors[slot.name] for slot in stack.slots]
    dtype = promote([output.spec.dtype for output in held])
    spec = TensorSpec(stack.shape, dtype)
    copied = _one_copy(stack, held, spec)
    if copied is not None:
        return Output(spec, (copied,))
    parts = []
    for slot, output in zip(stack.slots, held, strict=True):
        (part,) = output.parts
        expression = part.expression
        if expression.spec.dtype is not dtype:
            expression = simplify(cast(expression, dtype=dtype.name))
        parts.append(part._replace(expression=expression, place=slot.view))
    return Output(spec, tuple(parts))


def _one_copy(stack: Stack, held: Sequence[Output], spec: TensorSpec) -> Piece | None:
    """The copy of a whole stored stack, if all of it is copied to where it lay."""
    if any(output.kind != "copied" for output in held):
        return None
    sources = [output.parts[0].sources[0] for output in held]
    if any(s.name != sources[0].name for s in sources):
        return None
    if any(s.view != slot.view for s, slot in zip(sources, stack.slots, strict=True)):
        return None
    return Piece(load(0, spec), (SourceTensor(*sources[0].name),))
