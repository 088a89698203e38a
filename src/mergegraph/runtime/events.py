"""What a run tells whoever watches it, and what it reports at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Stage = Literal["read", "compute", "write"]


@dataclass(frozen=True, slots=True)
class RunReport:
    """What a finished run did.

    Attributes:
        out: the published checkpoint.
        tensors: output tensors, of which `merged` were computed, `copied` copied, `dropped` inputs unused.
        bytes_read: bytes read from inputs, every pass counted.
        bytes_written: bytes of tensor data written.
        seconds: wall time of the run, from opening the output to publishing it.
        peak_rss: highest resident size of the process, bytes.
        peak_working: the part of it beyond what the process held when the run was asked for.
        budget: the ``--memory`` bound, which `plan_peak` was proven to stay within.
        stages: seconds that workers spent reading, computing and writing, summed over workers.
        bound: the stage that took most.
        nonfinite: number of NaN or infinite elements by computed output tensor, where there are any.
        device: where tiles were computed, and in `reason` why there.
        vram: the ``--vram`` bound of each GPU, which `vram_peak` was proven to stay within; 0 on the CPU.
        resumed: tensors taken over from an interrupted run.
        routers: what is known of router rows that were computed from prompts, layer by layer.
    """

    out: Path
    tensors: int
    merged: int
    copied: int
    dropped: int
    bytes_read: int
    bytes_written: int
    seconds: float
    peak_rss: int
    peak_working: int
    budget: int
    plan_peak: int
    stages: dict[Stage, float]
    bound: Stage
    nonfinite: dict[str, int]
    resumed: int
    device: str
    threads: int
    reason: str = ""
    vram: int = 0
    vram_peak: int = 0
    routers: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Routing:
    """Router rows are being computed from prompts: `done` of `total` tokens have passed a layer."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Started:
    """The run begins: `total_bytes` to read and write for `outputs` tensors."""

    total_bytes: int
    outputs: int


@dataclass(frozen=True, slots=True)
class Advanced:
    """Some work is done. All counts are since the start; `tensor` finished or progressed last.

    `done_bytes` of `total_bytes` is how far the work is. What was read may be more, or less: how many passes
    a threshold takes shows on the way.
    """

    done_bytes: int
    total_bytes: int
    read_bytes: int
    written_bytes: int
    tensor: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is complete and published."""

    report: RunReport


Event = Routing | Started | Advanced | Finished
OnEvent = Callable[[Event], None]
