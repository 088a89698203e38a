"""From a mixture of experts back to a dense model: its body, with experts as one MLP in each layer.

Experts side by side in one MLP add up, so a weighted set of them is an MLP of as many neurons with
scaled down projections: exact for what does not depend on the token, an approximation of routing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from mergegraph.architectures.dense import Body, Dense, Matrix
from mergegraph.architectures.dense_families import dense_family
from mergegraph.architectures.inverse import stated, ways_back
from mergegraph.architectures.moe import Back, Fill, MoeFamily, Obstacle, OutTensor, Part, Recipe
from mergegraph.architectures.moe_config import LEFT
from mergegraph.architectures.moe_layer import MoeLayer, moe_layer
from mergegraph.architectures.moe_tensors import BASE, full_cover, neurons_of, zeros_after
from mergegraph.architectures.roles import is_before_layers, is_head
from mergegraph.architectures.slots import ROLES
from mergegraph.architectures.windows import listed_windows
from mergegraph.checkpoint.view import View

_ROUTING = (
    "decoder_sparse_step",
    "expert_selection_fn",
    "mlp_layer_types",
    "mlp_only_layers",
    "moe_layer_end_index",
    "moe_layer_interval",
    "moe_norm_min",
    "n_group",
    "norm_topk_prob",
    "num_nextn_predict_layers",
    "output_router_logits",
    "qkv_bias",
    "routed_scaling_factor",
    "router_aux_loss_coef",
    "router_jitter_noise",
    "shared_expert_combination_strategy",
    "topk_group",
    "topk_method",
    "use_expert_bias",
    "use_qk_norm",
)
"""Config keys that mean nothing to a dense model."""


class Chosen(NamedTuple):
    """An expert, and the factor on its output."""

    expert: int
    weight: float = 1.0


def dense_recipe(
    family: MoeFamily, moe: Dense, chosen: Sequence[Chosen], shared: float = 0.0
) -> Recipe | tuple[Obstacle, ...]:
    """Return how to make a dense model of a mixture, or every reason why it cannot be made.

    Parts are read from source ``base``, which is the mixture.

    Args:
        family: the mixture's family.
        moe: the mixture: its config and the specs of its tensors, in any layout.
        chosen: the experts that make up each layer's MLP.
        shared: the factor on the output of the shared expert; zero leaves it out.
    """
    back = _back(family, moe.config)
    if isinstance(back, Obstacle):
        return (back,)
    dense = dense_family(back.model_type)
    if dense is None:  # every family that is named as a way back is known
        raise ValueError(f"no dense family is called {back.model_type}")
    maker = _Maker(family, Body(moe, dense), tuple(chosen), shared)
    found = tuple(maker.obstacles())
    if found:
        return found
    config = _config(family, back, moe.config, maker)
    return Recipe(config, tuple(maker.tensors()))


def _back(family: MoeFamily, config: Mapping[str, Any]) -> Back | Obstacle:
    fitting = ways_back(family, config)
    if fitting:
        return fitting[0]
    if not family.back:
        message = f"no dense family has the body of a {family.name} model"
        return Obstacle(message, "model")
    wanted = dict.fromkeys(key for back in family.back for key in back.when)
    has = ", ".join(f"{key}: {stated(family, family.back[0], config, key)}" for key in wanted)
    return Obstacle(f"no dense family has the body of a {family.name} model with {has}", "model")


def _config(family: MoeFamily, back: Back, moe: Mapping[str, Any], maker: _Maker) -> dict[str, Any]:
    shared = family.shared
    gone = [*LEFT, *_ROUTING, *family.expert_keys, family.active_key, *family.size_keys]
    gone += [key for key in (shared.size_key, shared.count_key) if key] if shared is not None else []
    if family.dense_layers is not None:
        gone.append(family.dense_layers.key)
    kept = deepcopy({**family.defaults, **{k: v for k, v in moe.items() if k not in gone}})
    if "rope_theta" in kept and "rope_theta" in (moe.get("rope_parameters") or {}):
        kept["rope_theta"] = moe["rope_parameters"]["rope_theta"]
    kept.pop("partial_rotary_factor", None)
    config = {"architectures": [back.architecture], "model_type": back.model_type, **kept}
    if family.dense_layers is not None and back.model_type in family.model_types:
        config[family.dense_layers.key] = maker.body.layers
        config |= {key: moe[key] for key in (*family.expert_keys, *family.size_keys) if key in moe}
    return {**config, back.size_key: maker.size, **deepcopy(dict(back.fixed))}


@dataclass(frozen=True)
class _Maker:
    family: MoeFamily
    body: Body
    chosen: tuple[Chosen, ...]
    shared: float

    @cached_property
    def mixtures(self) -> tuple[MoeLayer | None, ...]:
        """For each layer its experts; None where it has a plain MLP."""
        found = []
        for layer in range(self.body.layers):
            names = self.body.by_layer.get(layer, ())
            specs = {name: self.body.dense.tensors[self.body.full(layer, name)] for name in names}
            found.append(moe_layer(self.family, specs))
        return tuple(found)

    def obstacles(self) -> Iterator[Obstacle]:
        """Yield what stands in the way."""
        if not self.chosen and not self.shared:
            yield Obstacle("no expert is chosen", "experts")
        if not any(self.mixtures):
            yield Obstacle(f"no layer has experts under the names of {self.family.name}", "model")
        for layer, mixture in enumerate(self.mixtures):
            if mixture is not None:
                yield from self._lacking(layer, mixture)
            elif self.body.mlp(layer) is None:
                yield Obstacle(f"layer {layer} has neither experts nor an MLP", "model")
        lists = self.family.extra is listed_windows
        if (
            lists
            and self.body.window is not None
            and not isinstance(self.body.config.get("layer_types"), list)
        ):
            message = "the config has a sliding window, and does not list the layers that it is in"
            yield Obstacle(message, "model", "add layer_types to its config.json")

    def _lacking(self, layer: int, mixture: MoeLayer) -> Iterator[Obstacle]:
        for choice in self.chosen:
            if not 0 <= choice.expert < mixture.sizes.experts:
                last = mixture.sizes.experts - 1
                message = f"layer {layer} has experts 0 to {last}, and no expert {choice.expert}"
                yield Obstacle(message, "experts")
            elif any(mixture.matrix(choice.expert, role) is None for role in ROLES):
                yield Obstacle(f"layer {layer} lacks a matrix of expert {choice.expert}", "model")
        if self.shared and mixture.shared is None:
            yield Obstacle(f"layer {layer} has no shared expert", "shared_experts")

    @cached_property
    def size(self) -> int:
        """The size of the dense model's MLPs: that of the largest."""
        return max(sum(m[2].columns for m, _ in self._mlps(layer)) for layer in range(self.body.layers))

    def _mlps(self, layer: int) -> Iterator[tuple[tuple[Matrix, ...], float]]:
        """Yield the MLPs that add up to the layer's, each with the factor on its output."""
        mixture = self.mixtures[layer]
        if mixture is None:
            plain = self.body.mlp(layer)
            yield from [(plain, 1.0)] if plain is not None else []
            return
        for choice in self.chosen:
            matrices = (mixture.matrix(choice.expert, role) for role in ROLES)
            yield self._whole(layer, [m for m in matrices if m is not None]), choice.weight
        if self.shared and mixture.shared is not None:
            yield self._whole(layer, mixture.shared), self.shared

    def _whole(self, layer: int, matrices: Sequence[Matrix]) -> tuple[Matrix, ...]:
        return tuple(m._replace(tensor=self.body.full(layer, m.tensor)) for m in matrices)

    def tensors(self) -> Iterator[OutTensor]:
        """Yield every tensor of the dense model in natural order."""
        outside = [n for n in self.body.outside() if not (self.body.tied and is_head(n))]
        yield from (self._copied(name) for name in outside if is_before_layers(name))
        for layer, mixture in enumerate(self.mixtures):
            gone = self.body.mlp_names if mixture is None else tuple(mixture.only_in_mixtures())
            kept = [name for name in self.body.by_layer.get(layer, ()) if name not in gone]
            yield from (self._copied(self.body.full(layer, name)) for name in kept)
            for role, name in enumerate(self.body.family.mlp):
                yield self._joined(self.body.full(layer, name), layer, role)
        yield from (self._copied(name) for name in outside if not is_before_layers(name))

    def _copied(self, name: str) -> OutTensor:
        return OutTensor(name, self.body.dense.tensors[name].shape, (Part(BASE, name),))

    def _joined(self, name: str, layer: int, role: int) -> OutTensor:
        """The neurons of several MLPs one after another."""
        hidden, size, at, down = self.body.hidden, self.size, 0, role == 2
        shape = (hidden, size) if down else (size, hidden)
        place = View(0, *shape, shape[1])
        parts: list[Part | Fill] = []
        for matrices, weight in self._mlps(layer):
            matrix = matrices[role]
            end = at + (matrix.columns if down else matrix.rows)
            scale = weight if down else 1.0
            parts.append(Part(BASE, matrix.tensor, matrix.view, neurons_of(place, at, end, down), scale))
            at = end
        parts += zeros_after(place, at, down)
        return OutTensor(name, shape, full_cover(shape, parts))
