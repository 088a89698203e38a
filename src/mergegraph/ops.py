"""The instruction set: every op the engine can execute, as data.

An op is a name, a locality, a spec rule, a kernel, and (for the CPU) a rule that spells one element
of it as generated code. STAT operands come last; element *i* of STAT operand ``w`` is spelled
``w_i`` in generated code. Formulas stand next to the methods that use them, in `mergegraph.methods`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergegraph.errors import GraphError
from mergegraph.graph.node import Locality, Node, Op, Real, node
from mergegraph.tensorspec import DType, Space, TensorSpec

Attrs = dict[str, Any]
Code = tuple[list[str], str]


# ---- spec rules -----------------------------------------------------------------------------


def _split(specs: Sequence[TensorSpec]) -> tuple[Sequence[TensorSpec], Sequence[TensorSpec]]:
    """Tensors, then the statistics that stand last."""
    count = sum(s.space is not Space.STAT for s in specs)
    return specs[:count], specs[count:]


def _tile(name: str, specs: Sequence[TensorSpec], space: Space, result: Space) -> TensorSpec:
    """All `specs` in `space`, of one shape and arithmetic dtype → `result` in the compute dtype."""
    _tensors(name, specs)
    for spec in specs:
        if spec.shape != specs[0].shape:
            raise GraphError(f"{name} cannot combine shapes {specs[0].shape} and {spec.shape}")
        if spec.space is not space:
            raise GraphError(f"{name} takes {space.value} tensors, not a {spec.space.value}")
        if not spec.dtype.arithmetic:
            raise GraphError(f"{name} cannot do arithmetic on {spec.dtype.torch_name}")
    wide = any(spec.dtype is DType.F64 for spec in specs)
    return TensorSpec(specs[0].shape, DType.F64 if wide else DType.F32, result)


def _tensors(name: str, specs: Sequence[TensorSpec], count: int | None = None) -> Sequence[TensorSpec]:
    """`specs`, provided that they are tensors: `count` of them, or one at least."""
    if any(s.space is Space.STAT for s in specs):
        raise GraphError(f"{name} takes tensors, not statistics")
    if not specs or count not in (None, len(specs)):
        raise GraphError(f"{name} takes {count or 'one or more'} tensors, not {len(specs)}")
    return specs


def _stats(name: str, specs: Sequence[TensorSpec], *shapes: int | tuple[int, ...]) -> None:
    """Check that `specs` are float64 statistics of these shapes."""
    wanted = tuple((s,) if isinstance(s, int) else s for s in shapes)
    found = tuple(s.shape for s in specs)
    if found != wanted:
        raise GraphError(f"{name} takes statistics of shapes {wanted}, not {found}")
    if any(s.space is not Space.STAT for s in specs):
        raise GraphError(f"{name} takes a statistic, not a tensor")
    if any(s.dtype is not DType.F64 for s in specs):
        raise GraphError(f"{name} takes float64 statistics, not counts")


def _load_spec(_: Sequence[TensorSpec], attrs: Attrs) -> TensorSpec:
    return TensorSpec(attrs["shape"], DType[attrs["dtype"]])


def _cast_spec(specs: Sequence[TensorSpec], attrs: Attrs) -> TensorSpec:
    (spec,) = _tensors("cast", specs, 1)
    dtype = DType.__members__.get(attrs["dtype"])
    if dtype is None:
        raise GraphError(f"there is no dtype {attrs['dtype']!r}")
    if not (spec.dtype.arithmetic and dtype.arithmetic):
        raise GraphError(f"cannot cast {spec.dtype.torch_name} to {dtype.torch_name}")
    return TensorSpec(spec.shape, dtype, spec.space)


def _identical_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    _tensors("identical", specs)
    if any(spec != specs[0] for spec in specs):
        raise GraphError("only tensors of one shape and dtype can be identical")
    return specs[0]


def _weighted_sum_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    tiles, stats = _split(specs)
    _stats("weighted_sum", stats, len(tiles))
    space = tiles[0].space if tiles else Space.WEIGHT
    return _tile("weighted_sum", tiles, space, space)


def _scale_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    _stats("scale", specs[1:], 1)
    _tensors("scale", specs[:1], 1)
    return _tile("scale", specs[:1], specs[0].space, specs[0].space)


def _delta_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    return _tile("delta", _tensors("delta", specs, 2), Space.WEIGHT, Space.DELTA)


def _apply_delta_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    _stats("apply_delta", specs[2:], 1)
    base, delta = _tensors("apply_delta", specs[:2], 2)
    if delta.space is not Space.DELTA:
        raise GraphError("apply_delta adds a delta to a weight")
    return _tile("apply_delta", [base, TensorSpec(delta.shape, delta.dtype)], Space.WEIGHT, Space.WEIGHT)


def _trim_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    _stats("trim", specs[1:], 1)
    return _tile("trim", specs[:1], Space.DELTA, Space.DELTA)


def _elect_sign_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    return _tile("elect_sign", specs, Space.DELTA, Space.DELTA)


def _disjoint_merge_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    tiles, stats = _split(specs)
    if len(tiles) < 2:
        raise GraphError("disjoint_merge takes a sign and at least one delta")
    _stats("disjoint_merge", stats, len(tiles) - 1)
    return _tile("disjoint_merge", tiles, Space.DELTA, Space.DELTA)


def _gram_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    _tile("gram", specs, _tensors("gram", specs)[0].space, Space.STAT)
    return TensorSpec((len(specs), len(specs)), DType.F64, Space.STAT)


def _slerp_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    _stats("slerp", specs, (2, 2), 1)
    return TensorSpec((2,), DType.F64, Space.STAT)


def _histogram_spec(specs: Sequence[TensorSpec], attrs: Attrs) -> TensorSpec:
    (spec,) = _tensors("histogram", specs[:1], 1)
    wide = _tile("histogram", [spec], spec.space, Space.STAT).dtype is DType.F64
    if attrs["width"] != (63 if wide else 31):
        raise GraphError(f"histogram cannot count {attrs['width']} magnitude bits of {spec.dtype.torch_name}")
    _prefix("histogram", specs[1:], int(attrs["shift"] + attrs["bits"] < attrs["width"]))
    return TensorSpec((1 << attrs["bits"],), DType.I64, Space.STAT)


def _prefix(name: str, specs: Sequence[TensorSpec], count: int) -> None:
    """A prefix is the bits found so far and a rank: the plan's rank, or the result of a `select`."""
    if len(specs) != count or any(s.space is not Space.STAT or s.shape != (2,) for s in specs):
        raise GraphError(f"{name} takes {count} prefixes of the bits (a statistic of length 2)")


def _select_spec(specs: Sequence[TensorSpec], attrs: Attrs) -> TensorSpec:
    if not specs or specs[0] != TensorSpec((1 << attrs["bits"],), DType.I64, Space.STAT):
        raise GraphError("select takes the counts of a histogram")
    _prefix("select", specs[1:], 1)
    return TensorSpec((2,), DType.I64, Space.STAT)


def _l1_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    _tile("l1_norm", specs, _tensors("l1_norm", specs, 1)[0].space, Space.STAT)
    return TensorSpec((1,), DType.F64, Space.STAT)


def _factor_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    _stats("restoring_factor", specs, 1, 1)
    return TensorSpec((1,), DType.F64, Space.STAT)


def _threshold_spec(specs: Sequence[TensorSpec], _: Attrs) -> TensorSpec:
    _prefix("threshold", specs, 1)
    return TensorSpec((1,), DType.F64, Space.STAT)


# ---- one element of each op, as generated code -----------------------------------------------


def _weighted_sum_code(args: Sequence[str], _: Attrs, __: Real, ___: str) -> Code:
    *xs, w = args
    return [], " + ".join(f"{w}_{i} * {x}" for i, x in enumerate(xs))


def _scale_code(args: Sequence[str], _: Attrs, __: Real, ___: str) -> Code:
    return [], f"{args[0]} * {args[1]}_0"


def _delta_code(args: Sequence[str], _: Attrs, __: Real, ___: str) -> Code:
    return [], f"{args[0]} - {args[1]}"


def _apply_delta_code(args: Sequence[str], _: Attrs, __: Real, ___: str) -> Code:
    return [], f"{args[0]} + {args[1]} * {args[2]}_0"


def _trim_code(args: Sequence[str], _: Attrs, real: Real, __: str) -> Code:
    # Written so that NaN stays NaN and is reported, instead of being trimmed away.
    return [], f"{real.zero} if abs({args[0]}) < {args[1]}_0 else {args[0]}"


def _elect_sign_code(args: Sequence[str], _: Attrs, real: Real, __: str) -> Code:
    return [], f"{real.one} if {' + '.join(args)} >= {real.zero} else -{real.one}"


def _disjoint_merge_code(args: Sequence[str], attrs: Attrs, real: Real, tmp: str) -> Code:
    # Selects on products, not nested conditions: LLVM vectorises these, but not branches.
    sign, *xs, w = args
    agrees = [f"not {x} * {sign} <= {real.zero}" for x in xs]
    total = " + ".join(f"({x} if {agree} else {real.zero})" for x, agree in zip(xs, agrees, strict=True))
    if not attrs["normalize"]:
        return [], total
    weights = " + ".join(f"({w}_{i} if {agree} else {real.zero})" for i, agree in enumerate(agrees))
    lines = [f"{tmp}n = {weights}", f"{tmp}d = {tmp}n if {tmp}n != {real.zero} else {real.one}"]
    return lines, f"({total}) / {tmp}d"


def _cast_code(args: Sequence[str], attrs: Attrs, _: Real, __: str) -> Code:
    return [], f"round_{attrs['dtype'].lower()}({args[0]})"


# ---- the ops ---------------------------------------------------------------------------------

_ELEMENTWISE = Locality.ELEMENTWISE

LOAD = Op("load", Locality.SOURCE, _load_spec)
IDENTICAL = Op("identical", _ELEMENTWISE, _identical_spec, "linear:identical")
cast = Op("cast", _ELEMENTWISE, _cast_spec, "linear:cast", _cast_code)
weighted_sum = Op("weighted_sum", _ELEMENTWISE, _weighted_sum_spec, "linear:weighted_sum", _weighted_sum_code)
scale = Op("scale", _ELEMENTWISE, _scale_spec, "linear:scale", _scale_code)
delta = Op("delta", _ELEMENTWISE, _delta_spec, "linear:delta", _delta_code)
apply_delta = Op("apply_delta", _ELEMENTWISE, _apply_delta_spec, "linear:apply_delta", _apply_delta_code)
trim = Op("trim", _ELEMENTWISE, _trim_spec, "consensus:trim", _trim_code)
elect_sign = Op("elect_sign", _ELEMENTWISE, _elect_sign_spec, "consensus:elect_sign", _elect_sign_code)
disjoint_merge = Op(
    "disjoint_merge", _ELEMENTWISE, _disjoint_merge_spec, "consensus:disjoint_merge", _disjoint_merge_code
)
gram = Op("gram", Locality.REDUCE, _gram_spec, "spherical:GRAM")
slerp = Op("slerp", Locality.SMALL, _slerp_spec, "spherical:slerp_weights")
histogram = Op("histogram", Locality.REDUCE, _histogram_spec, "select:HISTOGRAM")
select = Op("select", Locality.SMALL, _select_spec, "select:select_bin")
threshold = Op("threshold", Locality.SMALL, _threshold_spec, "select:threshold")

l1_norm = Op("l1_norm", Locality.REDUCE, _l1_spec, "norms:L1")
restoring_factor = Op("restoring_factor", Locality.SMALL, _factor_spec, "norms:restoring_factor")


def all_ops() -> dict[str, Op]:
    """Every op of this module, by name."""
    return {value.name: value for value in globals().values() if isinstance(value, Op)}


# ---- compositions that several methods share ---------------------------------------------------


def load(slot: int, spec: TensorSpec) -> Node:
    """The checkpoint tensor of `spec` bound to `slot`, in the dtype it is stored in."""
    return node(LOAD, slot=slot, dtype=spec.dtype.name, shape=spec.shape)


def numel(x: Any) -> int:
    """Number of elements of a node or a tensor."""
    return x.spec.numel if isinstance(x, Node) else int(x.numel())


def is_float64(x: Any) -> bool:
    """Whether arithmetic on a node or a tensor is done in float64."""
    return x.spec.dtype is DType.F64 if isinstance(x, Node) else str(x.dtype) == "torch.float64"


def kth_largest_magnitude(x: Any, k: int) -> Any:
    """The exact k-th largest ``|x|`` (1 ≤ k ≤ numel), by radix selection on the float bits.

    Each level is one pass: a histogram of the next most significant bits among the elements that
    share the prefix found so far. float32 has 31 magnitude bits and takes two passes, float64 four.
    No sort, no copy; the result depends on the multiset of magnitudes only.
    """
    width, levels = (63, (16, 16, 16, 15)) if is_float64(x) else (31, (16, 15))
    shift, prefix = width, None
    for bits in levels:
        shift -= bits
        if prefix is None:
            counts = histogram(x, shift=shift, bits=bits, width=width)
            prefix = select(counts, (0.0, float(k)), bits=bits)
        else:
            counts = histogram(x, prefix, shift=shift, bits=bits, width=width)
            prefix = select(counts, prefix, bits=bits)
    return threshold(prefix, width=width)


def keep_largest(x: Any, density: float) -> Any:
    """Zero all but the ``max(1, ⌊density·N⌋)`` largest magnitudes of the tensor, and their equals.

    Density 1 keeps everything, density 0 nothing. Elements equal to the threshold are all kept, as in
    the TIES authors' code, so the result does not depend on any order.
    """
    count = numel(x)
    if density >= 1 or count == 0:
        return x
    if density <= 0:
        return trim(x, float("inf"))
    return trim(x, kth_largest_magnitude(x, max(1, int(density * count))))


def restore_l1(x: Any, original: Any) -> Any:
    """Scale `x` so that its L1 norm is that of `original` again."""
    return scale(x, restoring_factor(l1_norm(original), l1_norm(x)))
