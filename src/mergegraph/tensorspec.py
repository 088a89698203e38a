"""What is known of a tensor before any of its bytes are read: shape, dtype and space."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class DType(Enum):
    """An element type, by its safetensors name.

    Members stand in the order of the safetensors format's own enumeration: files are laid out by
    descending position here, so the order is part of the format.
    """

    BOOL = ("bool", 8)
    F4 = ("float4_e2m1fn_x2", 4)
    F6_E2M3 = ("float6_e2m3", 6)
    F6_E3M2 = ("float6_e3m2", 6)
    U8 = ("uint8", 8)
    I8 = ("int8", 8)
    F8_E5M2 = ("float8_e5m2", 8)
    F8_E4M3 = ("float8_e4m3fn", 8)
    F8_E8M0 = ("float8_e8m0fnu", 8)
    F8_E4M3FNUZ = ("float8_e4m3fnuz", 8)
    F8_E5M2FNUZ = ("float8_e5m2fnuz", 8)
    I16 = ("int16", 16)
    U16 = ("uint16", 16)
    F16 = ("float16", 16)
    BF16 = ("bfloat16", 16)
    I32 = ("int32", 32)
    U32 = ("uint32", 32)
    F32 = ("float32", 32)
    C64 = ("complex64", 64)
    F64 = ("float64", 64)
    I64 = ("int64", 64)
    U64 = ("uint64", 64)

    def __init__(self, torch_name: str, bits: int) -> None:
        self.torch_name = torch_name
        self.bits = bits

    # Members are compared by identity; the enumeration's own hash, of the name, is written in Python: slow.
    __hash__ = object.__hash__

    @property
    def rank(self) -> int:
        """Position in the format's enumeration."""
        return _RANK[self]

    @property
    def arithmetic(self) -> bool:
        """Whether merge arithmetic is defined on it; every other dtype is only ever copied."""
        return self in _FLOATS

    @property
    def compute(self) -> DType:
        """The dtype arithmetic on it is done in: float64 for float64, else float32."""
        return DType.F64 if self is DType.F64 else DType.F32


_RANK = {dtype: i for i, dtype in enumerate(DType)}
_FLOATS = frozenset({DType.F64, DType.F32, DType.F16, DType.BF16})
_BY_TORCH_NAME = {dtype.torch_name: dtype for dtype in DType}
PLAN_DTYPES = ("bfloat16", "float16", "float32", "float64")


def dtype_from_torch_name(name: str) -> DType | None:
    """Return the dtype called `name` (``"bfloat16"``, ``"torch.bfloat16"``) or None."""
    return _BY_TORCH_NAME.get(name.removeprefix("torch."))


def promote(dtypes: list[DType]) -> DType:
    """Return the float dtype that torch promotion gives for `dtypes` (bf16 + f16 is float32)."""
    kinds = set(dtypes)
    if len(kinds) == 1:
        return dtypes[0]
    if DType.F64 in kinds:
        return DType.F64
    return DType.F32


def heaviest(specs: Iterable[TensorSpec]) -> DType | None:
    """Return the float dtype that most bytes of `specs` are in; None if none is."""
    sizes: Counter[DType] = Counter()
    for spec in specs:
        if spec.dtype.arithmetic:
            sizes[spec.dtype] += spec.nbytes
    return sizes.most_common(1)[0][0] if sizes else None


class Space(Enum):
    """What the numbers of a tensor mean; adding a WEIGHT to a WEIGHT by mistake is an error.

    WEIGHT is a point in parameter space, DELTA a difference of two (a task vector), STAT a small
    statistic (dot products, thresholds, coefficients) that is held, never streamed, ROW a few numbers
    for each row of a tensor, that live as long as the row is worked on.
    """

    WEIGHT = "weight"
    DELTA = "delta"
    STAT = "stat"
    ROW = "row"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape, dtype and space of a tensor. `shape` may be ``()`` and may contain zeros."""

    shape: tuple[int, ...]
    dtype: DType
    space: Space = Space.WEIGHT

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of the data in bytes (sub-byte dtypes are packed)."""
        return -(-self.numel * self.dtype.bits // 8)

    def __str__(self) -> str:
        """Render as ``bfloat16[2048, 2048]``, with the space when it is not WEIGHT."""
        dims = ", ".join(map(str, self.shape))
        space = "" if self.space is Space.WEIGHT else f" {self.space.value}"
        return f"{self.dtype.torch_name}[{dims}]{space}"


_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_bytes(text: str | int) -> int:
    """Return the number of bytes that `text` names: ``"2GiB"``, ``"5GB"``, ``"500m"``, ``1024``.

    Raises:
        ValueError: `text` is not a positive size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(text))
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write for example 2GiB, 500MB or 1048576")
    size = int(float(match[1]) * _UNITS[match[2].lower()])
    if size <= 0:
        raise ValueError(f"{text!r} must be more than zero bytes")
    return size


def format_bytes(n: int) -> str:
    """Render `n` bytes in decimal units: ``"2.20 GB"``, ``"512 B"``."""
    value = float(n)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.995 or (unit == "B" and value < 1000):
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"
