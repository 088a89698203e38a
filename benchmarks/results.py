"""The file of results: rows by suite, with the machine that they were measured on.

A run replaces the rows it measures again and keeps the others, so that a long measurement can be made in
parts; rows of another machine or another version of the code are never mixed with them.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contest import Row
from benchmarks.settings import ROOT, Settings
from mergegraph.version import VERSION


@dataclass
class Results:
    """Rows by suite and key. Everything is written to `file`, if there is one, after every row."""

    file: Path | None
    suites: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, file: Path | None) -> Results:
        """The results that are in `file`, or none."""
        if file is None or not file.exists():
            return cls(file, {})
        return cls(file, json.loads(file.read_text(encoding="utf-8")))

    def add(self, suite: str, circumstances: dict[str, Any], row: Row) -> None:
        """Take in a row, and keep the suite's others if they were measured in the same circumstances."""
        found = self.suites.get(suite)
        if found is None or found["circumstances"] != circumstances:
            found = self.suites[suite] = {"circumstances": circumstances, "rows": []}
        rows: list[Row] = found["rows"]
        places = {known["key"]: index for index, known in enumerate(rows)}
        if row["key"] in places:
            rows[places[row["key"]]] = row
        else:
            rows.append(row)
        self._save()

    def _save(self) -> None:
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_name(f".{self.file.name}.partial")
        partial.write_text(json.dumps(self.suites, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.file)


def circumstances(settings: Settings) -> dict[str, Any]:
    """What must be equal for two rows to be comparable: machine, versions, options."""
    return {
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])} {platform.machine()}",
        "python": platform.python_version(),
        "mergegraph": VERSION,
        "commit": _commit(),
        "threads": settings.threads,
        "budget": settings.memory,
        "device": settings.device,
        "quick": settings.quick,
    }


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """The commit measured, with a mark if the sources differ from it; empty outside a repository."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
