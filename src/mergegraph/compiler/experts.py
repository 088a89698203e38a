"""Checkpoints as logical tensors, and logical outputs as the tensors that are written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mergegraph.architectures.expert_names import expert_names
from mergegraph.architectures.experts import (
    GATED,
    Form,
    Spelling,
    Stack,
    respelled,
    separate_spelling,
    stacked_block,
    stacking,
    stacks_of,
)
from mergegraph.checkpoint.index import TensorEntry
from mergegraph.checkpoint.names import layer_and_suffix
from mergegraph.checkpoint.view import View
from mergegraph.graph.graph import Output, Piece, SourceTensor
from mergegraph.graph.simplify import simplify
from mergegraph.ops import cast, load
from mergegraph.plan.values import ExpertLayout
from mergegraph.tensorspec import TensorSpec, promote

_SIGNS = ("experts.", "input_linear.")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of a model lies: in `tensor` of its checkpoint, or in the part `view` of that."""

    tensor: str
    spec: TensorSpec
    view: View | None = None


def spelling_for(checkpoints: Sequence[tuple[Iterable[str], Mapping[str, Any]]]) -> Spelling | None:
    """What experts are called in a plan over `checkpoints`, (tensor names, config) each.

    As in the first that has a tensor per expert; else as its family writes those, or as most families do.
    """
    # Towers and decoders may both have experts, but only ever of one family.
    held = [
        [layer_and_suffix(name)[1] for name in names if any(sign in name for sign in _SIGNS)]
        for names, _ in checkpoints
    ]
    blocks = [block for suffixes in held if (block := stacked_block(suffixes)) is not None]
    for suffixes, (_, config) in zip(held, checkpoints, strict=True):
        stacked = blocks[0] if blocks else _family_block(config)
        found = separate_spelling(suffixes, stacked)
        if found is not None:
            return found
    for _, config in checkpoints:
        known = expert_names(str(config.get("model_type")))
        if blocks and known is not None and known.gate is not None:
            return separate_spelling([known.gate.format(e=0)], blocks[0])
    return Spelling(blocks[0], GATED, blocks[0]) if blocks else None


def _family_block(config: Mapping[str, Any]) -> str | None:
    known = expert_names(str(config.get("model_type")))
    return None if known is None or known.stacked_gate_up is None else stacked_block([known.stacked_gate_up])


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
    if not any(sign in name for name in entries for sign in _SIGNS):
        return {name: Place(own, entry.spec) for name, (own, entry) in entries.items()}, form
    layers: dict[str, dict[str, tuple[str, TensorSpec]]] = {}
    for name, (own, entry) in entries.items():
        layer, suffix = layer_and_suffix(name)
        layers.setdefault(layer, {})[suffix] = (own, entry.spec)
    for layer, tensors in layers.items():
        places |= _layer(layer, tensors, spelling, config, form)
    return places, form


def _layer(
    layer: str,
    tensors: Mapping[str, tuple[str, TensorSpec]],
    spelling: Spelling | None,
    config: Mapping[str, Any],
    form: Form,
) -> dict[str, Place]:
    if not any(sign in suffix for suffix in tensors for sign in _SIGNS):
        return {layer + suffix: Place(own, spec) for suffix, (own, spec) in tensors.items()}
    specs = {suffix: spec for suffix, (_, spec) in tensors.items()}
    stacks = dict(stacks_of(specs, spelling or Spelling("", GATED, ""), _stated_experts(config)))
    separate = separate_spelling(tensors)
    form.stacks |= stacks
    form.separate = form.separate or separate is not None
    blocks = [
        b for b in (stacked_block(stacks), None if separate is None else separate.block) if b is not None
    ]
    places: dict[str, Place] = {}
    for suffix, (own, spec) in tensors.items():
        if suffix in stacks:
            for slot in stacks[suffix].slots:
                places[layer + slot.name] = Place(own, TensorSpec(slot.shape, spec.dtype), slot.view)
            continue
        name = respelled(suffix, spelling, blocks) if spelling else suffix
        if name != suffix:
            form.stored[name] = suffix
        places[layer + name] = Place(own, spec)
    return places


def _stated_experts(config: Mapping[str, Any]) -> int | None:
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
    only = {name: s for f in forms for name, s in f.stacks.items() if s.only}
    if not stack:
        return Form(stacks=only)
    if own is not None:
        return Form(stacks={**only, **own.stacks}, stored=dict(own.stored))
    return Form(stacks=only, made=spelling)


def stored_outputs(outputs: Mapping[str, Output], form: Form) -> dict[str, Output]:
    """Put logical outputs together as they are to be written."""
    if not form.stacks and not form.stored and form.made is None:
        return dict(outputs)
    layers: dict[str, dict[str, Output]] = {}
    for name, output in outputs.items():
        layer, suffix = layer_and_suffix(name)
        layers.setdefault(layer, {})[suffix] = output
    found: dict[str, Output] = {}
    for layer, tensors in layers.items():
        found |= {layer + suffix: output for suffix, output in _stored_layer(tensors, form).items()}
    return found


def _stored_layer(tensors: Mapping[str, Output], form: Form) -> dict[str, Output]:
    stacks = dict(form.stacks)
    stored = dict(form.stored)
    if form.made is not None:
        made, renamed = stacking({name: o.spec for name, o in tensors.items()}, form.made)
        stacks |= made
        stored |= renamed
    complete = {
        name: stack for name, stack in stacks.items() if all(slot.name in tensors for slot in stack.slots)
    }
    first = {stack.slots[0].name: name for name, stack in complete.items()}
    inside = {slot.name: None for stack in complete.values() for slot in stack.slots}
    found: dict[str, Output] = {}
    for name, output in tensors.items():
        if name in first:
            found[first[name]] = _stacked(complete[first[name]], tensors)
        elif name not in inside:
            found[stored.get(name, name) if complete else name] = output
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
        parts.append(replace(part, expression=expression, place=slot.view))
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
