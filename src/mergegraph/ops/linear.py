"""Loading, casting, and linear combinations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergegraph.errors import GraphError
from mergegraph.graph.node import Locality, Node, Op, Real, node
from mergegraph.ops.rules import Attrs, Code, D, Specs, W, elementwise, stats, tensors, tile
from mergegraph.tensorspec import DType, TensorSpec


def _load_spec(_: Specs, attrs: Attrs) -> TensorSpec:
    return TensorSpec(attrs["shape"], DType[attrs["dtype"]])


def _cast_spec(specs: Specs, attrs: Attrs) -> TensorSpec:
    (spec,) = tensors("cast", specs, 1)
    dtype = DType.__members__.get(attrs["dtype"])
    if dtype is None:
        raise GraphError(f"there is no dtype {attrs['dtype']!r}")
    if not (spec.dtype.arithmetic and dtype.arithmetic):
        raise GraphError(f"cannot cast {spec.dtype.torch_name} to {dtype.torch_name}")
    return TensorSpec(spec.shape, dtype, spec.space)


def _identical_spec(specs: Specs, _: Attrs) -> TensorSpec:
    tensors("identical", specs)
    if any(spec != specs[0] for spec in specs):
        raise GraphError("only tensors of one shape and dtype can be identical")
    return specs[0]


def _apply_delta_spec(specs: Specs, _: Attrs) -> TensorSpec:
    stats("apply_delta", specs[2:], 1)
    base, delta = tensors("apply_delta", specs[:2], 2)
    if delta.space is not D:
        raise GraphError("apply_delta adds a delta to a weight")
    return tile("apply_delta", [base, TensorSpec(delta.shape, delta.dtype)], W)


def _column_sum_spec(specs: Specs, _: Attrs) -> TensorSpec:
    spec = tile("column_sum", tensors("column_sum", specs[:2], 2), None)
    stats("column_sum", specs[2:], (2, columns_of(spec)))
    return spec


def columns_of(spec: TensorSpec) -> int:
    """Vectors along the first axis: as many as there are elements in the other axes."""
    return max(1, spec.numel // spec.shape[0]) if spec.shape and spec.shape[0] else 1


def _column_sum_code(args: Sequence[str], _: Attrs, real: Real, __: str) -> Code:
    x, y, w = args
    return [], f"{real.type}({w}[0, k]) * {x} + {real.type}({w}[1, k]) * {y}"


def _cast_code(args: Sequence[str], attrs: Attrs, _: Real, __: str) -> Code:
    return [], f"round_{attrs['dtype'].lower()}({args[0]})"


def _weighted_sum_code(args: Sequence[str], _: Attrs, __: Real, ___: str) -> Code:
    *xs, w = args
    return [], " + ".join(f"{w}_{i} * {x}" for i, x in enumerate(xs))


def _scale_code(args: Sequence[str], _: Attrs, __: Real, ___: str) -> Code:
    return [], f"{args[0]} * {args[1]}_0"


def _delta_code(args: Sequence[str], _: Attrs, __: Real, ___: str) -> Code:
    return [], f"{args[0]} - {args[1]}"


def _apply_delta_code(args: Sequence[str], _: Attrs, __: Real, ___: str) -> Code:
    return [], f"{args[0]} + {args[1]} * {args[2]}_0"


def _affine_code(args: Sequence[str], _: Attrs, __: Real, ___: str) -> Code:
    return [], f"{args[1]}_0 * {args[0]} + {args[1]}_1"


def _line_code(args: Sequence[str], _: Attrs, __: Real, ___: str) -> Code:
    return [], f"{args[1]}_0 + {args[1]}_1 * {args[0]}"


def _gate_code(args: Sequence[str], _: Attrs, __: Real, ___: str) -> Code:
    return [], args[0]


def _nearswap_code(args: Sequence[str], _: Attrs, real: Real, tmp: str) -> Code:
    base, x, t = args
    lines = [
        f"{tmp}g = abs({base} - {x})",
        f"{tmp}q = {t}_0 / ({tmp}g if {tmp}g > {real.type}(1e-6) else {real.type}(1e-6))",
        f"{tmp}h = {real.one} if {tmp}q > {real.one} else {tmp}q",
        f"{tmp}s = {real.zero} if {tmp}h < {real.zero} else {tmp}h",
    ]
    return lines, f"{tmp}s * {x} + ({real.one} - {tmp}s) * {base}"


_EW = Locality.ELEMENTWISE

LOAD = Op("load", Locality.SOURCE, _load_spec)
IDENTICAL = Op("identical", _EW, _identical_spec, "linear:identical")
cast = Op("cast", _EW, _cast_spec, "linear:cast", _cast_code)
weighted_sum = Op(
    "weighted_sum",
    _EW,
    elementwise("weighted_sum", small=lambda n: (n,)),
    "linear:weighted_sum",
    _weighted_sum_code,
)
column_sum = Op(
    "column_sum",
    _EW,
    _column_sum_spec,
    "linear:column_sum",
    _column_sum_code,
    by_column=True,
    workspace=24,
)
scale = Op("scale", _EW, elementwise("scale", count=1, small=lambda _: (1,)), "linear:scale", _scale_code)
delta = Op("delta", _EW, elementwise("delta", W, D, count=2), "linear:delta", _delta_code)
apply_delta = Op("apply_delta", _EW, _apply_delta_spec, "linear:apply_delta", _apply_delta_code)
affine = Op(
    "affine", _EW, elementwise("affine", count=1, small=lambda _: (2,)), "linear:affine", _affine_code
)
line = Op("line", _EW, elementwise("line", count=1, small=lambda _: (2,)), "linear:line", _line_code)
gate = Op("gate", _EW, elementwise("gate", W, count=1), "linear:gate", _gate_code)
"""Router rows: what is random or was computed from prompts takes its place as weights."""
nearswap = Op(
    "nearswap",
    _EW,
    elementwise("nearswap", W, count=2, small=lambda _: (1,)),
    "linear:nearswap",
    _nearswap_code,
)


def load(slot: int, spec: TensorSpec) -> Node:
    """The checkpoint tensor of `spec` bound to `slot`, in the dtype it is stored in."""
    return node(LOAD, slot=slot, dtype=spec.dtype.name, shape=spec.shape)


def numel(x: Any) -> int:
    """Number of elements of a node or a tensor."""
    return x.spec.numel if isinstance(x, Node) else int(x.numel())


def is_float64(x: Any) -> bool:
    """Whether arithmetic on a node or a tensor is done in float64."""
    return x.spec.dtype is DType.F64 if isinstance(x, Node) else str(x.dtype) == "torch.float64"


def columns(x: Any) -> int:
    """Number of vectors along the first axis of a node or a tensor."""
    return columns_of(x.spec if isinstance(x, Node) else TensorSpec(tuple(x.shape), DType.F32))
