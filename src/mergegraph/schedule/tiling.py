"""Cutting an output's expression into phases at its reductions.

A phase streams tiles: it reads the tile of every source, runs its ops on it, then folds into
reductions or writes the result. What a later phase needs again is recomputed from the sources,
never stored, so memory does not grow with the tensor. Numbers of long rows are the exception: they are
few, and cost more than all else.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from mergegraph.checkpoint.view import View
from mergegraph.errors import GraphError
from mergegraph.graph.graph import Graph, Output, SourceTensor
from mergegraph.graph.node import Locality, Node, walk
from mergegraph.kernels.reduction import CHUNK
from mergegraph.tensorspec import TensorSpec

LONG_ROW = 64
"""Elements of a row from which on its numbers are kept for later phases: then they are few."""


@dataclass(frozen=True)
class Phase:
    """One pass over the tiles of a tensor.

    Attributes:
        small: SMALL nodes to evaluate before it, in order; their operands are known by then.
        loads: sources to read tile by tile.
        body: ops on tiles, operands before users.
        stats: statistics that body and reductions use, and numbers of rows that an earlier phase kept.
        reductions: REDUCE nodes to fold.
        result: the node to write (last phase only).
        kept: ROWWISE ops of the body whose numbers later phases use.
        spent: earlier reductions that nothing uses once `small` is evaluated: histograms are large.
    """

    small: tuple[Node, ...]
    loads: tuple[Node, ...]
    body: tuple[Node, ...]
    stats: tuple[Node, ...]
    reductions: tuple[Node, ...]
    result: Node | None
    kept: tuple[Node, ...] = ()
    spent: tuple[Node, ...] = ()

    @cached_property
    def generated(self) -> bool:
        """Whether the phase can run as generated code: every op says how to compute one element.

        Its loops run over blocks, rows or columns, so an op by column must be the only such thing.
        """
        if any(n.op.by_column for n in self.body) and (self.by_rows or self.reductions):
            return False
        return all(n.op.scalar is not None or n.op.row for n in self.body)

    @cached_property
    def sample(self) -> int:
        """One in so many elements is looked at; 1: all are."""
        return max((_sample(n) for n in self.reductions), default=1)

    @cached_property
    def spare(self) -> bool:
        """Whether it is there for what an earlier phase may not have found out, and usually is skipped."""
        return self.result is None and all(n.attributes.get("spare", False) for n in self.reductions)

    @cached_property
    def streamed_bytes(self) -> int:
        """Bytes that it is expected to read from sources."""
        return 0 if self.spare else sum(load.spec.nbytes for load in self.loads) // self.sample

    @cached_property
    def rows(self) -> tuple[Node, ...]:
        """The ROWWISE ops of the body."""
        return tuple(n for n in self.body if n.op.locality is Locality.ROWWISE)

    @cached_property
    def known_rows(self) -> tuple[Node, ...]:
        """Those of `stats` that are numbers of rows."""
        return tuple(n for n in self.stats if n.is_row)

    @cached_property
    def by_rows(self) -> bool:
        """Whether ops see whole rows, or elements meet the numbers of their row."""
        return bool(self.rows or self.known_rows)

    @cached_property
    def whole(self) -> bool:
        """Whether some op needs the whole tensor at once."""
        return any(n.op.locality is Locality.WHOLE for n in self.body)

    @cached_property
    def shaped(self) -> bool:
        """Whether some op needs rows or the whole tensor, and so sees tiles in their own shape."""
        return self.whole or self.by_rows

    @cached_property
    def unit(self) -> int:
        """Tiles must be multiples of this many elements: 1, a row, or the whole tensor."""
        spec = self.loads[0].spec
        if self.whole:
            return max(1, spec.numel)
        if self.by_rows:
            return max(1, spec.shape[-1] if spec.shape else 1)
        return 1

    @cached_property
    def columns(self) -> int:
        """Length of a row of elements, for ops that see rows or columns; 1 if there are none."""
        for n in self.reductions:
            if n.op.implementation.placed:
                return int(n.attributes["columns"])
        for n in self.body:
            if n.op.by_column:
                return n.inputs[-1].spec.shape[-1]
        return self.unit

    @cached_property
    def stretch(self) -> int:
        """Elements that at most one tile at a time may cover: those that share a row of state."""
        shared = [n.op.implementation.chunks(n.attributes) for n in self.reductions]
        return self.chunk * max(shared, default=1)

    @cached_property
    def chunk(self) -> int:
        """Elements per row of reduction state: fixed by the tensor's shape, never by the tile.

        Always a multiple of 8, so that tiles begin at whole 64-bit words in every dtype.
        """
        if self.unit == 1:
            return CHUNK
        rows = max(1, CHUNK // self.unit)
        return self.unit * (rows if rows * self.unit % 8 == 0 else -(-rows // 8) * 8)


@dataclass(frozen=True, slots=True)
class Program:
    """How one piece of one output tensor is computed: its phases, in order.

    Attributes:
        tensor: output tensor name.
        offset: byte offset of the piece inside that tensor.
        spec: shape and dtype of the piece as written.
        phases: at least one; only the last has a result. Shared by all programs of one expression.
        sources: the checkpoint tensors that the slots of ``load`` nodes stand for.
        streams: for each slot, the random stream of ops that draw at random for it.
        place: where in that tensor its elements go, if some piece of it is not one run from its `offset` on.
        raw: bytes are copied (after a comparison, for ``identical``), not computed.
        window: the part of the expression's elements that is written: the first, and how many; None: all.
    """

    tensor: str
    offset: int
    spec: TensorSpec
    phases: tuple[Phase, ...]
    sources: tuple[SourceTensor, ...]
    streams: tuple[tuple[float, float], ...]
    place: View | None
    raw: bool
    window: tuple[int, int] | None = None

    @property
    def first(self) -> int:
        """Number of the first element that is written."""
        return 0 if self.window is None else self.window[0]

    @property
    def whole(self) -> int:
        """Elements of the expression, written or not."""
        result = self.phases[-1].result
        return self.spec.numel if self.window is None or result is None else result.spec.numel

    def source(self, load: Node) -> SourceTensor:
        """The checkpoint tensor that `load` reads in this program."""
        slot: int = load.attributes["slot"]
        return self.sources[slot]

    @property
    def streamed_bytes(self) -> int:
        """Bytes that are expected to be read from sources over all phases."""
        return sum(phase.streamed_bytes for phase in self.phases)

    @property
    def work_bytes(self) -> int:
        """Bytes read plus bytes written: the unit of progress."""
        return self.streamed_bytes + self.spec.nbytes


def programs(graph: Graph) -> list[Program]:
    """Return the programs of every output, piece by piece, in graph order.

    An expression is cut once, however many outputs share it.
    """
    cuts: dict[bytes, tuple[Phase, ...]] = {}
    return [program for name, output in graph.outputs.items() for program in _of_output(name, output, cuts)]


def _of_output(name: str, output: Output, cuts: dict[bytes, tuple[Phase, ...]]) -> Iterable[Program]:
    offset = 0
    scattered = any(part.place is not None and not part.place.contiguous for part in output.parts)
    for part in output.parts:
        piece = part.expression
        if piece.spec.dtype is not output.spec.dtype:
            raise GraphError(f"{name} is {output.spec.dtype.name}, but a piece is {piece.spec.dtype.name}")
        raw = piece.op.name in ("load", "identical")
        if piece.key not in cuts:
            cuts[piece.key] = _raw_phase(piece) if raw else cut(piece)
        begin = offset if part.place is None else part.place.offset * piece.spec.dtype.bits // 8
        place = part.place if scattered else None
        spec = piece.spec if part.window is None else TensorSpec((part.window[1],), piece.spec.dtype)
        bound = (part.sources, part.streams)
        yield Program(name, begin, spec, cuts[piece.key], *bound, place, raw, part.window)
        offset += spec.nbytes


def _raw_phase(piece: Node) -> tuple[Phase, ...]:
    loads = (piece,) if piece.op.name == "load" else piece.inputs
    return (Phase((), loads, (), (), (), piece),)


def cut(result: Node) -> tuple[Phase, ...]:
    """Cut the expression of `result` at its reductions."""
    order = list(walk([result]))
    ready = _ready(order)
    phases: list[Phase] = []
    known: set[bytes] = set()
    kept = not any(n.op.locality is Locality.WHOLE for n in order)
    for level in range(ready[result.key] + 1):
        reductions = [n for n in order if n.op.locality is Locality.REDUCE and ready[n.key] == level + 1]
        final = result if ready[result.key] == level else None
        small = tuple(n for n in order if n.op.locality is Locality.SMALL and ready[n.key] == level)
        for some in _by_sample(reductions):
            phases.append(_phase(small, some, final, known))
            last, small = phases[-1], ()
            if kept and last.sample == 1 and not last.spare and last.unit >= LONG_ROW:
                known |= {n.key for n in last.rows if n.is_row}
    used = {n.key for phase in phases for n in phase.known_rows}
    needed = {
        x.key: i for i, p in enumerate(phases) for x in (*(y for n in p.small for y in n.inputs), *p.stats)
    }
    found = [(n, needed.get(n.key)) for p in phases for n in p.reductions]
    return tuple(
        replace(
            phase,
            kept=tuple(n for n in phase.rows if n.key in used),
            spent=tuple(n for n, at in found if at == i and n not in phase.stats),
        )
        for i, phase in enumerate(phases)
    )


def _sample(reduction: Node) -> int:
    """One in so many elements is what a REDUCE node looks at."""
    return int(reduction.attributes.get("sample", 1))


def _by_sample(reductions: list[Node]) -> list[tuple[Node, ...]]:
    """Reductions that look at the same elements together; at least one group, which may be empty."""
    sizes = sorted({_sample(n) for n in reductions} or {1}, reverse=True)
    return [tuple(n for n in reductions if _sample(n) == size) for size in sizes]


def _ready(order: list[Node]) -> dict[bytes, int]:
    """The first phase in which each node's value can be used.

    A reduction that would have a pass of its own beside a sample waits for the next pass, if that is in time.
    """
    ready = _ready_after(order, {})
    samples = {ready[n.key] for n in order if n.op.locality is Locality.REDUCE and _sample(n) > 1}
    late = _needed(order, ready)
    put_off = {
        n.key: ready[n.key] + 1
        for n in order
        if n.op.locality is Locality.REDUCE
        and _sample(n) == 1
        and ready[n.key] in samples
        and late[n.key] > ready[n.key]
    }
    return _ready_after(order, put_off) if put_off else ready


def _ready_after(order: list[Node], least: Mapping[bytes, int]) -> dict[bytes, int]:
    ready: dict[bytes, int] = {}
    for node in order:
        latest = max((ready[x.key] for x in node.inputs), default=0)
        ready[node.key] = max(latest + (node.op.locality is Locality.REDUCE), least.get(node.key, 0))
    return ready


def _needed(order: list[Node], ready: Mapping[bytes, int]) -> dict[bytes, int]:
    """The last phase by which each node's value must be there, if the result is not to come later."""
    needed = {order[-1].key: ready[order[-1].key]}
    for node in reversed(order):
        by = needed[node.key] - (node.op.locality is Locality.REDUCE)
        for x in node.inputs:
            needed[x.key] = min(needed.get(x.key, by), by)
    return needed


def _phase(
    small: tuple[Node, ...], reductions: tuple[Node, ...], final: Node | None, known: Container[bytes]
) -> Phase:
    """Collect the loads and tile ops that `reductions` and `final` need, but for rows already `known`."""
    roots = [x for n in reductions for x in n.inputs if not x.is_stat] + ([final] if final else [])
    tiles = list(_tiles(roots, known))
    users = [*(n for n in tiles if n.op.locality is not Locality.SOURCE), *reductions]
    stats = {x.key: x for n in users for x in n.inputs if x.is_stat or x.key in known}
    return Phase(
        small=small,
        loads=tuple(n for n in tiles if n.op.locality is Locality.SOURCE),
        body=tuple(n for n in tiles if n.op.locality is not Locality.SOURCE),
        stats=tuple(stats.values()),
        reductions=reductions,
        result=final,
    )


def _tiles(roots: list[Node], known: Container[bytes]) -> Iterable[Node]:
    """Walk down from `roots` through tile operands that are not `known`, operands before users, each once."""
    seen: set[bytes] = set()
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        current, expanded = stack.pop()
        if expanded:
            yield current
        elif current.key not in seen:
            seen.add(current.key)
            stack.append((current, True))
            below = [x for x in current.inputs if not x.is_stat and x.key not in known]
            stack.extend((x, False) for x in reversed(below))
