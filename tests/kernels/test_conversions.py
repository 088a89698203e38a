"""bfloat16 and float16 have no numba type: both travel as their bits, and convert exactly as in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mergegraph import ops
from mergegraph.tensorspec import DType
from tests.runtime.harness import assert_same_bits, loads, schedule_run, torch_dtype

NARROW = (DType.BF16, DType.F16)
FLOATS = (*NARROW, DType.F32, DType.F64)


def bits16(dtype: DType) -> Tensor:
    """All 65,536 values that the dtype has."""
    patterns = np.arange(65_536, dtype=np.uint16)
    return torch.from_numpy(patterns.view(np.int16)).view(torch_dtype(dtype))


def around(dtype: DType) -> Tensor:
    """float32 values on, just beside and midway between all neighbouring values of `dtype`."""
    values = torch.sort(bits16(dtype).double()[~bits16(dtype).isnan()])[0]
    finite = values[values.isfinite()]
    middle = ((finite[1:] + finite[:-1]) / 2).float()  # exact: one bit more than the narrow dtype has
    last = finite[-1]
    beyond = (last + (last - finite[-2]) / 2).float()  # the first value that overflows
    points = torch.cat([finite.float(), middle, beyond[None], -beyond[None]])
    up, down = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    return torch.cat([points, torch.nextafter(points, up), torch.nextafter(points, down)])


def any_float32() -> Tensor:
    """Random bit patterns, among them NaNs of both kinds, infinities and subnormals."""
    patterns = np.random.Generator(np.random.SFC64(7)).integers(0, 2**32, 300_000, dtype=np.uint32)
    patterns[:6] = [0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF, 0x00000001, 0x807FFFFF]
    return torch.from_numpy(patterns.view(np.float32))


def converted(x: Tensor, dtype: DType) -> Tensor:
    """What generated code makes of it."""
    return schedule_run(ops.cast(loads([x])[0], dtype=dtype.name), [x]).tensor


@pytest.mark.parametrize("dtype", NARROW, ids=lambda d: d.name)
def test_every_16_bit_value_widens_exactly(dtype: DType) -> None:
    x = bits16(dtype)
    assert_same_bits(converted(x, DType.F32), x.float())
    assert_same_bits(converted(x, DType.F64), x.double())


@pytest.mark.parametrize("dtype", NARROW, ids=lambda d: d.name)
def test_float32_rounds_to_the_nearest_and_ties_to_even(dtype: DType) -> None:
    for x in (around(dtype), any_float32()):
        assert_same_bits(converted(x, dtype), x.to(torch_dtype(dtype)))


@pytest.mark.parametrize("dtype", NARROW, ids=lambda d: d.name)
def test_rounding_in_the_middle_of_an_expression_is_rounding(dtype: DType) -> None:
    x = torch.cat([around(dtype), any_float32()])
    (load,) = loads([x])
    expression = ops.cast(ops.cast(load, dtype=dtype.name), dtype="F32")
    assert_same_bits(schedule_run(expression, [x]).tensor, x.to(torch_dtype(dtype)).float())


@pytest.mark.parametrize("dtype", NARROW, ids=lambda d: d.name)
def test_there_and_back_is_the_same_value(dtype: DType) -> None:
    x = bits16(dtype)
    wide = converted(x, DType.F32)
    assert_same_bits(converted(wide, dtype), x)


@pytest.mark.parametrize("dtype", FLOATS[:3], ids=lambda d: d.name)
def test_float64_rounds_as_in_torch(dtype: DType) -> None:
    near = [
        1 + 2**-8,
        1 + 2**-11,
        65520.0,
        65519.999999,
        3.4028235677973366e38,
        1e300,
        1e-300,
        2**-25,
        2**-134,
    ]
    values = [x * (1 + e) for x in near for e in (0.0, 2**-40, -(2**-40))]
    x = torch.tensor([*values, *(-v for v in values), torch.nan, torch.inf, -torch.inf], dtype=torch.float64)
    assert_same_bits(converted(x, dtype), x.to(torch_dtype(dtype)))


def test_the_values_at_the_edges_are_what_ieee_754_says() -> None:
    x = torch.tensor([65504.0, 65519.996, 65520.0, 2.0**-24, 2.0**-25, 2.0**-25 + 2.0**-40, -(2.0**-26)])
    assert converted(x, DType.F16).tolist() == [
        65504.0,
        65504.0,
        torch.inf,
        2.0**-24,
        0.0,  # a tie, to even
        2.0**-24,
        -0.0,
    ]
    assert torch.signbit(converted(x, DType.F16))[-1]
    biggest = 3.3895313892515355e38
    y = torch.tensor([1.00390625, 1.01171875, biggest, 3.4e38])  # ties to even, both ways; then overflow
    assert converted(y, DType.BF16).tolist() == [1.0, 1.015625, biggest, torch.inf]
