"""One dense model as a build sees it: what its config means and where its tensors are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from mergegraph.architectures import family_of
from mergegraph.architectures.dense_families import DenseFamily, dense_family
from mergegraph.architectures.roles import is_derived, is_token_embedding
from mergegraph.checkpoint.view import View
from mergegraph.tensorspec import TensorSpec

_ATTENTION = re.compile(r"self_attn\.([a-z_]+)_proj\.(weight|bias)")


@dataclass(frozen=True, slots=True)
class Dense:
    """One dense model: its ``config.json`` and the specs of its tensors, which may be a merge's results."""

    config: Mapping[str, Any]
    tensors: Mapping[str, TensorSpec]


class Matrix(NamedTuple):
    """A matrix that is a tensor, or some of its rows."""

    tensor: str
    rows: int
    columns: int
    view: View | None


@dataclass(frozen=True)
class Body:
    """A dense model of a known family; everything its config leaves out is what its class assumes."""

    dense: Dense
    family: DenseFamily

    @cached_property
    def wrapper(self) -> str | None:
        """The model type of the multimodal model around it, if there is one."""
        name = str(self.dense.config.get("model_type"))
        return name if isinstance(self.dense.config.get("text_config"), Mapping) else None

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The config of the language model."""
        if self.wrapper is None:
            return self.dense.config
        text: dict[str, Any] = dict(self.dense.config["text_config"])
        text.setdefault("tie_word_embeddings", self.dense.config.get("tie_word_embeddings", False))
        return text

    @property
    def model_type(self) -> str:
        """What the config calls it."""
        return str(self.dense.config.get("model_type"))

    def value(self, key: str, otherwise: Any = None) -> Any:
        """What the config says of `key`, or what its class assumes."""
        return self.config.get(key, self.family.defaults.get(key, otherwise))

    def number(self, key: str) -> int:
        """A size from the config; zero if it does not say."""
        value = self.value(key)
        return value if type(value) is int else 0

    @property
    def layers(self) -> int:
        """How many decoder layers there are."""
        return self.number("num_hidden_layers")

    @property
    def hidden(self) -> int:
        """The width of the residual stream."""
        return self.number("hidden_size")

    @property
    def heads(self) -> int:
        """How many query heads there are."""
        return self.number("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        """How many key and value heads there are."""
        return self.number("num_key_value_heads") or self.heads

    @property
    def head_dim(self) -> int:
        """The size of a head."""
        return self.number("head_dim") or self.hidden // max(1, self.heads)

    @property
    def rotary(self) -> int:
        """How many rows of each head are rotated."""
        return int(self.head_dim * self.partial)

    @cached_property
    def rope(self) -> dict[str, Any]:
        """The rotary embedding in the general form: ``rope_type``, ``rope_theta`` and the rest."""
        given = self.config.get("rope_scaling") or self.config.get("rope_parameters")
        if not isinstance(given, Mapping):
            given = {}
        if isinstance(given.get("full_attention"), Mapping):
            given = given["full_attention"]
        rope = {k: v for k, v in given.items() if k != "type"}
        rope.setdefault("rope_type", given.get("type", "default"))
        if self.family.theta is not None:
            rope.setdefault("rope_theta", self.config.get("rope_theta", self.family.theta))
        original = self.config.get("original_max_position_embeddings")
        if original is not None and rope["rope_type"] != "default":
            rope["original_max_position_embeddings"] = original
        return rope

    @property
    def partial(self) -> float:
        """The part of each head that is rotated."""
        own = self.config.get("partial_rotary_factor", self.family.rotated)
        part = self.rope.get("partial_rotary_factor", own)
        return float(part) if isinstance(part, int | float) else self.family.rotated

    @cached_property
    def windows(self) -> tuple[bool, ...]:
        """For each layer, whether its attention slides."""
        count, kind = self.layers, self.family.windows
        if kind == "none" or self.window is None:
            return (False,) * count
        types = self.config.get("layer_types")
        if isinstance(types, list) and len(types) == count:
            return tuple(t == "sliding_attention" for t in types)
        if kind == "after":
            return tuple(i >= self.number("max_window_layers") for i in range(count))
        if kind == "but every fourth":
            rule = family_of(self.config.get("model_type")).layer_types
            types = rule(count, self.config) if rule is not None else []
            return tuple(t == "sliding_attention" for t in types) or tuple(
                (i + 1) % 4 > 0 for i in range(count)
            )
        return (True,) * count

    @property
    def window(self) -> int | None:
        """The width of the sliding window, if attention slides anywhere."""
        window = self.value("sliding_window")
        return window if type(window) is int and self.value("use_sliding_window", True) else None

    @cached_property
    def rope_layers(self) -> tuple[int, ...] | None:
        """For each layer 1 if it has a rotary embedding and 0 if not; None for families where all have."""
        rule = family_of(self.config.get("model_type")).per_layer.get("no_rope_layers")
        if rule is None:
            return None
        listed = self.config.get("no_rope_layers")
        return tuple(listed if isinstance(listed, list) and listed else rule(self.layers, self.config))

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding."""
        return bool(self.value("tie_word_embeddings", False))

    @cached_property
    def embedding(self) -> str | None:
        """The name of the token embedding."""
        return next((n for n in self.dense.tensors if is_token_embedding(n)), None)

    @cached_property
    def layer_prefix(self) -> str:
        """What stands before a layer's number: ``model.layers.``."""
        stem = (self.embedding or "model.").rpartition("embed_tokens.weight")[0] or "model."
        return stem + "layers."

    @cached_property
    def by_layer(self) -> Mapping[int, tuple[str, ...]]:
        """For each layer number the names of its tensors, relative to the layer, in stored order."""
        start = self.layer_prefix
        found: dict[int, list[str]] = {}
        for name, spec in self.dense.tensors.items():
            number, dot, rest = name.removeprefix(start).partition(".")
            if (
                name.startswith(start)
                and dot
                and number.isdecimal()
                and not is_derived(name, len(spec.shape))
            ):
                found.setdefault(int(number), []).append(rest)
        return {layer: tuple(names) for layer, names in sorted(found.items())}

    def full(self, layer: int, name: str) -> str:
        """The whole name of a tensor of a layer."""
        return f"{self.layer_prefix}{layer}.{name}"

    def outside(self) -> Iterator[str]:
        """Yield the tensors that are in no layer, but for what loaders compute themselves."""
        for name, spec in self.dense.tensors.items():
            if not is_derived(name, len(spec.shape)) and not name.startswith(self.layer_prefix):
                yield name

    @cached_property
    def mlp_names(self) -> tuple[str, ...]:
        """What the tensors of a layer's MLP are called."""
        gate, up, down = self.family.mlp
        return (self.family.fused_mlp, down) if self.family.fused_mlp is not None else (gate, up, down)

    def mlp(self, layer: int) -> tuple[Matrix, Matrix, Matrix] | None:
        """The gate, up and down matrices of a layer's MLP; None if one is missing or has another shape."""
        specs = [self.dense.tensors.get(self.full(layer, name)) for name in self.mlp_names]
        shapes = [s.shape for s in specs if s is not None and len(s.shape) == 2]
        if len(shapes) != len(self.mlp_names):
            return None
        size, hidden = shapes[-1][1], self.hidden
        names = [self.full(layer, name) for name in self.mlp_names]
        if self.family.fused_mlp is not None:
            if shapes != [(2 * size, hidden), (hidden, size)]:
                return None
            halves = (View(i * size * hidden, size, hidden, hidden) for i in (0, 1))
            gate, up = (Matrix(names[0], size, hidden, view) for view in halves)
        else:
            if shapes != [(size, hidden), (size, hidden), (hidden, size)]:
                return None
            gate, up = (Matrix(name, size, hidden, None) for name in names[:2])
        return gate, up, Matrix(names[-1], hidden, size, None)

    @cached_property
    def biased(self) -> tuple[str, ...]:
        """The attention projections (``q``, ``k``, ``v``, ``o``) that have a bias in some layer."""
        found = {
            match[1]: None
            for names in self.by_layer.values()
            for name in names
            if (match := _ATTENTION.fullmatch(name)) is not None and match[2] == "bias"
        }
        return tuple(found)

    @cached_property
    def traits(self) -> tuple[str, ...]:
        """What it has beyond the plainest decoder, by the names of `traits.TRAITS`."""
        biased_mlp = {name.removesuffix("weight") + "bias" for name in self.mlp_names}
        mixed = any(self.windows) and not all(self.windows)
        found = {
            "bias": any(p != "o" for p in self.biased),
            "output_bias": "o" in self.biased,
            "mlp_bias": any(name in biased_mlp for names in self.by_layer.values() for name in names),
            "head_dim": self.head_dim * self.heads != self.hidden,
            "rope_scaling": self.rope["rope_type"] != "default",
            "partial_rotary": self.partial != 1.0,
            "no_rope_layers": self.rope_layers is not None and not all(self.rope_layers),
            "window": any(self.windows) and not mixed,
            "mixed_window": mixed,
        }
        return (*self.family.has, *(name for name, has in found.items() if has))


def body_of(dense: Dense) -> Body | None:
    """The model as one of the known dense families; None if its family is not known."""
    family = dense_family(dense.config.get("model_type"))
    return Body(dense, family) if family is not None else None
