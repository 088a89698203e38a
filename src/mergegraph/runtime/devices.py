"""Choosing where tiles are computed."""

from __future__ import annotations

import re

from mergegraph.errors import DeviceError

_CUDA = re.compile(r"cuda(:\d+(,\d+)*)?")


def choose_devices(wanted: str) -> tuple[str, ...]:
    """Return the devices that ``--device`` names; ``auto`` is the CPU, which needs no transfer.

    Raises:
        DeviceError: the name means nothing, or that device is not there.
    """
    if wanted in ("auto", "cpu"):
        return ("cpu",)
    if not _CUDA.fullmatch(wanted):
        raise DeviceError(f"unknown device {wanted!r}", hint="use auto, cpu, cuda or cuda:0,1")
    from mergegraph.runtime.accel import cuda_devices  # loads torch

    available = cuda_devices()
    numbers = wanted.partition(":")[2]
    chosen = tuple(f"cuda:{n}" for n in numbers.split(",")) if numbers else available
    missing = [device for device in chosen if device not in available]
    if missing or not chosen:
        have = ", ".join(available) if available else "no CUDA device"
        raise DeviceError(
            f"{', '.join(missing) or wanted} is not available; this machine has {have}",
            hint="use --device cpu",
        )
    return chosen
