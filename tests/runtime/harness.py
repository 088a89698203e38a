"""Expressions computed in three ways: op by op with torch, and scheduled, generated or interpreted.

The scheduled runs go through the real phases, workers and progress; only the checkpoint and the
output file are replaced, by tensors in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mergegraph import ops
from mergegraph.compiler.seeds import stream_of
from mergegraph.graph.graph import Graph, Output, Piece, SourceTensor
from mergegraph.graph.node import CONSTANT, Locality, Node, walk
from mergegraph.runtime.executor import phase_functions
from mergegraph.runtime.interpret import interpreted
from mergegraph.runtime.progress import Progress
from mergegraph.runtime.tiles import PhaseFunction, copied
from mergegraph.runtime.workers import Worker
from mergegraph.schedule.memory import TILE
from mergegraph.schedule.program import Program
from mergegraph.schedule.tiling import programs
from mergegraph.tensorspec import DType, TensorSpec, dtype_from_torch_name

Mode = Literal["generated", "interpreted"]


def dtype_of(x: Tensor) -> DType:
    found = dtype_from_torch_name(str(x.dtype))
    assert found is not None
    return found


def torch_dtype(dtype: DType) -> torch.dtype:
    found: torch.dtype = getattr(torch, dtype.torch_name)
    return found


def raw(x: Tensor) -> np.ndarray[Any, Any]:
    """The bytes of a tensor, row-major, as they would lie in a file."""
    if x.numel() == 0:
        return np.empty(0, dtype=np.uint8)
    return x.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def unraw(data: np.ndarray[Any, Any], spec: TensorSpec) -> Tensor:
    """The tensor of `spec` that lies in `data`."""
    if spec.numel == 0:
        return torch.empty(spec.shape, dtype=torch_dtype(spec.dtype))
    return torch.from_numpy(data).view(torch_dtype(spec.dtype)).reshape(spec.shape)


def loads(tensors: Sequence[Tensor]) -> list[Node]:
    """One ``load`` node per tensor, slot i for tensor i."""
    return [ops.load(i, TensorSpec(tuple(x.shape), dtype_of(x))) for i, x in enumerate(tensors)]


class Memory:
    """Stands for the reader and the writer at once."""

    def __init__(self, sources: Mapping[str, Tensor], size: int) -> None:
        self._sources = {name: raw(x) for name, x in sources.items()}
        self.output = np.full(size, 0xA5, dtype=np.uint8)
        self.written = np.zeros(size, dtype=np.uint8)

    def read_into(self, source: str, tensor: str, offset: int, buffer: memoryview) -> None:
        assert source == "memory"
        target = np.frombuffer(buffer, dtype=np.uint8)
        target[:] = self._sources[tensor][offset : offset + target.nbytes]

    def write(self, _: str, offset: int, buffer: memoryview) -> None:
        data = np.frombuffer(buffer, dtype=np.uint8)
        self.output[offset : offset + data.nbytes] = data
        self.written[offset : offset + data.nbytes] += 1


@dataclass
class Result:
    """What a scheduled run gives: the tensor, the statistics by node key, and the count of bad numbers."""

    tensor: Tensor
    nonfinite: int
    values: dict[bytes, Any] = field(repr=False)


def program_of(expression: Node, count: int) -> Program:
    sources = tuple(SourceTensor("memory", f"x{i}") for i in range(count))
    spec = TensorSpec(expression.spec.shape, expression.spec.dtype)
    piece = Piece(expression, sources, tuple(stream(i) for i in range(count)))
    (program,) = programs(Graph({"out": Output(spec, (piece,))}))
    return program


def stream(slot: int) -> tuple[float, float]:
    """The random stream of the tensor in `slot`, in all of these runs."""
    return stream_of(None, "out", f"x{slot}")


def schedule_run(
    expression: Node,
    tensors: Sequence[Tensor],
    *,
    mode: Mode = "generated",
    tile: int = TILE,
    backwards: bool = False,
) -> Result:
    """Run `expression` tile by tile; `backwards` executes the jobs of a phase in reverse order."""
    program = program_of(expression, len(tensors))
    # Tests look at statistics that a run has no use for any more.
    program = replace(program, phases=tuple(replace(phase, spent=()) for phase in program.phases))
    memory = Memory({f"x{i}": x for i, x in enumerate(tensors)}, program.spec.nbytes)
    worker = Worker(memory, memory, _functions(program, mode))  # type: ignore[arg-type]
    progress = Progress(program, tile)
    jobs = progress.start()
    while jobs:
        ordered = reversed(jobs) if backwards else jobs
        jobs = [follow for job in ordered for follow in progress.absorb(worker.execute(job))]
    assert progress.done
    assert (memory.written == 1).all(), "every byte is written exactly once"
    return Result(unraw(memory.output, program.spec), progress.tally.nonfinite, progress.values)


def _functions(program: Program, mode: Mode) -> dict[int, PhaseFunction]:
    if mode == "generated":  # as on the CPU: what has no generated code is interpreted there too
        return phase_functions([program])
    return {id(phase): copied if program.raw else interpreted(phase) for phase in program.phases}


def eager(expression: Node, tensors: Sequence[Tensor]) -> Any:
    """Compute `expression` by calling its ops on whole torch tensors, one after the other."""
    values: dict[bytes, Any] = {}
    for n in walk([expression]):
        if n.op.locality is Locality.SOURCE:
            values[n.key] = tensors[n.attributes["slot"]]
        elif n.op is CONSTANT:
            values[n.key] = n.attributes["values"]
        elif n.op is ops.STREAM:
            values[n.key] = stream(n.attributes["slot"])
        else:
            values[n.key] = n.op(*(values[x.key] for x in n.inputs), **n.attributes)
    return values[expression.key]


def differences(a: Tensor, b: Tensor) -> int:
    """How many elements differ in any bit; two NaNs are the same whatever their payload."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    size = torch.iinfo if not a.is_floating_point() else torch.finfo
    bits = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}[size(a.dtype).bits]
    unequal = a.contiguous().reshape(-1).view(bits) != b.contiguous().reshape(-1).view(bits)
    if a.is_floating_point():
        unequal &= ~(a.reshape(-1).isnan() & b.reshape(-1).isnan())
    return int(unequal.sum())


def assert_same_bits(a: Tensor, b: Tensor) -> None:
    count = differences(a, b)
    assert count == 0, f"{count} of {a.numel()} elements differ: {a.reshape(-1)[:8]} … {b.reshape(-1)[:8]}"


def steps_apart(a: Tensor, b: Tensor) -> int:
    """How many representable numbers two tensors are apart, at most; two NaNs are not apart."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    integer = {16: torch.int16, 32: torch.int32, 64: torch.int64}[torch.finfo(a.dtype).bits]
    least = torch.iinfo(integer).min
    ranks = []
    for x in (a, b):
        bits = x.contiguous().reshape(-1).view(integer).to(torch.int64)
        ranks.append(torch.where(bits < 0, least - bits, bits))
    apart = (ranks[0] - ranks[1]).abs()
    both_nan = a.reshape(-1).isnan() & b.reshape(-1).isnan()
    return int(torch.where(both_nan, 0, apart).max()) if len(apart) else 0


def normal(*shape: int, dtype: DType = DType.F32, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Normally distributed values, the same for the same arguments everywhere."""
    values = np.random.Generator(np.random.SFC64(seed)).standard_normal(shape) * spread
    return torch.from_numpy(np.asarray(values)).to(torch_dtype(dtype))
