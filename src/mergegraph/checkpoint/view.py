"""Matrices inside stored tensors: one expert of a stack, the gate half of a fused projection.

::

    gate_up_proj [E, 2I, H]          element (r, c) of a view lies at
    ┌────────────┐ expert 0          offset + place(r) * row_step + c * column_step
    │ gate       │ ← rows 0 … I-1
    │ up         │
    ├────────────┤ expert 1
    │ gate       │ ← a view: offset 2I·H, I rows of H columns, steps H and 1

A view says where elements lie, never what they are: the same one reads a part of an input and places
a piece of an output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

NARROW = 8
"""Up to this many elements apart, neighbours are read together with what lies between them."""


_SIZE = "([0-9]{1,18})"
_VIEW = re.compile(f"{_SIZE},{_SIZE},{_SIZE},{_SIZE},{_SIZE}(?:,{_SIZE},{_SIZE},(halves|interleaved))?")


class Run(NamedTuple):
    """Element k of a run lies at ``start + k * step`` of the tensor, and is number ``at + k * at_step``."""

    start: int
    step: int
    length: int
    at: int
    at_step: int


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Another order of the rows of each attention head, for families that pair rotary dimensions otherwise.

    Attributes:
        head: rows of a head.
        rotary: leading rows of a head that are rotated; the others keep their place.
        to: ``halves``: pairs lie half the rotary rows apart (rotate-half); ``interleaved``: next to each
            other. Rows are taken from the other of the two.
    """

    head: int
    rotary: int
    to: Literal["halves", "interleaved"]

    def place(self, row: int) -> int:
        """Where row `row` of the new order stands in the old one."""
        inner = row % self.head
        if inner >= self.rotary:
            return row
        half = self.rotary // 2
        if self.to == "halves":
            return row - inner + (inner % half) * 2 + inner // half
        return row - inner + (inner % 2) * half + inner // 2

    @property
    def inverse(self) -> RowOrder:
        """The order that undoes this one."""
        return RowOrder(self.head, self.rotary, "interleaved" if self.to == "halves" else "halves")


@dataclass(frozen=True, slots=True)
class Picked:
    """Some rows, in any order: the rows of a router that belong to the experts which are kept."""

    rows: tuple[int, ...]

    def place(self, row: int) -> int:
        """Which row is number `row`."""
        return self.rows[row]

    @property
    def to(self) -> str:
        """What was picked, for showing."""
        return f"rows {', '.join(map(str, self.rows))}"


@dataclass(frozen=True, slots=True)
class View:
    """A matrix of `rows` times `columns` elements inside a tensor; all sizes count elements."""

    offset: int
    rows: int
    columns: int
    row_step: int
    column_step: int = 1
    order: RowOrder | Picked | None = None

    @property
    def numel(self) -> int:
        """Elements of the matrix."""
        return self.rows * self.columns

    @property
    def contiguous(self) -> bool:
        """Whether the elements are one range of the tensor, in order."""
        return (
            self.order is None and self.column_step == 1 and (self.row_step == self.columns or self.rows < 2)
        )

    def runs(self, begin: int, count: int) -> Iterator[Run]:
        """Yield where elements `begin` to ``begin + count`` of the matrix, row by row, lie."""
        if self.contiguous:
            yield Run(self.offset + begin, 1, count, 0, 1)
            return
        at, end = 0, begin + count
        while begin < end:
            row, column = divmod(begin, self.columns)
            rows = 1 if column else max(1, (end - begin) // self.columns)
            width = min(self.columns - column, end - begin)
            yield from self._rectangle(row, rows, column, width, at)
            begin += rows * width
            at += rows * width

    def _rectangle(self, row: int, rows: int, column: int, width: int, at: int) -> Iterator[Run]:
        across = self.column_step > NARROW and self.order is None and self.row_step < self.column_step
        if across:
            start = self.offset + row * self.row_step + column * self.column_step
            for c in range(width):
                yield Run(start + c * self.column_step, self.row_step, rows, at + c, width)
            return
        for r in range(row, row + rows):
            place = r if self.order is None else self.order.place(r)
            start = self.offset + place * self.row_step + column * self.column_step
            yield Run(start, self.column_step, width, at + (r - row) * width, 1)

    def within(self, numel: int) -> bool:
        """Whether the elements may all lie in a tensor of `numel` elements, each at a place of its own."""
        steps = self.offset, self.rows, self.columns, self.row_step, self.column_step
        last = self.offset + self._last_row * self.row_step + (self.columns - 1) * self.column_step
        return min(steps) >= 0 and last < numel and self.numel <= numel

    @property
    def _last_row(self) -> int:
        """The row of the tensor that is furthest along; orders move rows within whole heads."""
        if isinstance(self.order, Picked):
            return max(self.order.rows, default=0)
        return (self.rows if self.order is None else -(-self.rows // self.order.head) * self.order.head) - 1

    def __str__(self) -> str:
        if self.contiguous:
            first = self.offset // max(1, self.columns)
            return f"rows {first}:{first + self.rows}"
        steps = f"{self.offset}+{self.row_step}r+{self.column_step}c"
        if isinstance(self.order, Picked):
            return self.order.to
        order = f", {self.order.to} of {self.order.rotary}/{self.order.head}" if self.order else ""
        return f"{self.rows}x{self.columns} at {steps}{order}"


def view_text(view: View) -> str:
    """Spell a view for a file: ``offset,rows,columns,row step,column step[,head,rotary,to]``.

    Picked rows are for reading only.
    """
    if isinstance(view.order, Picked):
        raise ValueError("picked rows are no place to write to")
    order = () if view.order is None else (view.order.head, view.order.rotary, view.order.to)
    sizes = (view.offset, view.rows, view.columns, view.row_step, view.column_step)
    return ",".join(map(str, (*sizes, *order)))


def parsed_view(text: str) -> View | None:
    """The view that `view_text` spelled; None if it is none."""
    match = _VIEW.fullmatch(text)
    if match is None:
        return None
    offset, rows, columns, row_step, column_step = (int(match[i]) for i in range(1, 6))
    order = None
    if match[8]:
        head, rotary = int(match[6]), int(match[7])
        if rotary % 2 or rotary > head or head == 0:
            return None
        order = RowOrder(head, rotary, "halves" if match[8] == "halves" else "interleaved")
    return View(offset, rows, columns, row_step, column_step, order)


def whole(rows: int, columns: int, order: RowOrder | None = None) -> View:
    """The view of a whole matrix."""
    return View(0, rows, columns, columns, 1, order)
