"""Programs and their phases: what runs for one piece of an output tensor, pass by pass."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from mergegraph.checkpoint.view import View
from mergegraph.graph.graph import SourceTensor
from mergegraph.graph.node import Locality, Node
from mergegraph.kernels.reduction import CHUNK, Array
from mergegraph.tensorspec import TensorSpec


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
        marks: ROWWISE ops of the body that leave elements out, of which later phases know which stay.
        marked: those of which an earlier phase found that out.
    """

    small: tuple[Node, ...]
    loads: tuple[Node, ...]
    body: tuple[Node, ...]
    stats: tuple[Node, ...]
    reductions: tuple[Node, ...]
    result: Node | None
    kept: tuple[Node, ...] = ()
    spent: tuple[Node, ...] = ()
    marks: tuple[Node, ...] = ()
    marked: tuple[Node, ...] = ()

    @cached_property
    def generated(self) -> bool:
        """Whether the phase can run as generated code: every op says how to compute one element.

        Its loops run over blocks, rows or columns, so an op by column must be the only such thing.
        """
        if any(n.op.by_column for n in self.body) and (self.by_rows or self.reductions):
            return False
        return all(n.op.scalar is not None or n.op.row for n in self.body)

    @cached_property
    def constants(self) -> dict[bytes, Array]:
        """The values of those of `small` that are the same for all programs."""
        fixed = (n for n in self.small if n.op.name == "constant")
        return {n.key: n.op.implementation(**n.attributes) for n in fixed}

    @cached_property
    def sample(self) -> int:
        """One in so many elements is looked at; 1: all are."""
        return max((sample_of(n) for n in self.reductions), default=1)

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
            if "columns" in n.attributes:
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


def sample_of(reduction: Node) -> int:
    """One in so many elements is what a REDUCE node looks at."""
    return int(reduction.attributes.get("sample", 1))


def marks_shape(n: Node) -> tuple[int, int]:
    """Shape of the marks of a ROWWISE op that leaves elements out: rows, and a bit for each column."""
    columns = n.spec.shape[-1]
    return n.spec.numel // columns, -(-columns // 8)


def marks_bytes(n: Node) -> int:
    """Bytes of the marks of a ROWWISE op that leaves elements out."""
    rows, width = marks_shape(n)
    return rows * width
