"""The accelerators of this machine, as accelerate sees them."""

from __future__ import annotations

from accelerate.utils import get_max_memory, is_cuda_available


def cuda_devices() -> tuple[str, ...]:
    """Names of the usable CUDA devices: those with free memory."""
    if not is_cuda_available():
        return ()
    return tuple(f"cuda:{key}" for key, free in get_max_memory().items() if isinstance(key, int) and free)
