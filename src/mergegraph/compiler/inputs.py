"""The input checkpoints as the compiler sees them: tensors by layer, names brought in line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mergegraph.architectures.roles import is_head, is_token_embedding
from mergegraph.checkpoint.index import CheckpointIndex, TensorEntry
from mergegraph.checkpoint.names import LayerStack, layer_stacks, split_layer
from mergegraph.plan.values import ModelRef

LAYER_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "num_layers",
    "n_layers",
    "num_decoder_layers",
    "decoder_layers",
)
_NESTED = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True)
class Input:
    """One model of a plan.

    Attributes:
        ref: as the plan names it.
        key: distinguishes it from every other checkpoint, equal headers or not.
        index: what is in it.
        prefix: leading part of its tensor names that the donor's names lack or have instead:
            (own, donor's), one of them empty.
    """

    ref: ModelRef
    key: str
    index: CheckpointIndex
    prefix: tuple[str, str] = ("", "")

    @property
    def name(self) -> str:
        """The reference as text, for messages."""
        return str(self.ref)

    @cached_property
    def tensors(self) -> Mapping[str, tuple[str, TensorEntry]]:
        """(own name, entry) by the name in the donor's spelling, in natural order."""
        own, donor = self.prefix
        if own == donor:
            return {name: (name, entry) for name, entry in self.index.tensors.items()}
        return {self._renamed(name): (name, entry) for name, entry in self.index.tensors.items()}

    def _renamed(self, name: str) -> str:
        own, donor = self.prefix
        if own:
            return name.removeprefix(own)
        return name if is_head(name) else donor + name

    @cached_property
    def stacks(self) -> tuple[LayerStack, ...]:
        """Layer stacks, in the donor's spelling."""
        return layer_stacks(self.tensors)

    @cached_property
    def stack(self) -> LayerStack | None:
        """The stack of decoder layers: the one whose length the config states, else the longest."""
        counts = [count for _, count in layer_counts(self.index.config)]
        stated = [s for s in self.stacks if s.count in counts]
        return max(stated or self.stacks, key=lambda s: s.count, default=None)

    @property
    def layers(self) -> int:
        """Number of decoder layers, by the tensors."""
        return self.stack.count if self.stack else 0

    @cached_property
    def by_layer(self) -> tuple[dict[str, None], ...]:
        """Tensor suffixes of each decoder layer."""
        layers: tuple[dict[str, None], ...] = tuple({} for _ in range(self.layers))
        if self.stack is not None:
            for name in self.tensors:
                found = split_layer(name, self.stack.prefix)
                if found is not None:
                    layers[found[0]][found[1]] = None
        return layers

    @cached_property
    def outside(self) -> dict[str, None]:
        """Names of the tensors that are in no decoder layer."""
        stack = self.stack
        return {n: None for n in self.tensors if stack is None or split_layer(n, stack.prefix) is None}

    @cached_property
    def embedding(self) -> str | None:
        """The token embedding that a missing head is tied to; None if the config rules tying out."""
        if self.index.config.get("tie_word_embeddings") is False:
            return None
        return next((n for n in self.outside if is_token_embedding(n)), None)

    def find(self, name: str) -> tuple[str, TensorEntry] | None:
        """(own name, entry) of the tensor called `name`; a tied head is found in the embedding."""
        found = self.tensors.get(name)
        if found is None and is_head(name) and self.embedding is not None:
            return self.tensors[self.embedding]
        return found


def layer_counts(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield (path, value) of every config key that states a number of layers."""
    for key in LAYER_KEYS:
        if isinstance(config.get(key), int):
            yield (key,), config[key]
    for part in _NESTED:
        inner = config.get(part)
        if isinstance(inner, dict):
            for path, value in layer_counts(inner):
                yield (part, *path), value


def align_prefix(names: Mapping[str, object], donor: Mapping[str, object]) -> tuple[str, str]:
    """Find the leading component that turns `names` into `donor`'s spelling.

    Some models are saved with or without their body's prefix (``transformer.h.0`` and ``h.0``).
    Returns (prefix to remove, prefix to add); both empty unless it makes most names agree.
    """

    def common(candidates: Iterator[str]) -> int:
        return sum(name in donor for name in candidates)

    best, score = ("", ""), max(common(iter(names)), len(names) // 2)
    for first in dict.fromkeys(name.split(".")[0] for name in names):
        found = common(n.removeprefix(f"{first}.") for n in names if n.startswith(f"{first}."))
        if found > score:
            best, score = (f"{first}.", ""), found
    for first in dict.fromkeys(name.split(".")[0] for name in donor):
        found = common(f"{first}.{n}" for n in names)
        if found > score:
            best, score = ("", f"{first}."), found
    return best
