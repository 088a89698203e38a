"""What a family can say about its models beyond their tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

LayerRule = Callable[[int, Mapping[str, Any]], list[Any]]
"""(layer count, config) → what a config key means for each layer when the config does not say it."""


@dataclass(frozen=True, slots=True)
class Family:
    """A family of architectures, as data.

    Attributes:
        model_types: the config's ``model_type`` values it covers.
        per_layer: rules by config key, for families that derive it from the layer's position when the
            config does not list it. Slicing layers then has to write the list, or the layers would
            change their kind. For a key that lists layer numbers the rule says of each layer whether
            its number is listed.
    """

    model_types: tuple[str, ...]
    per_layer: Mapping[str, LayerRule] = field(default_factory=dict)

    @property
    def layer_types(self) -> LayerRule | None:
        """The rule for the attention type of each layer, if the family has one."""
        return self.per_layer.get("layer_types")


def every_nth(default: int, key: str, nth: object, others: object) -> LayerRule:
    """`nth` for every n-th layer and `others` for the rest; n is config `key` or `default`."""

    def rule(count: int, config: Mapping[str, Any]) -> list[Any]:
        value = config.get(key)
        n = value if type(value) is int and value > 0 else default
        return [others if (i + 1) % n else nth for i in range(count)]

    return rule


def every_nth_full(default: int, key: str) -> LayerRule:
    """Sliding attention, but full attention in every n-th layer; n is config `key` or `default`."""
    return every_nth(default, key, "full_attention", "sliding_attention")
