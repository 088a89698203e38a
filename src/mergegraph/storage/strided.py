"""Reading and writing elements that do not lie next to each other, run by run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from mergegraph.checkpoint.view import View

Bytes = npt.NDArray[np.uint8]
Transfer = Callable[[int, memoryview], None]
"""(byte offset in the tensor, buffer): fills the buffer, or stores it."""


def read_view(view: View, size: int, begin: int, buffer: Bytes, read: Transfer) -> None:
    """Fill `buffer` with elements of `size` bytes, from number `begin` of the view on."""
    items = buffer.reshape(-1, size)
    for run in view.runs(begin, len(items)):
        if run.step == 1 and run.at_step == 1:
            read(run.start * size, items[run.at : run.at + run.length].reshape(-1).data)
            continue
        span = np.empty(((run.length - 1) * run.step + 1, size), dtype=np.uint8)
        read(run.start * size, span.reshape(-1).data)
        items[run.at : run.at + (run.length - 1) * run.at_step + 1 : run.at_step] = span[:: run.step]


def write_view(view: View, size: int, begin: int, buffer: Bytes, write: Transfer) -> None:
    """Store `buffer`, elements of `size` bytes, from number `begin` of the view on.

    Elements that are apart from each other within a run are not for writing: others lie between them.
    """
    items = buffer.reshape(-1, size)
    for run in view.runs(begin, len(items)):
        if run.step != 1:
            raise ValueError(f"cannot write elements {run.step} apart")
        part = items[run.at : run.at + (run.length - 1) * run.at_step + 1 : run.at_step]
        write(run.start * size, np.ascontiguousarray(part).reshape(-1).data)
