"""Shapes, dtypes and sizes in text."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from mergegraph.checkpoint.index import parse_header
from mergegraph.tensorspec import (
    PLAN_DTYPES,
    DType,
    Space,
    TensorSpec,
    dtype_from_torch_name,
    format_bytes,
    parse_bytes,
    promote,
)

FLOATS = (DType.BF16, DType.F16, DType.F32, DType.F64)


def torch_dtype(dtype: DType) -> torch.dtype:
    found: torch.dtype = getattr(torch, dtype.torch_name)
    return found


@pytest.mark.parametrize("dtype", [d for d in DType if d.bits >= 8], ids=lambda d: d.name)
def test_a_dtype_is_called_and_sized_as_in_torch(dtype: DType) -> None:
    assert torch_dtype(dtype).itemsize * 8 == dtype.bits
    assert dtype_from_torch_name(str(torch_dtype(dtype))) is dtype
    assert dtype_from_torch_name(dtype.torch_name) is dtype


def test_dtypes_stand_in_the_order_in_which_files_are_laid_out() -> None:
    known = [d for d in DType if d.bits >= 8]
    file = save({d.name: torch.zeros(8, dtype=torch.uint8).view(torch_dtype(d)) for d in known})
    length = int.from_bytes(file[:8], "little")
    header = parse_header(file[8 : 8 + length], "x", len(file), "x")
    written = sorted(header, key=lambda name: header[name].begin)
    assert [DType[name] for name in written] == sorted(known, key=lambda d: d.rank, reverse=True)


def test_an_unknown_dtype_name_is_none() -> None:
    assert dtype_from_torch_name("float12") is None
    assert dtype_from_torch_name("torch.torch.float32") is None


def test_arithmetic_is_for_the_floats_that_plans_may_name() -> None:
    assert tuple(d for d in DType if d.arithmetic) == (DType.F16, DType.BF16, DType.F32, DType.F64)
    assert {d.torch_name for d in DType if d.arithmetic} == {*PLAN_DTYPES}


def test_only_float64_is_computed_in_float64() -> None:
    assert {d: d.compute for d in FLOATS} == {
        DType.BF16: DType.F32,
        DType.F16: DType.F32,
        DType.F32: DType.F32,
        DType.F64: DType.F64,
    }


@pytest.mark.parametrize(("a", "b"), [*product(FLOATS, repeat=2)], ids=lambda d: d.name)
def test_promotion_is_torch_promotion(a: DType, b: DType) -> None:
    assert torch_dtype(promote([a, b])) is torch.promote_types(torch_dtype(a), torch_dtype(b))


def test_promotion_of_several_does_not_depend_on_their_order() -> None:
    assert promote([DType.BF16, DType.BF16, DType.F16]) is DType.F32
    assert promote([DType.F16, DType.F64, DType.BF16]) is DType.F64
    assert promote([DType.BF16]) is DType.BF16


def test_a_spec_counts_elements_and_bytes() -> None:
    assert TensorSpec((), DType.BF16).numel == 1
    assert TensorSpec((3, 0, 5), DType.F64).nbytes == 0
    assert TensorSpec((3, 4), DType.BF16).nbytes == 24
    assert TensorSpec((3,), DType.F4).nbytes == 2  # packed, and rounded up to whole bytes
    assert TensorSpec((4,), DType.F6_E2M3).nbytes == 3


def test_a_spec_reads_like_a_declaration() -> None:
    assert str(TensorSpec((2048, 64), DType.BF16)) == "bfloat16[2048, 64]"
    assert str(TensorSpec((), DType.F32, Space.DELTA)) == "float32[] delta"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (1024, 1024),
        ("1024", 1024),
        ("512 B", 512),
        ("2GiB", 2 * 2**30),
        ("5GB", 5 * 10**9),
        ("500m", 500 * 10**6),
        ("1.5 KiB", 1536),
        (" 3tib ", 3 * 2**40),
    ],
)
def test_a_size_is_read(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", -5, "1 XB", "1e9", "1,5GB", "0", "0.2", "1GB2", "nan", "0x10"]
)
def test_what_is_not_a_size_is_refused_in_words(text: str | int) -> None:
    with pytest.raises(ValueError, match=r"is not a size|must be more than zero"):
        parse_bytes(text)


@given(st.integers(1, 10**15))
def test_plain_numbers_of_bytes_are_read_exactly(n: int) -> None:
    assert parse_bytes(n) == n


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (2_200_000_000, "2.20 GB"),
        (5 * 10**12, "5.00 TB"),
        (12 * 10**15, "12000.00 TB"),
    ],
)
def test_sizes_are_shown_in_decimal_units(n: int, text: str) -> None:
    assert format_bytes(n) == text


@pytest.mark.parametrize(("n", "text"), [(999_999, "1.00 MB"), (999_996_000, "1.00 GB")])
def test_a_size_that_rounds_up_to_the_next_unit_is_shown_in_it(n: int, text: str) -> None:
    assert format_bytes(n) == text
