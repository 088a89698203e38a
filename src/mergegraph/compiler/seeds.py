"""Random streams: a pair of numbers for each (seed, output tensor, model), and nothing else.

Adding, dropping or reordering tensors and models changes no other stream.
"""

from __future__ import annotations

from hashlib import blake2b

DEFAULT_SEED = 0


def stream_of(seed: int | None, tensor: str, model: str) -> tuple[float, float]:
    """The stream of `model` in output `tensor`: 48 bits as two numbers that are exact in any float dtype."""
    text = f"{DEFAULT_SEED if seed is None else seed}\0{tensor}\0{model}"
    key = int.from_bytes(blake2b(text.encode(), digest_size=6).digest(), "big")
    return float(key >> 24), float(key & 0xFFFFFF)
