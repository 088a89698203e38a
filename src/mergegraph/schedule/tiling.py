"""Cutting an output's expression into phases at its reductions.

A phase streams tiles: it reads the tile of every source, runs its ops on it, then folds into
reductions or writes the result. What a later phase needs again is recomputed from the sources,
never stored, so memory does not grow with the tensor. What is small and costs more than all else is the
exception: numbers of long rows, and marks of which elements a row keeps, one bit each.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace

from mergegraph.errors import GraphError
from mergegraph.graph.graph import Graph, Output
from mergegraph.graph.node import Locality, Node, walk
from mergegraph.schedule.program import Phase, Program, marks_bytes, sample_of
from mergegraph.tensorspec import TensorSpec

LONG_ROW = 64
"""Elements of a row from which on its numbers are kept for later phases: then they are few."""
MARKS_BYTES = 32 * 2**20
"""Most bytes of marks of one expression; above, which elements a row keeps is found out again."""


def programs(graph: Graph, *, marking: bool = True) -> list[Program]:
    """Return the programs of every output, piece by piece, in graph order.

    An expression is cut once, however many outputs share it. Without `marking`, nothing is kept of elements.
    """
    cuts: dict[bytes, tuple[Phase, ...]] = {}
    return [p for name, output in graph.outputs.items() for p in _of_output(name, output, cuts, marking)]


def _of_output(
    name: str, output: Output, cuts: dict[bytes, tuple[Phase, ...]], marking: bool
) -> Iterable[Program]:
    offset = 0
    scattered = any(part.place is not None and not part.place.contiguous for part in output.parts)
    for part in output.parts:
        piece = part.expression
        if piece.spec.dtype is not output.spec.dtype:
            raise GraphError(f"{name} is {output.spec.dtype.name}, but a piece is {piece.spec.dtype.name}")
        raw = piece.op.name in ("load", "identical")
        if piece.key not in cuts:
            cuts[piece.key] = _raw_phase(piece) if raw else cut(piece, marking=marking)
        begin = offset if part.place is None else part.place.offset * piece.spec.dtype.bits // 8
        place = part.place if scattered else None
        spec = piece.spec if part.window is None else TensorSpec((part.window[1],), piece.spec.dtype)
        bound = (part.sources, part.streams)
        yield Program(name, begin, spec, cuts[piece.key], *bound, place, raw, part.window)
        offset += spec.nbytes


def _raw_phase(piece: Node) -> tuple[Phase, ...]:
    loads = (piece,) if piece.op.name == "load" else piece.inputs
    return (Phase((), loads, (), (), (), piece),)


def cut(result: Node, *, marking: bool = True) -> tuple[Phase, ...]:
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
    done = tuple(
        replace(
            phase,
            kept=tuple(n for n in phase.rows if n.key in used),
            spent=tuple(n for n, at in found if at == i and n not in phase.stats),
        )
        for i, phase in enumerate(phases)
    )
    return _with_marks(done) if marking else done


def _with_marks(phases: tuple[Phase, ...]) -> tuple[Phase, ...]:
    """Have the first full pass over rows mark what they keep for the later ones, where that is worth it."""
    if not all(phase.generated for phase in phases):
        return phases
    first: dict[bytes, int] = {}
    later: dict[bytes, Node] = {}
    for i, phase in enumerate(phases):
        for n in phase.rows:
            if n.op.sparse and n.key in first:
                later[n.key] = n
            elif n.op.sparse and phase.sample == 1 and not phase.spare and phase.unit >= LONG_ROW:
                first[n.key] = i
    if sum(map(marks_bytes, later.values())) > MARKS_BYTES:
        return phases
    return tuple(
        replace(
            phase,
            marks=tuple(n for n in phase.rows if n.key in later and first[n.key] == i),
            marked=tuple(n for n in phase.rows if n.key in later and first[n.key] < i),
        )
        for i, phase in enumerate(phases)
    )


def _by_sample(reductions: list[Node]) -> list[tuple[Node, ...]]:
    """Reductions that look at the same elements together; at least one group, which may be empty."""
    sizes = sorted({sample_of(n) for n in reductions} or {1}, reverse=True)
    return [tuple(n for n in reductions if sample_of(n) == size) for size in sizes]


def _ready(order: list[Node]) -> dict[bytes, int]:
    """The first phase in which each node's value can be used.

    A reduction that would have a pass of its own beside a sample waits for the next pass, if that is in time.
    """
    ready = _ready_after(order, {})
    samples = {ready[n.key] for n in order if n.op.locality is Locality.REDUCE and sample_of(n) > 1}
    late = _needed(order, ready)
    put_off = {
        n.key: ready[n.key] + 1
        for n in order
        if n.op.locality is Locality.REDUCE
        and sample_of(n) == 1
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
