"""The verbs: load a plan, compile it, explain it, run it, verify a result, inspect a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergegraph.checkpoint.layout import OutputLayout, build_layout
from mergegraph.checkpoint.names import layer_and_suffix
from mergegraph.compiler.inputs import Input
from mergegraph.compiler.report import CompileReport
from mergegraph.engine.collector import collector_paused
from mergegraph.engine.loading import read_file
from mergegraph.engine.locking import check_lock, sample_of
from mergegraph.engine.opening import open_model
from mergegraph.engine.overview import checkpoint_facts, plan_summary
from mergegraph.engine.resolving import Explainer, Resolved, resolve
from mergegraph.errors import ExecutionError, MemoryBudgetError, PlanError, Problem, did_you_mean
from mergegraph.graph.graph import FILL, Graph
from mergegraph.graph.text import explain_text
from mergegraph.plan.kinds import AnyPlan
from mergegraph.plan.lock import lock_text
from mergegraph.plan.source import Problems
from mergegraph.plan.values import ExpertLayout, ModelRef, parse_model_ref
from mergegraph.runtime.devices import Placement, place
from mergegraph.runtime.events import OnEvent, RunReport
from mergegraph.runtime.probe import cpu_count, resident_bytes
from mergegraph.schedule.schedule import Schedule, schedule
from mergegraph.storage.journal import unfinished
from mergegraph.storage.publish import staging_path
from mergegraph.storage.sidecars import input_record
from mergegraph.tensorspec import parse_bytes
from mergegraph.version import VERSION

if TYPE_CHECKING:
    from mergegraph.engine.rows import RowsWork

PlanSource = str | os.PathLike[str] | AnyPlan


@dataclass(frozen=True)
class Compiled:
    """A plan, resolved: what will be written, from what, how, and within how much memory.

    Attributes:
        plan: as written.
        title: what is done: the merge method, or the kind of mixture.
        inputs: every checkpoint.
        donor: the one that tokenizer and other files come from.
        graph: every output tensor.
        config: the output's ``config.json``.
        report: what became of every input tensor.
        facts: of a mixture of experts: sizes, routers, what comes from where.
        rows: router rows that are computed before anything else.
        layout: files, offsets.
        placement: where tiles are computed, and why.
        schedule: order and memory.
        seed: of everything random.
        expert_layout: what was asked for besides the plan.
        settings: the resolved parameters of an output tensor.
    """

    plan: AnyPlan
    title: str
    inputs: Mapping[ModelRef, Input]
    donor: Input
    graph: Graph
    config: Mapping[str, Any]
    report: CompileReport
    facts: Mapping[str, Any] | None
    rows: RowsWork | None
    layout: OutputLayout
    placement: Placement
    schedule: Schedule
    seed: int | None
    expert_layout: ExpertLayout | None
    settings: Explainer

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides the output tensors."""
        return self.graph.fingerprint

    @property
    def labels(self) -> dict[str, str]:
        """A short, distinct name for each checkpoint key, for showing expressions."""
        names = {model.key: model.name.rstrip("/") for model in self.inputs.values()}
        names |= {} if self.rows is None else {self.rows.key: "router rows"}
        if self.graph.fills:
            names[FILL] = "constant"
        short = {key: os.path.basename(name) or name for key, name in names.items()}
        repeated = len(dict.fromkeys(short.values())) < len(short)
        return names if repeated else short

    def summary(self) -> dict[str, Any]:
        """What a dry run tells, as JSON values."""
        return plan_summary(
            title=self.title,
            inputs=self.inputs,
            facts=self.facts,
            rows=self.rows,
            donor=self.donor,
            graph=self.graph,
            report=self.report,
            layout=self.layout,
            placement=self.placement,
            schedule=self.schedule,
        )


def load_plan(path: str | os.PathLike[str]) -> AnyPlan:
    """Read a plan of any kind, or the lock file of one.

    Raises:
        PlanError: with everything that is wrong with the plan by itself.
    """
    problems = Problems()
    plan = read_file(path, problems)[0]
    problems.raise_if_any()
    return plan


def compile_plan(
    plan: PlanSource,
    *,
    memory: str | int = "1GiB",
    threads: int | None = None,
    device: str = "auto",
    vram: str | int | None = None,
    shard_size: str | int = "5GB",
    seed: int | None = None,
    expert_layout: ExpertLayout | None = None,
) -> Compiled:
    """Resolve a plan against its checkpoints' headers; no tensor is read.

    Args:
        plan: a plan, or the path of one or of its lock file.
        memory: most bytes the run may allocate, beyond the interpreter and its imports.
        threads: worker threads; by default one per processor.
        device: ``cpu``, ``cuda``, ``cuda:0,1``, or ``auto``: GPUs where a trial shows that they are quicker.
        vram: most bytes to use on each GPU; by default three quarters of what is free.
        shard_size: most bytes of tensor data in one output file.
        seed: seed of everything that is drawn at random; overrides the plan's.
        expert_layout: ``per-expert`` or ``stacked``; overrides the plan's. Without, a merge keeps the layout
            that its inputs share, and everything else writes one tensor per expert.

    Raises:
        PlanError: with every problem of the plan and of how it fits its checkpoints.
        MemoryBudgetError: some tensor cannot be computed within `memory`, or `vram`.
        DeviceError: `device` is none that is there.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    problems = Problems()
    loaded, lock = read_file(plan, problems) if isinstance(plan, str | os.PathLike) else (plan, None)
    chosen = next((s for s in (seed, lock.seed if lock else None, loaded.seed) if s is not None), None)
    layout = expert_layout or (lock.expert_layout if lock else None)
    with collector_paused():
        resolved = resolve(loaded, problems, chosen, layout)
        if lock is not None:
            check_lock(lock, resolved.compiled.graph, resolved.inputs)
        count = threads or cpu_count()
        placement = place(device, count, None if vram is None else parse_bytes(vram))
        limits = Limits(parse_bytes(memory), count, parse_bytes(shard_size), placement)
        return _scheduled(loaded, resolved, limits, chosen, layout)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may use: bytes of memory, threads, bytes of tensor data in one file, devices."""

    memory: int
    threads: int
    shard: int
    placement: Placement


def _scheduled(
    plan: AnyPlan, resolved: Resolved, limits: Limits, seed: int | None, expert_layout: ExpertLayout | None
) -> Compiled:
    compiled, rows = resolved.compiled, resolved.rows
    layout = build_layout({n: o.spec for n, o in compiled.graph.outputs.items()}, limits.shard)
    indexes = {model.key: model.index for model in resolved.inputs.values()}
    if rows is not None:
        indexes[rows.key] = rows.index
    bounds = {"threads": limits.threads, "budget": limits.memory}
    scheduled = schedule(compiled.graph, layout, indexes, **bounds, gpus=limits.placement.gpus)
    if rows is not None:
        peak = rows.memory(scheduled.peak_bytes)
        if peak > limits.memory:
            raise MemoryBudgetError("the router rows", peak, limits.memory)
        scheduled = replace(scheduled, peak_bytes=peak)
    return Compiled(
        plan=plan,
        title=resolved.title,
        inputs=resolved.inputs,
        donor=resolved.donor,
        graph=compiled.graph,
        config=compiled.config,
        report=compiled.report,
        facts=compiled.facts,
        rows=rows,
        layout=layout,
        placement=limits.placement,
        schedule=scheduled,
        seed=seed,
        expert_layout=expert_layout,
        settings=resolved.settings,
    )


def explain(compiled: Compiled, tensor: str) -> str:
    """Return how output `tensor` is computed: its parameters with their plan lines, its expression.

    Raises:
        PlanError: there is no such output.
    """
    output = compiled.graph.outputs.get(tensor)
    if output is None:
        hint = _stack_of(tensor, compiled.graph) or did_you_mean(tensor, compiled.graph.outputs)
        raise PlanError([Problem(f"the output has no tensor {tensor!r}", compiled.plan.file, hint=hint)])
    lines = []
    for s in compiled.settings(tensor):
        whose = f" ({s.model})" if s.model else ""
        lines.append(f"{s.name}{whose} = {s.value}   # {s.origin or 'default'}")
    return "\n".join([*lines, *([""] if lines else []), explain_text(tensor, output, compiled.labels)])


def _stack_of(tensor: str, graph: Graph) -> str | None:
    """Which output an expert's matrix is a part of, if it is none by itself."""
    layer, suffix = layer_and_suffix(tensor)
    stacks = [n for n, o in graph.outputs.items() if n.startswith(layer) and len(o.parts) > 1]
    return f"it is a part of {' or '.join(stacks)}" if stacks and "experts." in suffix else None


def run(
    plan: PlanSource | Compiled,
    out: str | os.PathLike[str],
    *,
    memory: str | int = "1GiB",
    threads: int | None = None,
    device: str = "auto",
    vram: str | int | None = None,
    shard_size: str | int = "5GB",
    seed: int | None = None,
    expert_layout: ExpertLayout | None = None,
    force: bool = False,
    on_event: OnEvent | None = None,
) -> RunReport:
    """Run a plan and publish the merged checkpoint in directory `out`.

    Nothing appears in `out` before everything is written. An interrupted run is continued by the
    same call, and gives the same bytes. A `Compiled` plan keeps the options it was compiled with.

    Args:
        plan: a plan, the path of one or of its lock file, or a compiled plan.
        out: the directory to publish the result in.
        memory: as for `compile_plan`, like the others that are not explained here.
        threads: …
        device: …
        vram: …
        shard_size: …
        seed: …
        expert_layout: …
        force: replace the model that is in `out`, and discard an unfinished run of something else.
        on_event: called with progress; see `mergegraph.runtime.events`.

    Raises:
        PlanError, CheckpointError, MemoryBudgetError, ExecutionError: see `mergegraph.errors`.
    """
    from mergegraph.engine.session import Session  # loads the compiler of CPU code; planning does without

    baseline = resident_bytes()
    if not isinstance(plan, Compiled):
        plan = compile_plan(
            plan,
            memory=memory,
            threads=threads,
            device=device if force else _continuing(device, Path(out)),
            vram=vram,
            shard_size=shard_size,
            seed=seed,
            expert_layout=expert_layout,
        )
    return Session(plan, Path(out), force, on_event or _ignore, baseline).run()


def _continuing(device: str, out: Path) -> str:
    """Where to compute; ``auto`` is where an unfinished run did: a new trial may come out otherwise."""
    found = unfinished(staging_path(out)).get("backend") if device == "auto" else None
    return str(found) if found in ("cpu", "cuda") else device


def verify(out: str | os.PathLike[str]) -> list[str]:
    """Read a merged checkpoint again and return the tensors that are not what its manifest says.

    Raises:
        CheckpointError: there is no merged checkpoint in `out`.
    """
    from mergegraph.engine.verification import damaged_tensors

    return damaged_tensors(Path(out))


def inspect(checkpoint: str) -> dict[str, Any]:
    """Return what is in a checkpoint, from headers alone, as JSON values.

    Raises:
        CheckpointError: it is not a complete checkpoint.
    """
    return checkpoint_facts(open_model(parse_model_ref(checkpoint)))


def write_lock(compiled: Compiled, path: str | os.PathLike[str]) -> Path:
    """Write the lock file of a compiled plan and return its path.

    Raises:
        ExecutionError: it cannot be written.
    """
    target = Path(path)
    text = lock_text(
        version=VERSION,
        file=compiled.plan.file,
        plan=compiled.plan.text,
        seed=compiled.seed,
        expert_layout=compiled.expert_layout,
        fingerprint=compiled.fingerprint,
        inputs=[{**input_record(m.index), "sample": sample_of(m)} for m in compiled.inputs.values()],
        parameters=[a.as_dict() for a in compiled.report.parameters],
    )
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ExecutionError(f"{target} cannot be written: {error.strerror}") from error
    return target


def _ignore(_: object) -> None:
    """Watch nothing."""
