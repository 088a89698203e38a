"""Choosing where tiles are computed, and saying why."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mergegraph.errors import DeviceError
from mergegraph.runtime.probe import gpu_count
from mergegraph.schedule.vram import Gpus
from mergegraph.tensorspec import format_bytes

_CUDA = re.compile(r"cuda(:\d+(,\d+)*)?")
_SHARE = 0.75
"""Of a device's free memory, what a run may use by default: CUDA and other programs need some, too."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where tiles are computed.

    Attributes:
        devices: ``("cpu",)``, or CUDA devices.
        reason: why there.
        vram: bytes of memory that may be used on each device; 0 for the CPU.
    """

    devices: tuple[str, ...]
    reason: str
    vram: int = 0

    @property
    def gpus(self) -> Gpus | None:
        """What a schedule may use; None for the CPU."""
        return None if self.devices == ("cpu",) else Gpus(len(self.devices), self.vram)


def place(wanted: str, threads: int, vram: int | None = None) -> Placement:
    """Return where ``--device`` says to compute; ``auto`` is what wins a short trial, if there is a GPU.

    Args:
        wanted: ``auto``, ``cpu``, ``cuda`` or ``cuda:0,1``.
        threads: worker threads that the processor would compute with.
        vram: most bytes to use on each device; by default a share of what is free.

    Raises:
        DeviceError: the name means nothing, or that device is not there.
    """
    if wanted != "auto":
        devices = choose_devices(wanted)
        room = 0 if devices == ("cpu",) else _room(_cuda_memory(), devices, vram)
        return Placement(devices, "as asked for", room)
    if gpu_count() == 0:  # asks the driver: without one, torch is not needed to know
        return Placement(("cpu",), "there is no NVIDIA GPU")
    memory = _cuda_memory()
    if not memory:
        return Placement(("cpu",), "torch cannot use the GPU")
    from mergegraph.runtime.race import race

    devices = tuple(memory)
    there, here = race(devices, threads)
    rates = f"in a trial, {', '.join(devices)} did {_rate(there)} and the processor {_rate(here)}"
    if there <= here:
        return Placement(("cpu",), rates)
    return Placement(devices, rates, _room(memory, devices, vram))


def choose_devices(wanted: str) -> tuple[str, ...]:
    """Return the devices that a name stands for; ``auto`` is the CPU, which needs no transfer.

    Raises:
        DeviceError: the name means nothing, or that device is not there.
    """
    if wanted in ("auto", "cpu"):
        return ("cpu",)
    if not _CUDA.fullmatch(wanted):
        raise DeviceError(f"unknown device {wanted!r}", hint="use auto, cpu, cuda or cuda:0,1")
    available = tuple(_cuda_memory())
    numbers = wanted.partition(":")[2]
    chosen = tuple(dict.fromkeys(f"cuda:{int(n)}" for n in numbers.split(","))) if numbers else available
    missing = [device for device in chosen if device not in available]
    if missing or not chosen:
        have = ", ".join(available) if available else "no CUDA device"
        raise DeviceError(
            f"{', '.join(missing) or wanted} is not available; this machine has {have}",
            hint="use --device cpu",
        )
    return chosen


def _cuda_memory() -> dict[str, int]:
    from mergegraph.runtime import accel  # loads torch

    return accel.cuda_memory()


def _room(memory: Mapping[str, int], devices: tuple[str, ...], vram: int | None) -> int:
    """Bytes that may be used on each of `devices`: what is asked for, as far as it is free."""
    free = min(memory[device] for device in devices)
    return int(_SHARE * free) if vram is None else min(vram, free)


def _rate(value: float) -> str:
    return f"{format_bytes(round(value))}/s"
