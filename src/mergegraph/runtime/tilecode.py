"""Generating the CPU code of a phase: one fused loop per result, reading stored bits directly.

The code of a phase depends on its structure only (ops, dtypes, which operand goes where); numbers
are parameters. So a whole merge needs a handful of functions, and equal phases share one.
"""

from __future__ import annotations

from collections.abc import Iterable

from mergegraph.graph.node import Node, Real
from mergegraph.kernels.fused import BLOCK
from mergegraph.kernels.reduction import CHUNK
from mergegraph.schedule.tiling import Phase
from mergegraph.tensorspec import DType

_F32 = Real("f32", "f32(0.0)", "f32(1.0)")
_F64 = Real("f64", "0.0", "1.0")
_READ = {DType.BF16: "up_bf16({})", DType.F16: "up_f16({})", DType.F32: "{}", DType.F64: "{}"}
_WRITE = {DType.BF16: "down_bf16({})", DType.F16: "down_f16({})", DType.F32: "f32({})", DType.F64: "f64({})"}
_NOT_FINITE = {
    DType.BF16: "(word & u16(0x7F80)) == u16(0x7F80)",
    DType.F16: "(word & u16(0x7C00)) == u16(0x7C00)",
    DType.F32: "not (abs(word) <= f32(3.4028234663852886e38))",
    DType.F64: "not (abs(word) <= 1.7976931348623157e308)",
}
_HEADER = (
    "from mergegraph.kernels.fused import (\n"
    "    down_bf16, down_f16, f32, f64, fold_gram, fold_histogram32, fold_histogram64, fold_l1,\n"
    "    fold_histogram_within32, fold_histogram_within64, jit, round_bf16,\n"
    "    round_f16, round_f32, round_f64, u16, u32, up_bf16, up_f16,\n)\n\n"
)


def real_of(node: Node) -> Real:
    """The float type that a tile op computes in."""
    return _F64 if node.spec.dtype is DType.F64 else _F32


def tile_source(phase: Phase) -> str:
    """Return the module text whose ``run`` computes `phase` on one tile.

    ``run(n, x0…, p0…, [s0, b0…] | [out])``: n elements; the loads; the statistics as
    float64 or int64 vectors; for each reduction its state rows and a scratch block; or the output.
    It returns the number of non-finite elements written.
    """
    loads = [f"x{i}" for i in range(len(phase.loads))]
    stats = [f"p{i}" for i in range(len(phase.stats))]
    folds = [f"{kind}{i}" for i in range(len(phase.reductions)) for kind in ("s", "b")]
    out = ["out"] if phase.result is not None else []
    lines = [f"def run({', '.join(['n', *loads, *stats, *folds, *out])}):"]
    lines += [f"    {line}" for line in _hoist(phase)]
    if phase.reductions:
        lines += [f"    {line}" for line in _fold_loops(phase)]
    lines += [f"    {line}" for line in (_write_loop(phase) if phase.result else ["return 0"])]
    return _HEADER + "@jit\n" + "\n".join(lines) + "\n"


def _hoist(phase: Phase) -> Iterable[str]:
    """Statistics become locals, once per float type: the loops must not reload them."""
    used = {(x.key, real_of(n).type) for n in phase.body for x in n.inputs if x.is_stat}
    for i, stat in enumerate(phase.stats):
        if stat.spec.dtype is DType.I64:
            yield from (f"p{i}_{j} = p{i}[{j}]" for j in range(stat.spec.numel))
        for kind in ("f32", "f64"):
            if (stat.key, kind) in used and stat.spec.dtype is not DType.I64:
                yield from (f"p{i}{kind}_{j} = {kind}(p{i}[{j}])" for j in range(stat.spec.numel))


def _names(phase: Phase) -> dict[bytes, str]:
    names = {load.key: f"v{i}" for i, load in enumerate(phase.loads)}
    names |= {n.key: f"t{i}" for i, n in enumerate(phase.body)}
    return names | {stat.key: f"p{i}" for i, stat in enumerate(phase.stats)}


def _element(phase: Phase, root: Node, index: str) -> list[str]:
    """Statements that leave the value of `root` at element `index` in its local variable."""
    names, lines, wanted = _names(phase), [], _below(root)
    for i, load in enumerate(phase.loads):
        if load.key in wanted:
            lines.append(f"v{i} = {_READ[load.spec.dtype].format(f'x{i}[{index}]')}")
    for i, n in enumerate(phase.body):
        if n.key not in wanted or n.op.scalar is None:
            continue
        args = [_operand(x, n, names) for x in n.inputs]
        before, value = n.op.scalar(args, n.attributes, real_of(n), f"t{i}")
        lines += [*before, f"t{i} = {value}"]
    return lines


def _operand(x: Node, user: Node, names: dict[bytes, str]) -> str:
    if x.is_stat:
        return names[x.key] + real_of(user).type
    widen = real_of(user) is _F64 and x.spec.dtype is not DType.F64
    return f"f64({names[x.key]})" if widen else names[x.key]


def _below(root: Node) -> set[bytes]:
    found, stack = {root.key}, [root]
    while stack:
        for x in stack.pop().inputs:
            if not x.is_stat and x.key not in found:
                found.add(x.key)
                stack.append(x)
    return found


def _fold_loops(phase: Phase) -> Iterable[str]:
    """Block by block: one loop per operand into scratch (so each vectorises), then the fold."""
    names = _names(phase)
    yield f"for lo in range(0, n, {BLOCK}):"
    yield f"    m = min({BLOCK}, n - lo)"
    for r, reduction in enumerate(phase.reductions):
        operands = [x for x in reduction.inputs if not x.is_stat]
        for k, operand in enumerate(operands):
            yield "    for j in range(m):"
            yield from (f"        {line}" for line in _element(phase, operand, "lo + j"))
            yield f"        b{r}[{k}, j] = {names[operand.key]}"
        kernel = reduction.op.implementation
        row = f"lo // {CHUNK}" if kernel.per_chunk else "0"
        extra = [names[x.key] for x in reduction.inputs if x.is_stat]
        yield "    " + kernel.code(f"b{r}", "m", f"s{r}[{row}]", extra, reduction.attributes)


def _write_loop(phase: Phase) -> Iterable[str]:
    root = phase.result
    assert root is not None
    names, dtype = _names(phase), root.spec.dtype
    value = names[root.key]
    # A final cast is the store itself.
    source = root.inputs[0] if root.op.name == "cast" else root
    yield "bad = 0"
    yield "for i in range(n):"
    yield from (f"    {line}" for line in _element(phase, source, "i"))
    value = names[source.key]
    yield f"    word = {_WRITE[dtype].format(value)}"
    yield "    out[i] = word"
    yield f"    bad += 1 if {_NOT_FINITE[dtype]} else 0"
    yield "return bad"
