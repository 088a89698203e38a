"""The input checkpoints as the compiler sees them: tensors by layer, names brought in line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mergegraph.architectures import moe_family
from mergegraph.architectures.experts import Form, Spelling
from mergegraph.architectures.roles import is_before_layers, is_head, is_output_side, is_token_embedding
from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.checkpoint.names import LayerStack, layer_and_suffix, layer_stacks, layers_and_suffixes
from mergegraph.compiler.experts import Place, logical, stated_experts
from mergegraph.compiler.selection import selected
from mergegraph.plan.values import ModelRef

LAYER_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "n_layers",
    "num_decoder_layers",
    "decoder_layers",
)
NESTED = ("text_config", "llm_config", "language_config")
"""Where models that wrap a language model keep its config."""


class Logical:
    """The logical tensors of a checkpoint, and how their names split into layers."""

    def __init__(self, tensors: Mapping[str, Place], form: Form) -> None:
        self.tensors = tensors
        self.form = form
        self._splits: dict[LayerStack | None, tuple[tuple[dict[str, None], ...], dict[str, None]]] = {}

    @cached_property
    def stacks(self) -> tuple[LayerStack, ...]:
        """Layer stacks, in order of appearance."""
        return layer_stacks(self.tensors)

    def split(self, stack: LayerStack | None) -> tuple[tuple[dict[str, None], ...], dict[str, None]]:
        """The suffixes of each layer of `stack`, and the names of the tensors in no layer of it."""
        found = self._splits.get(stack)
        if found is not None:
            return found
        layers: tuple[dict[str, None], ...] = tuple({} for _ in range(stack.count if stack else 0))
        outside: dict[str, None] = {}
        last, here = "", None
        for name, (layer, suffix) in zip(self.tensors, layers_and_suffixes(self.tensors), strict=True):
            if layer is not last:
                prefix, _, number = layer[:-1].rpartition(".")
                decodes = stack is not None and bool(layer) and prefix == stack.prefix
                last, here = layer, layers[int(number)] if decodes else None
            if here is None:
                outside[name] = None
            else:
                here[suffix] = None
        self._splits[stack] = layers, outside
        return layers, outside


@dataclass(frozen=True)
class Input:
    """One model of a plan.

    Attributes:
        ref: as the plan names it.
        key: distinguishes it from every other checkpoint, equal headers or not.
        index: what is in it.
        prefix: leading part of its tensor names that the donor's names lack or have instead:
            (own, donor's), one of them empty.
        tokenizer: digest of its tokenizer's files; None if there are none, or the plan has no use for it.
        chat_template: digest of its chat template; None as for `tokenizer`.
        spelling: what experts are called in this plan; None if no model has experts that may be stacked.
        picks: by layer, the number that each expert has in the checkpoint, if they are put in another order.
        known: what was made of the tensors of a plan's checkpoints so far: fine-tunes of one model share it.
    """

    ref: ModelRef
    key: str
    index: CheckpointIndex
    prefix: tuple[str, str] = ("", "")
    tokenizer: str | None = None
    chat_template: str | None = None
    spelling: Spelling | None = None
    picks: Mapping[str, tuple[int, ...]] | None = None
    known: dict[object, tuple[object, Logical]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The reference as text, for messages."""
        return str(self.ref)

    @cached_property
    def _logical(self) -> Logical:
        if self.picks is not None:
            return self._made()
        # Identities are of use while their objects live, so those are kept beside what was made of them.
        origin = (self.index.tensors, self.spelling)
        key = (*map(id, origin), self.prefix, stated_experts(self.index.config))
        if key not in self.known:
            self.known[key] = (origin, self._made())
        return self.known[key][1]

    def _made(self) -> Logical:
        entries = self.index.tensors
        spelled = (
            _respelled(entries, self.prefix) if self.prefix[0] != self.prefix[1] else dict.fromkeys(entries)
        )
        named = {new or own: (own, entries[own]) for own, new in spelled.items()}
        places, form = logical(named, self.spelling, self.index.config)
        family = moe_family(self.index.config.get("model_type"))
        if self.picks is not None and family is not None:
            places = selected(places, self.picks, family.names)
        return Logical(places, form)

    @cached_property
    def tensors(self) -> Mapping[str, Place]:
        """Where each logical tensor lies, by its name in the donor's spelling, in natural order."""
        return self._logical.tensors

    @cached_property
    def form(self) -> Form:
        """How experts are stored."""
        return self._logical.form

    @property
    def stacks(self) -> tuple[LayerStack, ...]:
        """Layer stacks, in the donor's spelling."""
        return self._logical.stacks

    @cached_property
    def stack(self) -> LayerStack | None:
        """The stack of decoder layers.

        Of those whose length the config states (else of all), the one nearest to a token embedding: a
        vision or audio tower may be as deep. Of several such, the longest.
        """
        counts = [count for _, count in layer_counts(self.index.config)]
        stated = [s for s in self.stacks if s.count in counts] or self.stacks
        if len(stated) < 2:
            return next(iter(stated), None)
        embeddings = [name.split(".") for name in self.tensors if is_token_embedding(name)]

        def nearness(stack: LayerStack) -> int:
            return max((_common(stack.prefix.split("."), name) for name in embeddings), default=0)

        return max(stated, key=lambda s: (nearness(s), s.count))

    @property
    def layers(self) -> int:
        """Number of decoder layers, by the tensors."""
        return self.stack.count if self.stack else 0

    @property
    def encodes_and_decodes(self) -> bool:
        """Whether an encoder of its own stands before the decoder, as in T5 and BART."""
        prefixes = [stack.prefix.split(".") for stack in self.stacks]
        swapped = [["encoder" if step == "decoder" else step for step in path] for path in prefixes]
        siblings = any(
            other in prefixes for path, other in zip(prefixes, swapped, strict=True) if path != other
        )
        return siblings or (self.index.config.get("is_encoder_decoder") is True and len(prefixes) > 1)

    @cached_property
    def _split(self) -> tuple[tuple[dict[str, None], ...], dict[str, None]]:
        return self._logical.split(self.stack)

    @property
    def by_layer(self) -> tuple[dict[str, None], ...]:
        """Tensor suffixes of each decoder layer."""
        return self._split[0]

    @property
    def outside(self) -> dict[str, None]:
        """Names of the tensors that are in no decoder layer."""
        return self._split[1]

    @cached_property
    def at_input(self) -> dict[str, None]:
        """Names of the tensors before the decoder layers: embeddings, and whole towers beside the decoder."""
        return {n: None for n in self.outside if is_before_layers(n) or self._is_aside(n)}

    def _is_aside(self, name: str) -> bool:
        """Whether a tensor is part of another tower, or of what connects it to the decoder.

        ::

            vision_tower.layers.0 …   projector …   language_model.layers.0 …
            └── root of the tower                   └── root of the decoder
        """
        if is_output_side(name):
            return False
        return any(
            name.startswith(tower) or (decoder is not None and not name.startswith(decoder))
            for tower, decoder in self._roots
        )

    @cached_property
    def _roots(self) -> tuple[tuple[str, str | None], ...]:
        """(root, root of the decoder) for every other stack; None where the two are next to each other."""
        if self.stack is None:
            return ()
        own = self.stack.prefix.split(".")
        roots: list[tuple[str, str | None]] = []
        for stack in self.stacks:
            path = stack.prefix.split(".")
            shared = _common(path, own)
            if stack is not self.stack and shared < len(path):
                decoder = f"{'.'.join(own[: shared + 1])}." if shared + 1 < len(own) else None
                roots.append((f"{'.'.join(path[: shared + 1])}.", decoder))
        return tuple(roots)

    @cached_property
    def embedding(self) -> str | None:
        """The token embedding that a missing head is tied to; None if the config rules tying out."""
        parts = (self.index.config, *(self.index.config.get(part) for part in NESTED))
        stated = (
            p["tie_word_embeddings"] for p in parts if isinstance(p, Mapping) and "tie_word_embeddings" in p
        )
        if next(stated, None) is False:
            return None
        return next((n for n in self.outside if is_token_embedding(n)), None)

    def filtered(self, name: str) -> str:
        """What parameter filters see of the tensor `name`: where experts are concerned, both spellings."""
        return "\n".join((name, *self.other_names(name)))

    def other_names(self, name: str) -> dict[str, None]:
        """What else a tensor is called: where experts are stacked, or where this model stores it."""
        layer, suffix = layer_and_suffix(name)
        others = [self.form.inside.get(suffix), self.form.stored.get(suffix)]
        others.append(None if self.spelling is None else self.spelling.in_stack(suffix))
        return {layer + other: None for other in others if other not in (None, suffix)}

    def find(self, name: str) -> Place | None:
        """Where the tensor called `name` lies; a tied head is found in the embedding."""
        found = self.tensors.get(name)
        if found is None and self.embedding is not None and is_head(name):
            return self.tensors[self.embedding]
        return found


def layer_counts(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield (path, value) of every config key that states a number of layers."""
    for key in LAYER_KEYS:
        if type(config.get(key)) is int:
            yield (key,), config[key]
    for part in NESTED:
        inner = config.get(part)
        if isinstance(inner, dict):
            for path, value in layer_counts(inner):
                yield (part, *path), value


def align_prefix(names: Mapping[str, object], donor: Mapping[str, object]) -> tuple[str, str]:
    """Find the leading component that turns `names` into `donor`'s spelling.

    Some models are saved with or without their body's prefix (``transformer.h.0`` and ``h.0``).
    Returns (prefix to remove, prefix to add); both empty unless it makes most names agree, and keeps
    them distinct.
    """
    half = len(names) // 2
    if sum(name in donor for name in names) > half:
        return "", ""
    best, score = ("", ""), half
    candidates = [(f"{first}.", "") for first in _frequent(names, half)]
    candidates += [("", f"{first}.") for first in _frequent(donor, half)]
    for prefix in candidates:
        respelled = dict.fromkeys(_respelled(names, prefix).values())
        found = sum(name in donor for name in respelled)
        if found > score and len(respelled) == len(names):
            best, score = prefix, found
    return best


def _frequent(names: Iterable[str], least: int) -> list[str]:
    """First components of more than `least` names: no other can bring most of them into line."""
    return [first for first, count in Counter(n.split(".", 1)[0] for n in names).items() if count > least]


def _respelled(names: Iterable[str], prefix: tuple[str, str]) -> dict[str, str]:
    """The donor's spelling of each name."""
    own, donor = prefix
    if own:
        return {name: name.removeprefix(own) for name in names}
    # A body saved alone has its heads beside the prefix; of a whole model, even the head is below it.
    whole = len({name.split(".", 1)[0] for name in names if not is_output_side(name)}) == 1
    return {name: name if is_output_side(name) and not whole else donor + name for name in names}


def _common(a: list[str], b: list[str]) -> int:
    """How many leading components two names share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
