"""The accelerators of this machine, as accelerate sees them."""

from __future__ import annotations

from accelerate.utils import get_max_memory, is_cuda_available


def cuda_memory() -> dict[str, int]:
    """The usable CUDA devices, and the free memory of each in bytes."""
    if not is_cuda_available():
        return {}
    return {f"cuda:{key}": free for key, free in get_max_memory().items() if isinstance(key, int) and free}
