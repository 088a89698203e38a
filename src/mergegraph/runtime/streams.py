"""What a GPU worker asks of its device: memory on both sides, queues of work, and marks to wait for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from mergegraph.errors import DeviceError

Queue = Literal["in", "kernels", "out"]
"""Work in one queue runs in order; queues run beside each other."""
QUEUES: tuple[Queue, ...] = ("in", "kernels", "out")


class Device(Protocol):
    """Where tiles are computed.

    Attributes:
        device: what torch calls it.
    """

    device: torch.device

    def host(self, size: int) -> Tensor:
        """Bytes on the host that the device can copy from and to by itself."""

    def memory(self, size: int) -> Tensor:
        """Bytes on the device."""

    def on(self, queue: Queue, after: Any = None) -> AbstractContextManager[Any]:
        """While inside, work goes to `queue`, and starts when the mark `after` is reached."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy in the current queue; both must live until that is done."""

    def mark(self, queue: Queue) -> Any:
        """A mark behind what is in `queue` now."""

    def wait(self, mark: Any) -> None:
        """Wait on the host until `mark` is reached."""

    def synchronise(self) -> None:
        """Wait until all queues are empty."""


class Cuda:
    """A CUDA device: its queues are streams, its marks events.

    Args:
        name: ``cuda:0``, …
    """

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self._streams: dict[Queue, torch.cuda.Stream] = {
            queue: torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            for queue in QUEUES
        }

    def host(self, size: int) -> Tensor:
        """Pinned memory."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def memory(self, size: int) -> Tensor:
        """Bytes on the device."""
        with self._telling():
            return torch.empty(size, dtype=torch.uint8, device=self.device)

    @contextmanager
    def on(self, queue: Queue, after: Any = None) -> Iterator[None]:
        """While inside, kernels and copies go to the stream of `queue`."""
        stream = self._streams[queue]
        if after is not None:
            stream.wait_event(after)
        with self._telling(), torch.cuda.stream(stream):
            yield

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy without waiting."""
        target.copy_(source, non_blocking=True)

    def mark(self, queue: Queue) -> Any:
        """An event; waiting for it must not keep a processor busy that others read with."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._streams[queue])
        return event

    def wait(self, mark: Any) -> None:
        """Wait for an event."""
        mark.synchronize()

    def synchronise(self) -> None:
        """Wait for all streams."""
        for stream in self._streams.values():
            stream.synchronize()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            raise DeviceError(
                f"{self.device} has no memory left, though the run needs no more than was proven: {error}",
                hint="other programs use it too; allow less with --vram",
            ) from error


class Host:
    """The processor in the place of a device: every queue is done at once."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")

    def host(self, size: int) -> Tensor:
        """Plain memory."""
        return torch.empty(size, dtype=torch.uint8)

    def memory(self, size: int) -> Tensor:
        """Plain memory."""
        return torch.empty(size, dtype=torch.uint8)

    def on(self, queue: Queue, after: Any = None) -> AbstractContextManager[Any]:
        """Nothing to switch to."""
        return nullcontext()

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copy now."""
        target.copy_(source)

    def mark(self, queue: Queue) -> Any:
        """Nothing is ever left to do."""
        return None

    def wait(self, mark: Any) -> None:
        """Return at once."""

    def synchronise(self) -> None:
        """Return at once."""
