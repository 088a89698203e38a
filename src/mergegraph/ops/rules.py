"""Spec rules that ops share: what their operands must be, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mergegraph.errors import GraphError
from mergegraph.tensorspec import DType, Space, TensorSpec

Attrs = dict[str, Any]
Code = tuple[list[str], str]
Rule = Callable[[Sequence[TensorSpec], Attrs], TensorSpec]

W, D = Space.WEIGHT, Space.DELTA


def split(specs: Sequence[TensorSpec]) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Tile operands and small ones, in order; per-row values count as small."""
    small = (Space.STAT, Space.ROW)
    return [s for s in specs if s.space not in small], [s for s in specs if s.space in small]


def tile(name: str, specs: Sequence[TensorSpec], space: Space | None, result: Space) -> TensorSpec:
    """All `specs` in one space (`space`, if given), shape and arithmetic → `result` in the compute dtype.

    Raises:
        GraphError: they are not.
    """
    if not specs:
        raise GraphError(f"{name} needs at least one tensor operand")
    wanted = space or specs[0].space
    for spec in specs:
        if spec.shape != specs[0].shape:
            raise GraphError(f"{name} cannot combine shapes {specs[0].shape} and {spec.shape}")
        if spec.space is not wanted:
            raise GraphError(f"{name} takes {wanted.value} tensors, not a {spec.space.value}")
        if not spec.dtype.arithmetic:
            raise GraphError(f"{name} cannot do arithmetic on {spec.dtype.torch_name}")
    wide = any(spec.dtype is DType.F64 for spec in specs)
    return TensorSpec(specs[0].shape, DType.F64 if wide else DType.F32, result)


def widths(name: str, specs: Sequence[TensorSpec], *lengths: int) -> None:
    """Check the lengths of small operands; a per-row operand's length is that of one row.

    Raises:
        GraphError: they differ.
    """
    found = tuple(s.shape[-1] if s.space is Space.ROW else s.numel for s in specs)
    if found != lengths:
        raise GraphError(f"{name} takes statistics of lengths {lengths}, not {found}")


def stat(length: int, dtype: DType = DType.F64) -> TensorSpec:
    """A statistic: a vector of `length` numbers."""
    return TensorSpec((length,), dtype, Space.STAT)


def like_tiles(name: str, result: Space | None = None, small: Callable[[int], tuple[int, ...]] = tuple) -> Rule:
    """Tiles of one space and shape, then small operands of lengths ``small(number of tiles)``.

    The result is in space `result`, or in the tiles' own.
    """

    def rule(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
        tiles, stats = split(specs)
        widths(name, stats, *small(len(tiles)))
        space = result or (tiles[0].space if tiles else W)
        return tile(name, tiles, None, space)

    return rule


def small_of(name: str, *lengths: int, gives: Callable[[Sequence[TensorSpec]], TensorSpec]) -> Rule:
    """Statistics of fixed lengths → a statistic; for SMALL ops."""

    def rule(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
        widths(name, specs, *lengths)
        return gives(specs)

    return rule
