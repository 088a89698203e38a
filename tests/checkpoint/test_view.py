"""Where the elements of a matrix inside a tensor lie, against numpy's own indexing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergegraph.checkpoint.view import NARROW, Picked, RowOrder, View, parsed_view, view_text, whole
from tests.checkpoint.views import places, views


def listed(view: View, begin: int, count: int) -> list[int]:
    """The places that the runs of a range name, in the order of the elements; -1 where none does."""
    found = np.full(count, -1, dtype=np.int64)
    for run in view.runs(begin, count):
        for k in range(run.length):
            at = run.at + k * run.at_step
            assert found[at] == -1, "an element is named twice"
            found[at] = run.start + k * run.step
    return found.tolist()


# ---- runs ------------------------------------------------------------------------------------------


@given(st.data())
def test_runs_name_every_element_of_any_range_once_and_where_it_lies(data: st.DataObject) -> None:
    view = data.draw(views())
    begin = data.draw(st.integers(0, view.numel))
    count = data.draw(st.integers(0, view.numel - begin))
    assert listed(view, begin, count) == places(view)[begin : begin + count].tolist()


@given(st.data())
def test_runs_never_reach_beyond_what_is_within(data: st.DataObject) -> None:
    view = data.draw(views())
    last = int(places(view).max())
    assert view.within(last + 1)
    assert not view.within(last)
    spans = [run.start + (run.length - 1) * run.step for run in view.runs(0, view.numel)]
    assert max(spans) == last


@given(st.data())
def test_ranges_laid_end_to_end_are_the_whole(data: st.DataObject) -> None:
    view = data.draw(views())
    step = data.draw(st.integers(1, max(1, view.numel)))
    found: list[int] = []
    for begin in range(0, view.numel, step):
        found += listed(view, begin, min(step, view.numel - begin))
    assert found == places(view).tolist()


def test_what_is_contiguous_is_one_run() -> None:
    for view in (View(6, 4, 3, 3), View(7, 1, 5, 99), View(2, 0, 3, 8), whole(5, 8)):
        assert view.contiguous
        assert [tuple(run) for run in view.runs(2, 3)] == [(view.offset + 2, 1, 3, 0, 1)]


def test_a_half_of_the_columns_is_a_run_for_each_row() -> None:
    view = View(5, 3, 5, 10)
    assert [tuple(run) for run in view.runs(3, 9)] == [(8, 1, 2, 0, 1), (15, 1, 5, 2, 1), (25, 1, 2, 7, 1)]


def test_a_transposed_matrix_is_read_along_its_columns() -> None:
    """A run for each column, so that what lies together is read together."""
    view = View(0, 4, 3, 1, 100)
    assert [tuple(run) for run in view.runs(0, 12)] == [(0, 1, 4, 0, 3), (100, 1, 4, 1, 3), (200, 1, 4, 2, 3)]


def test_neighbours_a_few_elements_apart_are_read_in_one_go() -> None:
    assert len(list(View(1, 4, 6, 12, 2).runs(0, 24))) == 4
    assert len(list(View(0, 4, 6, 6 * NARROW, NARROW).runs(0, 24))) == 4


# ---- orders of rows --------------------------------------------------------------------------------


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 3))
def test_an_order_of_rows_is_undone_by_its_inverse(half: int, heads: int, still: int) -> None:
    order = RowOrder(2 * half + still, 2 * half, "halves")
    rows = range(heads * order.head)
    there = [order.place(row) for row in rows]
    assert sorted(there) == list(rows)
    assert [order.inverse.place(row) for row in there] == list(rows)
    assert order.inverse.inverse == order


@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2))
def test_pairs_move_as_reshaping_moves_them(half: int, heads: int, still: int) -> None:
    """Row 2i+j of a head with neighbours as pairs is row j*half+i of one with halves."""
    size = 2 * half + still
    old = np.arange(heads * size).reshape(heads, size)
    for to, axes in (("halves", (half, 2)), ("interleaved", (2, half))):
        order = RowOrder(size, 2 * half, to)  # type: ignore[arg-type]
        new = old.copy()
        new[:, : 2 * half] = old[:, : 2 * half].reshape(heads, *axes).transpose(0, 2, 1).reshape(heads, -1)
        assert [order.place(row) for row in range(heads * size)] == new.reshape(-1).tolist()


# ---- as text ---------------------------------------------------------------------------------------


@given(views(writable=True) | views())
def test_a_view_survives_being_spelled(view: View) -> None:
    if isinstance(view.order, Picked):
        with pytest.raises(ValueError, match="picked"):
            view_text(view)
    else:
        assert parsed_view(view_text(view)) == view


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "1,2,3,4",
        "1,2,3,4,5,",
        "1,2,3,4,5,6",
        "1,2,3,4,5,6,7",
        "1,2,3,4,5,6,7,",
        "1,2,3,4,5,6,7,quarters",
        "1,2,3,4,5,halves",
        "-1,2,3,4,5",
        "1, 2,3,4,5",
        "1,2,3,4,5\n",
        "\n1,2,3,4,5",
        "1.0,2,3,4,5",
        "٣,2,3,4,5",
        "1,2,3,4," + "9" * 19,
        "9" * 5000 + ",2,3,4,5",
        "None",
    ],
)
def test_other_text_is_no_view(text: str) -> None:
    assert parsed_view(text) is None


@given(st.text(alphabet="0123456789,halvesintd-\n ", max_size=40) | st.text(max_size=20))
def test_any_text_is_a_view_or_none(text: str) -> None:
    view = parsed_view(text)
    assert view is None or view_text(parsed_view(view_text(view)) or view) == view_text(view)


@pytest.mark.parametrize(
    "text",
    ["0,2,2,2,1,0,0,halves", "0,2,2,2,1,4,1,halves", "0,2,2,2,1,2,8,interleaved", "0,2,2,2,1,3,3,halves"],
)
def test_an_order_that_is_no_order_is_no_view(text: str) -> None:
    assert parsed_view(text) is None


def test_a_head_without_rotated_rows_keeps_its_order() -> None:
    view = parsed_view("0,4,2,2,1,2,0,halves")
    assert view is not None
    assert listed(view, 0, 8) == list(range(8))


@pytest.mark.parametrize(
    ("view", "numel", "inside"),
    [
        (View(0, 3, 4, 4), 12, True),
        (View(1, 3, 4, 4), 12, False),
        (View(4, 3, 2, 8), 22, True),
        (View(4, 3, 2, 8), 21, False),
        (View(0, 4, 3, 1, 4), 12, True),
        (View(0, 4, 3, 2, 4), 12, False),
        (View(0, 2, 2, 10**17, 10**17), 10**18, True),
        (View(0, 10**9, 10**9, 0, 0), 10**6, False),
        (View(10**18, 1, 1, 1), 5, False),
        (View(-1, 2, 2, 2), 12, False),
        (View(0, 2, 3, 3, 1, Picked((0, 3))), 12, True),
        (View(0, 2, 3, 3, 1, Picked((0, 3))), 11, False),
        (View(0, 3, 2, 2, 1, RowOrder(4, 4, "halves")), 6, False),
        (View(0, 2, 2, -1), 12, False),
    ],
)
def test_a_view_is_within_a_tensor_or_is_not(view: View, numel: int, inside: bool) -> None:
    assert view.within(numel) is inside


def test_views_are_shown_by_their_rows_or_their_steps() -> None:
    assert str(View(24, 2, 4, 4)) == "rows 6:8"
    assert str(View(4, 3, 4, 8)) == "3x4 at 4+8r+1c"
    assert str(View(0, 8, 4, 4, 1, RowOrder(4, 2, "halves"))) == "8x4 at 0+4r+1c, halves of 2/4"
    assert str(View(0, 2, 4, 4, 1, Picked((5, 2)))) == "rows 5, 2"
