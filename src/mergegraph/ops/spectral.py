"""Ops on the singular vectors of whole matrices."""

from __future__ import annotations

from typing import Any

from mergegraph.errors import GraphError
from mergegraph.graph.node import Locality, Node, Op
from mergegraph.kernels.precision import DOUBLE_UP_TO
from mergegraph.ops.rules import Attrs, D, Rule, Specs, tensors, tile
from mergegraph.tensorspec import DType, TensorSpec


def _matrices(name: str) -> Rule:
    """Task vectors that are matrices of one shape, with at least one element."""

    def rule(specs: Specs, _: Attrs) -> TensorSpec:
        spec = tile(name, tensors(name, specs), D)
        if len(spec.shape) != 2 or spec.numel == 0:
            raise GraphError(f"{name} takes matrices, not tensors of shape {spec.shape}")
        return spec

    return rule


def _svd(rows: int, columns: int) -> int:
    """Numbers that LAPACK's divide and conquer holds: a copy, the vectors, and its own workspace."""
    least = min(rows, columns)
    return rows * columns + least * (rows + columns) + 5 * least * least + 128 * (rows + columns)


def _orthogonal(rows: int, columns: int) -> int:
    """Numbers held while `kernels.spectral` makes a matrix orthogonal, its result included."""
    return _svd(rows, columns) + 2 * rows * columns


def _room(specs: Specs, directions: int) -> int:
    """Bytes for decomposing one matrix after the other and putting so many directions together."""
    rows, columns = specs[0].shape
    size, vectors = rows * columns, directions * (rows + columns)
    joining = max(_orthogonal(rows, directions), _orthogonal(directions, columns))
    wide = size <= DOUBLE_UP_TO or any(spec.dtype is DType.F64 for spec in specs)
    return (8 if wide else 4) * (3 * size + 2 * vectors + max(_svd(rows, columns), joining))


def _decorrelated_room(specs: Specs, attrs: Attrs) -> int:
    return _room(specs, attrs["rank"] * len(specs))


def _isotropic_room(specs: Specs, _: Attrs) -> int:
    return _room(specs, min(specs[0].shape))


decorrelated = Op(
    "decorrelated",
    Locality.WHOLE,
    _matrices("decorrelated"),
    "spectral:decorrelated",
    workspace=_decorrelated_room,
)
isotropic = Op(
    "isotropic", Locality.WHOLE, _matrices("isotropic"), "spectral:isotropic", workspace=_isotropic_room
)


def matrix_rank(x: Any) -> int:
    """The number of singular values of a node or a tensor: 0 unless it is a matrix."""
    shape = x.spec.shape if isinstance(x, Node) else tuple(x.shape)
    return min(shape) if len(shape) == 2 else 0
