"""Random streams: a pair of numbers for each (seed, output tensor, model), and nothing else.

Adding, dropping or reordering tensors and models changes no other stream.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

DEFAULT_SEED = 0


def stream_labels(models: Iterable[str]) -> dict[str, str]:
    """A label per model for its streams: the last part of its name, so that moving models changes nothing.

    Models whose last parts are equal are numbered in the given order.
    """
    labels: dict[str, str] = {}
    seen: dict[str, int] = {}
    for model in models:
        last = model.rstrip("/").rsplit("/", 1)[-1]
        seen[last] = seen.get(last, 0) + 1
        labels[model] = last if seen[last] == 1 else f"{last}#{seen[last]}"
    return labels


def stream_of(seed: int | None, tensor: str, model: str) -> tuple[float, float]:
    """The stream of `model` in output `tensor`: 48 bits as two numbers that are exact in any float dtype."""
    text = f"{DEFAULT_SEED if seed is None else seed}\0{tensor}\0{model}"
    key = int.from_bytes(blake2b(text.encode(), digest_size=6).digest(), "big")
    return float(key >> 24), float(key & 0xFFFFFF)
