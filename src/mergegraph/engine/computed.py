"""Tensors of a merge that is never written, computed when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mergegraph.errors import CheckpointError
from mergegraph.graph.graph import Graph
from mergegraph.routing.weights import STORED, Array
from mergegraph.runtime.executor import phase_functions
from mergegraph.runtime.progress import Progress
from mergegraph.runtime.workers import Worker
from mergegraph.schedule.memory import TILE
from mergegraph.schedule.tiling import programs
from mergegraph.storage.files import byte_view
from mergegraph.storage.reader import Reader
from mergegraph.tensorspec import TensorSpec


class ComputedWeights:
    """The weights of a merge, for whoever reads a model tensor by tensor.

    The last tensor is kept, since an embedding is asked for a few rows at a time.

    Args:
        graph: the merge.
        reader: reads its inputs.
    """

    def __init__(self, graph: Graph, reader: Reader) -> None:
        self._graph = graph
        self._reader = reader
        self._last: tuple[str, Array] | None = None

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """What there is, by name."""
        return {name: output.spec for name, output in self._graph.outputs.items()}

    def read(self, name: str, begin_row: int = 0, rows: int | None = None) -> Array:
        """Return rows of a tensor: its stored bits, as `mergegraph.routing.weights.Weights` says."""
        if self._last is None or self._last[0] != name:
            self._last = (name, self._computed(name))
        found = self._last[1]
        return (found if rows is None else found[begin_row : begin_row + rows]).copy()

    def _computed(self, name: str) -> Array:
        output = self._graph.outputs[name]
        if output.spec.dtype not in STORED:
            raise CheckpointError(
                f"{name} is {output.spec}; router rows can only be computed from floating-point weights",
                path=name,
                hint="use a gate_mode that reads no weights",
            )
        result = np.empty(output.spec.shape, STORED[output.spec.dtype])
        todo = programs(Graph({name: output}))
        sink = _Sink(result)
        worker = Worker(self._reader, sink, phase_functions(todo))
        for program in todo:
            progress = Progress(program, TILE)
            jobs = progress.start()
            while jobs:
                jobs = [follow for job in jobs for follow in progress.absorb(worker.execute(job))]
        return result


class _Sink:
    """Takes what a worker writes."""

    def __init__(self, result: Array) -> None:
        self._bytes = byte_view(result.data)

    def write(self, _: str, offset: int, buffer: memoryview) -> None:
        self._bytes[offset : offset + buffer.nbytes] = byte_view(buffer)
