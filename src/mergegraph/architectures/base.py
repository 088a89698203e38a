"""What a family can say about its models beyond their tensor names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

LayerTypes = Callable[[int, dict[str, object]], list[str]]


@dataclass(frozen=True, slots=True)
class Family:
    """A family of architectures, as data.

    Attributes:
        model_types: the config's ``model_type`` values it covers.
        layer_types: (layer count, config) → the attention type of each layer, for families that
            derive it from the layer's position when the config does not list it. Slicing layers
            then has to write the list, or the layers would change their type.
    """

    model_types: tuple[str, ...]
    layer_types: LayerTypes | None = None


def every_nth_full(default: int, key: str) -> LayerTypes:
    """Sliding attention, but full attention in every n-th layer; n is config `key` or `default`."""

    def layer_types(count: int, config: dict[str, object]) -> list[str]:
        value = config.get(key)
        n = value if isinstance(value, int) and value > 0 else default
        return ["sliding_attention" if (i + 1) % n else "full_attention" for i in range(count)]

    return layer_types
