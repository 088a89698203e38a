"""Generating the CPU code of a phase: one fused loop per result, reading stored bits directly.

The code of a phase depends on its structure only (ops, dtypes, which operand goes where); numbers
are parameters. So a whole merge needs a handful of functions, and equal phases share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mergegraph.graph.node import Locality, Node, Real
from mergegraph.kernels.reduction import BLOCK, CHUNK
from mergegraph.schedule.program import Phase
from mergegraph.tensorspec import DType

_F32 = Real("f32", "f32(0.0)", "f32(1.0)")
_F64 = Real("f64", "0.0", "1.0")
_READ = {DType.BF16: "up_bf16({})", DType.F16: "up_f16({})", DType.F32: "{}", DType.F64: "{}"}
_WRITE = {DType.BF16: "down_bf16({})", DType.F16: "down_f16({})", DType.F32: "f32({})", DType.F64: "f64({})"}
_EXPONENT = {
    DType.BF16: "u16({} & u16(0x7F80))",
    DType.F16: "u16({} & u16(0x7C00))",
    DType.F32: "u32(f32({}).view(u32) & u32(0x7F800000))",
    DType.F64: "u64(f64({}).view(u64) & u64(0x7FF0000000000000))",
}
_ALL_ONES = {
    DType.BF16: "u16(0x7F80)",
    DType.F16: "u16(0x7C00)",
    DType.F32: "u32(0x7F800000)",
    DType.F64: "u64(0x7FF0000000000000)",
}
_HEADER = """\
from mergegraph.kernels.fused import (
    down_bf16, down_f16, f32, f64, normal, round_bf16, round_f16, round_f32, round_f64, u16, u32, u64,
    uniform, up_bf16, up_f16,
)
from mergegraph.kernels.fused_folds import (
    fold_columns, fold_gram, fold_gram2, fold_gram3, fold_gram4, fold_l1, fold_nonzero, fold_overlap,
    fold_squares,
)
from mergegraph.kernels.fused_ranks import row_drop32, row_drop64, row_keep, row_kept
from mergegraph.kernels.fused_select import (
    fold_magnitudes32, fold_magnitudes64, fold_select32, fold_select64,
)
from mergegraph.kernels.fused_rows import row_arc, row_divergence, row_stock

"""


def real_of(node: Node) -> Real:
    """The float type that a tile op computes in."""
    return _F64 if node.spec.dtype is DType.F64 and not node.is_row else _F32


def row_real(node: Node) -> Real:
    """The float type in which a ROWWISE op sees its operands."""
    return _F64 if any(x.spec.dtype is DType.F64 for x in node.inputs if not x.is_stat) else _F32


def tile_source(phase: Phase) -> str:
    """Return the module text whose ``run`` computes `phase` on one tile.

    ``run(n, at, begin, columns, chunk, x0…, p0…, [k0…], [q0…], [u0…], [rb0, ro0…], [s0, b0…] | [out])``: n
    elements, the first of which is number `at` of the tensor and `begin` of the piece; the row length and
    chunk of phases that work on rows or columns; the loads; the statistics as float64 or int64 arrays; where
    to keep numbers of rows, and marks of what rows keep; marks kept before (of all these, and of numbers kept
    before, the first row is the tile's); for each ROWWISE op a block and a result; for each reduction its
    state rows and a block; or the output. It returns the number of non-finite elements written.
    """
    return _HEADER + "\n".join(_Writer(phase).lines()) + "\n"


class _Writer:
    """Writes the code of one phase.

    Locals: ``v`` elements of loads, ``t`` of body ops, ``p`` statistics, ``ro`` rows' results. Without
    ROWWISE ops the tile is cut into blocks for reductions, with them into rows for everything.
    """

    def __init__(self, phase: Phase) -> None:
        self.phase = phase
        self.names = {load.key: f"v{i}" for i, load in enumerate(phase.loads)}
        self.names |= {n.key: f"t{i}" for i, n in enumerate(phase.body)}
        self.names |= {stat.key: f"p{i}" for i, stat in enumerate(phase.stats)}
        self.names |= {n.key: f"ro{i}" for i, n in enumerate(phase.rows)}

    def lines(self) -> Iterator[str]:
        """The function, line by line."""
        phase = self.phase
        names = ["n", "at", "begin", "columns", "chunk"]
        names += [f"x{i}" for i in range(len(phase.loads))] + [f"p{i}" for i in range(len(phase.stats))]
        names += [f"k{i}" for i in range(len(phase.kept))]
        names += [f"q{i}" for i in range(len(phase.marks))] + [f"u{i}" for i in range(len(phase.marked))]
        names += [f"{kind}{i}" for i in range(len(phase.rows)) for kind in ("rb", "ro")]
        names += [f"{kind}{i}" for i in range(len(phase.reductions)) for kind in ("s", "b")]
        yield f"def run({', '.join([*names, *(['out'] if phase.result is not None else [])])}):"
        yield from _indented(self._hoisted())
        yield "    bad = 0"
        yield from _indented(self._by_rows() if phase.by_rows else self._by_blocks())
        yield "    return bad"

    def _by_blocks(self) -> Iterator[str]:
        if self.phase.reductions:
            yield f"for lo in range(0, n, {BLOCK}):"
            yield f"    m = min({BLOCK}, n - lo)"
            yield from _indented(self._slices())
            yield from _indented(self._folds(str(CHUNK)))
        if self.phase.result is None:
            return
        if any(n.op.by_column for n in self.phase.body):
            yield from self._by_columns(self.phase.result)
        else:
            yield "lo, m = 0, n"
            yield from self._slices()
            yield from self._write(self.phase.result)

    def _by_columns(self, result: Node) -> Iterator[str]:
        """Loop over stretches of columns: a division for each element would cost more than all else."""
        yield "lo = 0"
        yield "while lo < n:"
        yield "    c = (begin + lo) % columns"
        yield "    m = min(columns - c, n - lo)"
        yield from _indented(self._slices())
        yield from _indented(self._write(result, "k = c + j"))
        yield "    lo += m"

    def _by_rows(self) -> Iterator[str]:
        yield "m = columns"
        yield "for lo in range(0, n, columns):"
        yield from _indented(self._slices())
        for known in self.phase.known_rows:
            name = self.names[known.key]
            yield from _indented(_numbers(name, f"{name}[lo // columns]", known))
        for r, row in enumerate(self.phase.rows):
            yield from _indented(self._row(r, row))
        yield from _indented(self._folds("chunk"))
        if self.phase.result is not None:
            yield from _indented(self._write(self.phase.result))

    def _slices(self) -> Iterator[str]:
        """Views of the m elements from `lo` on: loops over ``x[lo + j]`` would not vectorise."""
        yield from (f"y{i} = x{i}[lo : lo + m]" for i in range(len(self.phase.loads)))
        if self.phase.result is not None:
            yield "o = out[lo : lo + m]"

    def _row(self, r: int, row: Node) -> Iterator[str]:
        """Fill a ROWWISE op's block, call it, and make its per-row numbers locals."""
        real = row_real(row)
        for k, operand in enumerate(x for x in row.inputs if not x.is_stat):
            yield f"line = rb{r}[{k}]"
            yield "for j in range(m):"
            yield from _indented(self._element(operand))
            yield f"    line[j] = {real.type}({self._value(operand)})"
        if row in self.phase.marked:
            yield f"row_keep(rb{r}, m, ro{r}, u{self.phase.marked.index(row)}[lo // columns])"
            return
        stats = [f"{self.names[x.key]}f64_{i}" for x in row.inputs if x.is_stat for i in range(x.spec.numel)]
        function = row.op.row.format(width=64 if real is _F64 else 32)
        first = ["at + lo"] if row.op.indexed else []
        yield f"{function}({', '.join([f'rb{r}', 'm', f'ro{r}', *first, *stats])})"
        if row in self.phase.marks:
            yield f"row_kept(ro{r}, m, q{self.phase.marks.index(row)}[lo // columns])"
        if row in self.phase.kept:
            yield f"k{self.phase.kept.index(row)}[lo // columns] = ro{r}"
        if row.is_row:
            yield from _numbers(f"ro{r}", f"ro{r}", row)

    def _folds(self, chunk: str) -> Iterator[str]:
        """One loop per operand into a block (so that each vectorises), then the fold.

        Folds of the same operands, as those that look for several quantiles, share the first one's block.
        """
        filled: dict[tuple[bytes, ...], str] = {}
        for r, reduction in enumerate(self.phase.reductions):
            operands = tuple(x for x in reduction.inputs if not x.is_stat)
            block = filled.setdefault(tuple(x.key for x in operands), f"b{r}")
            for k, operand in enumerate(operands if block == f"b{r}" else ()):
                yield f"line = b{r}[{k}]"
                yield "for j in range(m):"
                yield from _indented(self._element(operand))
                yield f"    line[j] = {self._value(operand)}"
            kernel = reduction.op.implementation
            several = kernel.per_chunk and kernel.chunks(reduction.attributes) == 1
            row = f"lo // {chunk}" if several else "0"
            stats = [self.names[x.key] for x in reduction.inputs if x.is_stat]
            attrs = {**reduction.attributes, "arity": len(operands)}
            yield kernel.code(block, "m", f"s{r}[{row}]", stats, attrs)

    def _write(self, root: Node, *before: str) -> Iterator[str]:
        """Store the m elements from `lo` on, and count those that are not finite if there are any."""
        # A final cast is the store itself.
        source = root.inputs[0] if root.op.name == "cast" else root
        dtype = root.spec.dtype
        ones = _ALL_ONES[dtype]
        # A count in the loop would cost as much as all else: its lanes are wider than those of the output.
        yield f"top = {ones[:3]}(0)"
        yield "for j in range(m):"
        yield from _indented(before)
        yield from _indented(self._element(source))
        yield f"    word = {_WRITE[dtype].format(self._value(source))}"
        yield "    o[j] = word"
        yield f"    exponent = {_EXPONENT[dtype].format('word')}"
        yield "    top = exponent if exponent > top else top"
        yield f"if top == {ones}:"
        yield "    for j in range(m):"
        yield f"        bad += 1 if {_EXPONENT[dtype].format('o[j]')} == {ones} else 0"

    def _element(self, root: Node) -> Iterator[str]:
        """Statements that leave the value of `root` at element `lo + j` in its local variable."""
        wanted = _below(root)
        for i, load in enumerate(self.phase.loads):
            if load.key in wanted:
                yield f"v{i} = {_READ[load.spec.dtype].format(f'y{i}[j]')}"
        if any(n.op.indexed for n in self.phase.body if n.key in wanted):
            yield "e = at + lo + j"
        for i, n in enumerate(self.phase.body):
            if n.key not in wanted or n.op.scalar is None:
                continue
            args = [self._operand(x, n) for x in n.inputs]
            before, value = n.op.scalar(args, n.attributes, real_of(n), f"t{i}")
            yield from before
            yield f"t{i} = {value}"

    def _operand(self, x: Node, user: Node) -> str:
        name, real = self.names[x.key], real_of(user)
        if len(x.spec.shape) == 2 and x.is_stat:
            return name
        if x.is_stat or x.is_row:
            return name + real.type
        value = self._value(x)
        return f"f64({value})" if real is _F64 and x.spec.dtype is not DType.F64 else value

    def _value(self, x: Node) -> str:
        """The current element of a tile value: of a whole row, element j."""
        name = self.names[x.key]
        return f"{name}[j]" if x.op.locality is Locality.ROWWISE else name

    def _hoisted(self) -> Iterator[str]:
        """Statistics become locals, once per float type: the loops must not reload them."""
        used = {(x.key, real_of(n).type) for n in self.phase.body for x in n.inputs if x.is_stat}
        used |= {(x.key, "f64") for n in self.phase.rows for x in n.inputs if x.is_stat}
        for i, stat in enumerate(self.phase.stats):
            if len(stat.spec.shape) == 2:
                continue  # numbers for each column are looked up element by element
            if stat.spec.dtype is DType.I64:
                yield from (f"p{i}_{j} = p{i}[{j}]" for j in range(stat.spec.numel))
            for kind in ("f32", "f64"):
                if (stat.key, kind) in used and stat.spec.dtype is not DType.I64:
                    yield from (f"p{i}{kind}_{j} = {kind}(p{i}[{j}])" for j in range(stat.spec.numel))


def _numbers(name: str, source: str, row: Node) -> Iterator[str]:
    """Statements that make the numbers of one row locals, once per float type."""
    for kind in ("f32", "f64"):
        yield from (f"{name}{kind}_{i} = {kind}({source}[{i}])" for i in range(row.spec.shape[1]))


def _indented(lines: Iterable[str], by: int = 4) -> Iterator[str]:
    return (" " * by + line for line in lines)


def _below(root: Node) -> set[bytes]:
    """`root` and what it is computed from element by element; the results of rows are there already."""
    found, stack = {root.key}, [root]
    while stack:
        current = stack.pop()
        if current.op.locality is Locality.ROWWISE:
            continue
        for x in current.inputs:
            if not x.is_stat and x.key not in found:
                found.add(x.key)
                stack.append(x)
    return found
