"""Views of every kind, and where numpy says that their elements lie."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from mergegraph.checkpoint.view import Picked, RowOrder, View

Places = npt.NDArray[np.int64]


def places(view: View) -> Places:
    """The place of each element of a view, row by row, by indexing alone."""
    rows = np.arange(view.rows)
    if view.order is not None:
        rows = np.array([view.order.place(int(row)) for row in rows], dtype=np.int64)
    grid = view.offset + rows[:, None] * view.row_step + np.arange(view.columns)[None, :] * view.column_step
    return grid.reshape(-1).astype(np.int64)


@st.composite
def views(draw: Any, *, writable: bool = False) -> View:
    """A matrix whose elements all lie apart: contiguous, of some columns, transposed, reordered.

    If `writable`, nothing else lies between the elements of a row.
    """
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    offset = draw(st.integers(0, 40))
    kind = draw(
        st.sampled_from(
            ("contiguous", "columns", "reordered") + (() if writable else ("apart", "transposed", "picked"))
        )
    )
    order: RowOrder | Picked | None = None
    match kind:
        case "contiguous":
            steps = (columns, 1)
        case "columns":
            steps = (columns + draw(st.integers(1, 30)), 1)
        case "apart":
            gap = draw(st.integers(2, 20))
            steps = (gap * columns + draw(st.integers(0, 5)), gap)
        case "transposed":
            gap = draw(st.integers(1, 3))
            steps = (gap, gap * rows + draw(st.integers(0, 20)))
        case "picked":
            order = Picked(tuple(draw(st.permutations(range(rows + 3))))[:rows])
            steps = (columns + draw(st.integers(0, 5)), 1)
        case _:
            half, still = draw(st.integers(1, 3)), draw(st.integers(0, 2))
            order = RowOrder(2 * half + still, 2 * half, draw(st.sampled_from(("halves", "interleaved"))))
            rows = order.head * draw(st.integers(1, 3))
            steps = (columns + draw(st.integers(0, 5)), 1)
    return View(offset, rows, columns, *steps, order)
