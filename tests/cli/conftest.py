"""A stand-in for the engine: these tests are about what is asked and how answers look."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

import mergegraph
from mergegraph.errors import MergeGraphError
from mergegraph.runtime.events import Advanced, Finished, RunReport, Started
from tests.graph.graphs import LABELS, llama


def summary(**changes: Any) -> dict[str, Any]:
    """What `plan --json` prints, for the small model of the graph tests."""
    outputs = [
        {
            "name": name,
            "shape": list(output.spec.shape),
            "dtype": output.spec.dtype.torch_name,
            "bytes": output.spec.nbytes,
            "kind": output.kind,
            "shard": "model.safetensors",
        }
        for name, output in llama(22).outputs.items()
    ]
    total = sum(row["bytes"] for row in outputs)
    return {
        "method": "slerp",
        "models": ["./llama_a", "./llama_b"],
        "donor": "./llama_a",
        "outputs": outputs,
        "shards": [{"file": "model.safetensors", "bytes": total, "tensors": len(outputs)}],
        "tasks": {"load": 357, "gram": 176, "slerp": 176, "weighted_sum": 178, "cast": 178},
        "bytes_read": 3_000_000_000,
        "bytes_streamed": 6_000_000_000,
        "bytes_written": total,
        "peak_bytes": 40 * 2**20,
        "memory_budget": 2**30,
        "threads": 2,
        "device": "cpu",
        "device_reason": "there is no NVIDIA GPU",
        "vram_peak_bytes": 0,
        "vram_budget": 0,
        "free_disk": 50_000_000_000,
        "fingerprint": "00ff",
        "problems": [],
        "copied": ["model.embed_tokens.weight"],
        "dropped": [],
        "partial": [],
        "config_differences": [],
        "sidecars": ["tokenizer.json"],
        "notes": [],
        **changes,
    }


def report(out: Path = Path("out"), **changes: Any) -> RunReport:
    """The end of a run of two gigabytes in two seconds."""
    facts: dict[str, Any] = {
        "out": out,
        "tensors": 201,
        "merged": 200,
        "copied": 1,
        "dropped": 0,
        "bytes_read": 1_500_000_000,
        "bytes_written": 500_000_000,
        "seconds": 2.0,
        "peak_rss": 300 * 2**20,
        "peak_working": 30 * 2**20,
        "budget": 2**30,
        "plan_peak": 40 * 2**20,
        "stages": {"read": 2.0, "compute": 1.0, "write": 1.0},
        "bound": "read",
        "nonfinite": {},
        "resumed": 0,
        "device": "cpu",
        "threads": 2,
    }
    return RunReport(**{**facts, **changes})


@dataclass
class FakeCompiled:
    facts: dict[str, Any]
    graph: Any = field(default_factory=llama)
    labels: dict[str, str] = field(default_factory=lambda: dict(LABELS))

    def summary(self) -> dict[str, Any]:
        return self.facts


@dataclass
class FakeEngine:
    """Records what it is asked for, and raises `error` if there is one."""

    facts: dict[str, Any] = field(default_factory=summary)
    error: BaseException | None = None
    asked: dict[str, Any] = field(default_factory=dict)
    report: RunReport = field(default_factory=report)

    def compile_plan(self, plan: Path, **options: Any) -> FakeCompiled:
        self._fail()
        self.asked |= {"plan": plan, **options}
        return FakeCompiled(self.facts)

    def explain(self, _: FakeCompiled, tensor: str) -> str:
        return f"%0 = load a:{tensor}"

    def write_lock(self, _: FakeCompiled, path: Path) -> Path:
        path.write_text("{}")
        return path

    def inspect(self, checkpoint: str) -> dict[str, Any]:
        self._fail()
        self.asked["checkpoint"] = checkpoint
        return self.facts

    def run(self, plan: Any, out: Path, *, on_event: Callable[[Any], None], **options: Any) -> RunReport:
        self.asked.update(plan=plan, out=out, **options)
        on_event(Started(2_000_000_000, 201))
        on_event(Advanced(1_000_000_000, 2_000_000_000, 800_000_000, 200_000_000, "model.norm.weight"))
        self._fail()
        on_event(Finished(self.report))
        return self.report

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    fake = FakeEngine()
    module = ModuleType("mergegraph.engine")
    for verb in ("compile_plan", "explain", "write_lock", "inspect", "run"):
        setattr(module, verb, getattr(fake, verb))
    monkeypatch.setitem(sys.modules, "mergegraph.engine", module)
    monkeypatch.setattr(mergegraph, "engine", module, raising=False)
    return fake


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run the command line in this process: ``cli("plan", "a.yml").stdout``."""
    monkeypatch.delenv("MERGEGRAPH_DEBUG", raising=False)
    monkeypatch.delenv("COLUMNS", raising=False)
    from mergegraph.cli.app import app

    def call(*args: str) -> Any:
        result = CliRunner().invoke(app, list(args))
        if isinstance(result.exception, Exception) and not isinstance(result.exception, MergeGraphError):
            raise result.exception
        return result

    return call
