"""One run: from a compiled plan, through staging and execution, to a published checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.checkpoint.layout import INDEX_FILE
from mergegraph.compiler.inputs import Input
from mergegraph.engine.opening import fetched
from mergegraph.plan.values import ModelRef
from mergegraph.runtime.events import Advanced, Finished, OnEvent, Routing, RunReport, Stage, Started
from mergegraph.runtime.executor import Outcomes, execute
from mergegraph.runtime.probe import peak_resident_bytes
from mergegraph.schedule.program import Program
from mergegraph.storage.files import write_file
from mergegraph.storage.journal import JOURNAL_FILE, Journal, input_stamps
from mergegraph.storage.publish import check_output, publish, staging_path
from mergegraph.storage.reader import Reader
from mergegraph.storage.sidecars import copy_sidecars, model_card, write_json, write_manifest
from mergegraph.storage.writer import OutputWriter
from mergegraph.version import NUMERICS, VERSION

if TYPE_CHECKING:
    from mergegraph.engine.verbs import Compiled
    from mergegraph.routing.gates import GateArtefact

_EVENT_SECONDS = 0.1


class Session:
    """Runs one compiled plan into one output directory."""

    def __init__(self, compiled: Compiled, out: Path, force: bool, on_event: OnEvent, baseline: int) -> None:
        self._compiled = compiled
        self._out = out
        self._devices = compiled.placement.devices
        self._force = force
        self._on_event = on_event
        self._baseline = baseline
        self._next_event = 0.0
        self._rows: GateArtefact | None = None

    def run(self) -> RunReport:
        """Execute, write everything beside the weights, publish."""
        started = perf_counter()
        models = list(self._compiled.inputs.values())
        check_output(self._out, [p for m in models if m.index.root for p in _places(m)], self._force)
        inputs = fetched(self._compiled.inputs)
        rows = self._router_rows(inputs)
        staging = staging_path(self._out)
        with Journal.open(staging, self._journal_header(inputs.values()), force=self._force) as journal:
            self._clear_strays(staging)
            sources = {m.key: m.index for m in inputs.values()} | rows
            self._on_event(Started(self._compiled.schedule.work_bytes, len(self._compiled.graph.outputs)))
            with (
                OutputWriter(staging, self._compiled.layout, resume=journal.resumed) as writer,
                Reader(sources) as reader,
            ):
                outcomes = execute(
                    self._compiled.schedule, reader, writer, journal, self._devices, self._progress
                )
                reader.check_unchanged()
                donor = next(m for m in inputs.values() if m.key == self._compiled.donor.key)
                self._write_sidecars(staging, donor, outcomes)
                writer.sync()
            publish(staging, self._out, self._force)
        report = self._report(outcomes, perf_counter() - started)
        self._on_event(Finished(report))
        return report

    def _router_rows(self, inputs: Mapping[ModelRef, Input]) -> dict[str, CheckpointIndex]:
        """Compute router rows if the plan has any; they are then one more checkpoint to load."""
        work = self._compiled.rows
        if work is None:
            return {}
        fetched = {model.key: model for model in inputs.values()}
        index, self._rows = work.compute(
            fetched, self._devices[0], lambda done, total: self._on_event(Routing(done, total))
        )
        return {work.key: index}

    def _clear_strays(self, staging: Path) -> None:
        """Remove what an interrupted run left besides its shards: everything else is written anew."""
        kept = {JOURNAL_FILE, *(shard.file for shard in self._compiled.layout.shards)}
        for entry in staging.iterdir():
            if entry.name not in kept and not entry.is_dir():
                entry.unlink()

    def _journal_header(self, inputs: Any) -> dict[str, Any]:
        """Everything that decides an output byte: another value means another run."""
        compiled = self._compiled
        layout = blake2b(digest_size=16)
        for shard in compiled.layout.shards:
            layout.update(shard.file.encode() + shard.header)
        return {
            "version": VERSION,
            "numerics": NUMERICS,
            "fingerprint": compiled.fingerprint,
            "layout": layout.hexdigest(),
            "config": blake2b(
                json.dumps(compiled.config, sort_keys=True).encode(), digest_size=16
            ).hexdigest(),
            "seed": compiled.seed,
            "backend": "cpu" if compiled.placement.gpus is None else "cuda",
            "inputs": {model.key: input_stamps(model.index) for model in inputs},
            # The name of their file is a digest of everything that decides them.
            "rows": None if self._rows is None else self._rows.path.stem,
        }

    def _write_sidecars(self, staging: Path, donor: Input, outcomes: Outcomes) -> None:
        """Write all files beside the weights; index and config come last, as they mean "complete"."""
        compiled = self._compiled
        models = [model.index for model in compiled.inputs.values()]
        copy_sidecars(donor.index, staging)
        card = model_card(
            title=self._out.resolve().name,
            method=compiled.title,
            models=models,
            plan=compiled.plan.text,
            version=VERSION,
        )
        write_file(staging, "README.md", card.encode())
        write_manifest(
            staging,
            plan=compiled.plan.text,
            fingerprint=compiled.fingerprint,
            inputs=models,
            parameters={
                "assignments": [a.as_dict() for a in compiled.report.parameters],
                "seed": compiled.seed,
                **({} if self._rows is None else {"routers": self._rows.report.as_dict()}),
            },
            checksums=dict(sorted(outcomes.checksums.items())),
            versions={"mergegraph": VERSION, "numpy": np.__version__},
        )
        index = compiled.layout.index_json()
        if index is not None:
            write_file(staging, INDEX_FILE, index)
        if compiled.config:
            write_json(staging, "config.json", compiled.config)

    def _progress(self, outcomes: Outcomes, program: Program) -> None:
        now = monotonic()
        if now < self._next_event:
            return
        self._next_event = now + _EVENT_SECONDS
        tally, total = outcomes.tally, self._compiled.schedule.work_bytes
        self._on_event(Advanced(outcomes.work_done, total, tally.read, tally.written, program.tensor))

    def _report(self, outcomes: Outcomes, seconds: float) -> RunReport:
        compiled, tally, rows = self._compiled, outcomes.tally, self._rows
        kinds = [output.kind for output in compiled.graph.outputs.values()]
        stages: dict[Stage, float] = {
            "read": tally.read_seconds,
            "compute": tally.compute_seconds,
            "write": tally.write_seconds,
        }
        peak = peak_resident_bytes()
        return RunReport(
            out=self._out,
            tensors=len(kinds),
            merged=kinds.count("merged"),
            copied=len(kinds) - kinds.count("merged"),
            dropped=len(compiled.report.dropped),
            bytes_read=tally.read,
            bytes_written=tally.written,
            seconds=seconds,
            peak_rss=peak,
            peak_working=max(0, peak - self._baseline),
            budget=compiled.schedule.budget,
            plan_peak=compiled.schedule.peak_bytes,
            stages=stages,
            bound=max(stages, key=stages.__getitem__),
            nonfinite=dict(sorted(outcomes.nonfinite.items())),
            resumed=outcomes.resumed,
            device=", ".join(self._devices),
            reason=compiled.placement.reason,
            vram=compiled.placement.vram,
            vram_peak=compiled.schedule.vram_peak,
            threads=compiled.schedule.workers,
            routers=None if rows is None else {**rows.report.as_dict(), "cached": rows.cached},
        )


def _places(model: Input) -> list[Path]:
    """Where a model lies, for keeping the output apart from it."""
    root = Path(model.index.root)
    return [root] if model.index.config else [root / name for name in model.index.files]
