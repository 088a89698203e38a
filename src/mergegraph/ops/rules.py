"""Spec rules that ops share: what their operands must be, and what comes out.

Operands are tensors first, then statistics. All rules raise `GraphError` where no kernel could compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mergegraph.errors import GraphError
from mergegraph.tensorspec import DType, Space, TensorSpec

Attrs = dict[str, Any]
Code = tuple[list[str], str]
Specs = Sequence[TensorSpec]
Rule = Callable[[Specs, Attrs], TensorSpec]

W, D, STAT, ROW = Space.WEIGHT, Space.DELTA, Space.STAT, Space.ROW


def is_small(spec: TensorSpec) -> bool:
    """Whether a spec is no tensor: a statistic, or a few numbers per row."""
    return spec.space in (STAT, ROW)


def split(specs: Specs) -> tuple[Specs, Specs]:
    """Tensors, then the statistics that stand last."""
    count = sum(not is_small(s) for s in specs)
    return specs[:count], specs[count:]


def tensors(name: str, specs: Specs, count: int | None = None) -> Specs:
    """`specs`, provided that they are tensors: `count` of them, or one at least."""
    if any(is_small(s) for s in specs):
        raise GraphError(f"{name} takes tensors, not statistics")
    if not specs or count not in (None, len(specs)):
        raise GraphError(f"{name} takes {count or 'one or more'} tensors, not {len(specs)}")
    return specs


def tile(name: str, specs: Specs, space: Space | None, result: Space | None = None) -> TensorSpec:
    """Tensors in one space (`space`, if given), of one shape and arithmetic dtype.

    Returns:
        Their shape in the compute dtype, in space `result` or their own.
    """
    tensors(name, specs)
    wanted = space or specs[0].space
    for spec in specs:
        if spec.shape != specs[0].shape:
            raise GraphError(f"{name} cannot combine shapes {specs[0].shape} and {spec.shape}")
        if spec.space is not wanted:
            raise GraphError(f"{name} takes {wanted.value} tensors, not a {spec.space.value}")
        if not spec.dtype.arithmetic:
            raise GraphError(f"{name} cannot do arithmetic on {spec.dtype.torch_name}")
    wide = any(spec.dtype is DType.F64 for spec in specs)
    return TensorSpec(specs[0].shape, DType.F64 if wide else DType.F32, result or wanted)


def stats(name: str, specs: Specs, *shapes: int | tuple[int, ...]) -> None:
    """Check that `specs` are float64 statistics of these shapes; of per-row ones, one row counts."""
    wanted = tuple((s,) if isinstance(s, int) else s for s in shapes)
    found = tuple(s.shape[1:] if s.space is ROW else s.shape for s in specs)
    if found != wanted:
        raise GraphError(f"{name} takes statistics of shapes {wanted}, not {found}")
    if not all(is_small(s) for s in specs):
        raise GraphError(f"{name} takes a statistic, not a tensor")
    if any(s.dtype is not DType.F64 for s in specs):
        raise GraphError(f"{name} takes float64 statistics, not counts")


def stat(*shape: int, dtype: DType = DType.F64) -> TensorSpec:
    """The spec of a statistic."""
    return TensorSpec(shape, dtype, STAT)


def elementwise(
    name: str,
    space: Space | None = None,
    result: Space | None = None,
    *,
    count: int | None = None,
    small: Callable[[int], tuple[int, ...]] = lambda _: (),
) -> Rule:
    """`count` tensors (or any number) of one shape and space, then statistics of ``small(count)`` lengths."""

    def rule(specs: Specs, _: Attrs) -> TensorSpec:
        tiles, last = split(specs)
        tensors(name, tiles, count)
        stats(name, last, *small(len(tiles)))
        return tile(name, tiles, space, result)

    return rule


def reduction(name: str, length: Callable[[int], tuple[int, ...]], count: int | None = None) -> Rule:
    """`count` tensors (or any number) of one shape and space → a statistic of shape ``length(count)``."""

    def rule(specs: Specs, _: Attrs) -> TensorSpec:
        tile(name, tensors(name, specs, count), None)
        return stat(*length(len(specs)))

    return rule


def rowwise(name: str, length: Callable[[int], int], count: int | None = None) -> Rule:
    """`count` tensors of one shape and space → ``length(count)`` numbers for each row."""

    def rule(specs: Specs, _: Attrs) -> TensorSpec:
        spec = tile(name, tensors(name, specs, count), None)
        columns = spec.shape[-1] if spec.shape else 1
        return TensorSpec((spec.numel // max(columns, 1), length(len(specs))), DType.F64, ROW)

    return rule


def small(name: str, *shapes: int | tuple[int, ...], gives: int) -> Rule:
    """Statistics of fixed shapes → a statistic of length `gives`."""

    def rule(specs: Specs, _: Attrs) -> TensorSpec:
        stats(name, specs, *shapes)
        return stat(gives)

    return rule


def from_gram(name: str, *shapes: int) -> Rule:
    """A k×k Gram matrix and statistics of lengths `shapes` (0 stands for k) → k coefficients."""

    def rule(specs: Specs, _: Attrs) -> TensorSpec:
        square = specs[0].shape[-2:] if specs else ()
        if len(square) != 2 or square[0] != square[1]:
            raise GraphError(f"{name} takes a Gram matrix")
        lengths = [length or square[0] for length in shapes]
        stats(name, specs, square, *lengths)
        return stat(square[0])

    return rule
