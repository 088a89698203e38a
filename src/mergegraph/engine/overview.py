"""What a plan will do and what a checkpoint holds, as JSON values: the data behind every view."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergegraph.architectures.roles import is_head
from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.checkpoint.layout import OutputLayout
from mergegraph.checkpoint.names import layer_stacks, split_layer
from mergegraph.compiler.inputs import Input
from mergegraph.compiler.report import CompileReport
from mergegraph.graph.graph import Graph, SourceTensor
from mergegraph.plan.values import ModelRef
from mergegraph.runtime.devices import Placement
from mergegraph.schedule.memory import program_bytes
from mergegraph.schedule.schedule import Schedule
from mergegraph.storage.files import free_bytes
from mergegraph.tensorspec import TensorSpec, format_bytes

if TYPE_CHECKING:
    from mergegraph.engine.rows import RowsWork


def plan_summary(
    *,
    title: str,
    inputs: Mapping[ModelRef, Input],
    donor: Input,
    facts: Mapping[str, Any] | None,
    rows: RowsWork | None,
    graph: Graph,
    report: CompileReport,
    layout: OutputLayout,
    placement: Placement,
    schedule: Schedule,
) -> dict[str, Any]:
    """Return everything a dry run tells."""
    entries = {model.key: model.index.tensors for model in inputs.values()}
    if rows is not None:
        entries[rows.key] = rows.index.tensors
    outputs = _outputs(graph, layout)
    return {
        "method": title,
        "models": [model.name for model in inputs.values()],
        "donor": donor.name,
        "outputs": outputs,
        "shards": [{"file": s.file, "bytes": s.size, "tensors": len(s.tensors)} for s in layout.shards],
        "tasks": dict(sorted(graph.tasks().items())),
        "bytes_read": sum(_bytes(s, entries[s.checkpoint][s.tensor].spec) for s in graph.sources()),
        "bytes_streamed": schedule.streamed_bytes,
        "bytes_written": layout.file_bytes,
        "peak_bytes": schedule.peak_bytes,
        "memory_budget": schedule.budget,
        "threads": schedule.workers,
        "device": ", ".join(placement.devices),
        "device_reason": placement.reason,
        "vram_peak_bytes": schedule.vram_peak,
        "vram_budget": placement.vram,
        "free_disk": free_bytes(Path.cwd()),
        "fingerprint": graph.fingerprint,
        "copied": [o["name"] for o in outputs if o["kind"] in ("copied", "checked")],
        "mixture": None if facts is None else dict(facts),
        "dropped": [{"model": d.model, "tensor": d.tensor, "reason": d.reason} for d in report.dropped],
        "partial": [{"tensor": p.tensor, "missing_from": list(p.missing_from)} for p in report.partial],
        "config_differences": [{"key": d.key, "values": dict(d.values)} for d in report.config_differences],
        "sidecars": list(donor.index.sidecars),
        "notes": [*report.notes, *_whole_notes(schedule), *_disk_notes(layout.file_bytes)],
        "problems": [],
    }


def _outputs(graph: Graph, layout: OutputLayout) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "shape": list(output.spec.shape),
            "dtype": output.spec.dtype.torch_name,
            "bytes": output.spec.nbytes,
            "kind": output.kind,
            "shard": layout.shards[layout.locate(name)[0]].file,
        }
        for name, output in graph.outputs.items()
    ]


def _bytes(source: SourceTensor, spec: TensorSpec) -> int:
    """What is read of a stored tensor: all of it, or a part."""
    return spec.nbytes if source.view is None else source.view.numel * spec.dtype.bits // 8


def _whole_notes(schedule: Schedule) -> list[str]:
    """Which tensors are not streamed, and what the most expensive of them takes."""
    needs = {
        program.tensor: program_bytes(program, schedule.tile, 1)
        for program in schedule.programs
        if any(phase.whole for phase in program.phases)
    }
    if not needs:
        return []
    worst = max(needs, key=needs.__getitem__)
    size = format_bytes(needs[worst])
    return [f"{len(needs):,} tensors are taken whole, not in tiles: {worst} needs {size} for each thread"]


def _disk_notes(needed: int) -> list[str]:
    free = free_bytes(Path.cwd())
    if free >= needed:
        return []
    return [f"the output takes {format_bytes(needed)}, but only {format_bytes(free)} are free here"]


def checkpoint_facts(index: CheckpointIndex) -> dict[str, Any]:
    """Return what is in a checkpoint."""
    tensors = index.tensors
    dtypes: dict[str, dict[str, int]] = {}
    for entry in tensors.values():
        kind = dtypes.setdefault(entry.spec.dtype.torch_name, {"tensors": 0, "bytes": 0})
        kind["tensors"] += 1
        kind["bytes"] += entry.spec.nbytes
    in_file = Counter(entry.file for entry in tensors.values())
    stacks = layer_stacks(tensors)
    return {
        "path": index.root or index.name,
        "revision": index.revision,
        "tensors": len(tensors),
        "parameters": sum(entry.spec.numel for entry in tensors.values()),
        "bytes": sum(entry.spec.nbytes for entry in tensors.values()),
        "dtypes": dtypes,
        "shards": [
            {"file": f.name, "bytes": f.size, "tensors": in_file[f.name]} for f in index.files.values()
        ],
        "stacks": [{"prefix": s.prefix, "count": s.count} for s in stacks],
        "tied": _tied(index),
        "architectures": index.config.get("architectures"),
        "config": dict(index.config),
        "sidecars": list(index.sidecars),
        "groups": _groups(index),
    }


def _tied(index: CheckpointIndex) -> bool | None:
    if any(is_head(name) for name in index.tensors):
        return False
    stated = index.config.get("tie_word_embeddings")
    return stated if isinstance(stated, bool) else None


def _groups(index: CheckpointIndex) -> list[dict[str, Any]]:
    """One row per tensor name, with layer numbers replaced by ``*``; rows of one shape count their layers."""
    prefixes = [stack.prefix for stack in layer_stacks(index.tensors)]
    rows: dict[tuple[str, tuple[int, ...], str], dict[str, Any]] = {}
    for name, entry in index.tensors.items():
        shown = name
        for prefix in prefixes:
            place = split_layer(name, prefix)
            if place is not None:
                shown = f"{prefix}.*.{place[1]}"
        key = (shown, entry.spec.shape, entry.spec.dtype.torch_name)
        row = rows.setdefault(
            key,
            {
                "name": shown,
                "shape": list(key[1]),
                "dtype": key[2],
                "tensors": 0,
                "parameters": 0,
                "bytes": 0,
            },
        )
        row["tensors"] += 1
        row["parameters"] += entry.spec.numel
        row["bytes"] += entry.spec.nbytes
    return list(rows.values())
