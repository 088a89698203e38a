"""The order of work: output shard by output shard, and along the sources' own order on disk.

Outputs are independent of each other, so this is all the policy there is. Sequential reads, one
output file at a time, and a shard's programs together so that a shard could leave the machine.
"""

from __future__ import annotations

from collections.abc import Mapping

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.checkpoint.layout import OutputLayout
from mergegraph.graph.graph import FILL
from mergegraph.schedule.program import Program


def order(
    programs: list[Program], layout: OutputLayout, sources: Mapping[str, CheckpointIndex]
) -> tuple[Program, ...]:
    """Sort `programs`; those that only check inputs for equality come first, to fail early."""
    tensors = {key: index.tensors for key, index in sources.items()}

    def key(program: Program) -> tuple[bool, int, str, int, int]:
        shard, begin = layout.locate(program.tensor)
        checked = program.raw and len(program.sources) > 1
        checkpoint, tensor, _ = program.sources[0]
        if checkpoint == FILL:
            return (not checked, shard, "", 0, begin + program.offset)
        _, file, start, _ = tensors[checkpoint][tensor]
        return (not checked, shard, file, start, begin + program.offset)

    return tuple(sorted(programs, key=key))
