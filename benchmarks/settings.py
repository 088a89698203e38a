"""What one run of the harness was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The repository: where ``python -m benchmarks.…`` works."""


@dataclass(frozen=True)
class Settings:
    """One run of the harness.

    Attributes:
        models: where checkpoints are made once and kept.
        work: where plans and results go, on the disk to measure; results are deleted at once.
        runs: counted rounds, after one that is not counted.
        quick: tiny checkpoints and few cases: shows that everything runs, measures nothing.
        peer: a virtual environment with mergekit; None leaves its column empty.
        peer_runs: rounds that the peer takes part in.
        cold: measure with a cold page cache too.
        threads: worker threads for everything that takes a number.
        memory: the budget given to mergegraph.
        device: where mergegraph computes.
        methods: merge methods to measure; empty for all.
        shape: the checkpoints to merge where a suite does not choose; None for its default.
    """

    models: Path
    work: Path
    runs: int
    quick: bool
    peer: Path | None
    peer_runs: int
    cold: bool
    threads: int
    memory: str
    device: str
    methods: tuple[str, ...]
    shape: str | None

    @property
    def main_shape(self) -> str:
        """The checkpoints that suites merge unless they are about shapes."""
        return self.shape or ("quick" if self.quick else "llama-1.1b")

    @property
    def caches(self) -> tuple[str, ...]:
        """The states of the page cache to measure in."""
        return ("warm", "cold") if self.cold else ("warm",)


class Unavailable(Exception):
    """A suite cannot run here, for the reason given; the others still do."""
