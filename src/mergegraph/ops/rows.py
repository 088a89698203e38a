"""Ops on rows (the last axis): a few numbers for each row, or a new row."""

from __future__ import annotations

from collections.abc import Sequence

from mergegraph.graph.node import Locality, Op, Real
from mergegraph.ops.rules import ROW, Attrs, Code, D, Specs, elementwise, rowwise, split, stats, tensors, tile
from mergegraph.tensorspec import DType, TensorSpec

_ROWWISE = Locality.ROWWISE


def _row_arc_spec(specs: Specs, _: Attrs) -> TensorSpec:
    tiles, last = split(specs)
    stats("row_arc", last, 1)
    spec = tile("row_arc", tensors("row_arc", tiles, 2), None)
    columns = spec.shape[-1] if spec.shape else 1
    return TensorSpec((spec.numel // max(columns, 1), 2), DType.F64, ROW)


def _importance_spec(specs: Specs, _: Attrs) -> TensorSpec:
    stats("importance", specs[1:], 1)
    return tile("importance", tensors("importance", specs[:1], 1), None)


def _importance_code(args: Sequence[str], _: Attrs, __: Real, ___: str) -> Code:
    return [], f"abs({args[0]}) * {args[1]}_0"


importance = Op("importance", Locality.ELEMENTWISE, _importance_spec, "rows:importance", _importance_code)
row_arc = Op("row_arc", _ROWWISE, _row_arc_spec, "rows:row_arc", row="row_arc")
row_stock = Op("row_stock", _ROWWISE, rowwise("row_stock", lambda k: k), "rows:row_stock", row="row_stock")
row_divergence = Op(
    "row_divergence",
    _ROWWISE,
    rowwise("row_divergence", lambda _: 1, 2),
    "rows:row_divergence",
    row="row_divergence",
    workspace=32,
)
drop_by_rank = Op(
    "drop_by_rank",
    _ROWWISE,
    elementwise("drop_by_rank", D, count=1, small=lambda _: (2, 2)),
    "rows:drop_by_rank",
    row="row_drop{width}",
    sparse=True,
    indexed=True,
    workspace=48,
)
