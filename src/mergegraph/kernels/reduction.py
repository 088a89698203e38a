"""What a REDUCE op is made of: a state, a fold for each kind of device, and a finaliser."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

CHUNK = 65536
"""Elements per reduction chunk.

Float folds keep one row of state per chunk and add the rows in chunk order, so their result depends
on the tensor alone: not on tile size, thread count or which worker got which tile.
"""

BLOCK = 4096
"""Elements that compiled code hands to a fold at a time: a few operands of it fit in L1."""

Array = npt.NDArray[Any]
Attrs = dict[str, Any]


class Span(NamedTuple):
    """Which elements a tile holds: the number of its first one, and how many share a row of state."""

    begin: int
    chunk: int


@dataclass(frozen=True, slots=True)
class Reduction:
    """A fold over the tiles of one or more tensors.

    Attributes:
        state: (number of tensors, attrs) → (length, dtype name) of one row of state.
        per_chunk: one row per chunk (inexact folds), or one row in all (counts, where order
            cannot matter).
        code: (block, elements, state, STAT names, attrs and the number of tensors as ``arity``) → a
            statement that folds a block of elements, for generated code; it may call anything in
            `mergegraph.kernels.fused`.
        fold: the name of the functions that do the same on torch tensors. In `kernels.folds`:
            (tensors of one chunk on the CPU, STATs, attrs) → one row of state. In `kernels.batched`:
            (rows of state, tensors of one tile, `Span`, STATs, attrs), which adds to the state on any device.
        finalise: (all rows, number of tensors, attrs) → the value of the op.
        chunks: attrs → chunks that share a row of state, for folds whose rows are long.
        placed: the fold needs to know which elements it gets, and adds to a row of state in place:
            the fold of a chunk takes (row of state, tensors, number of the first element, attrs), and `code`
            may use the locals ``begin``, ``lo`` and ``columns`` of generated code.
    """

    state: Callable[[int, dict[str, Any]], tuple[int, str]]
    per_chunk: bool
    code: Callable[[str, str, str, Sequence[str], dict[str, Any]], str]
    fold: str
    finalise: Callable[[Array, int, dict[str, Any]], Array]
    chunks: Callable[[dict[str, Any]], int] = lambda _: 1
    placed: bool = False
    needed: Callable[[Sequence[Array]], bool] = lambda _: True

    def fold_tensors(
        self, row: Array, tensors: Sequence[Any], begin: int, stats: Sequence[Array], attrs: dict[str, Any]
    ) -> None:
        """Add a chunk on the CPU to a row of state, as generated code would."""
        # Imported on first use: planning must not load torch.
        function = getattr(import_module("mergegraph.kernels.folds"), self.fold)
        if self.placed:
            function(row, tensors, begin, attrs)
        else:
            row += function(tensors, stats, attrs)

    def fold_tile(
        self, state: Any, tensors: Sequence[Any], span: Span, stats: Sequence[Array], attrs: Attrs
    ) -> None:
        """Add flat tensors on any device to rows of state beside them; nothing waits for the result."""
        function = getattr(import_module("mergegraph.kernels.batched"), self.fold)
        function(state, tensors, span, stats, attrs)

    def rows(self, numel: int, chunk: int = CHUNK) -> int:
        """Rows of state for a tensor of `numel` elements that is folded `chunk` at a time."""
        return max(1, -(-numel // chunk)) if self.per_chunk else 1

    def nbytes(self, arity: int, attrs: dict[str, Any], rows: int) -> int:
        """Bytes of a state of `rows` rows."""
        length, dtype = self.state(arity, attrs)
        return rows * length * np.dtype(dtype).itemsize

    def empty(self, arity: int, attrs: dict[str, Any], rows: int) -> Array:
        """A zeroed state of `rows` rows."""
        length, dtype = self.state(arity, attrs)
        return np.zeros((rows, length), dtype=dtype)
