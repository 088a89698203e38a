"""Time whole merges, as processes, against the floor; with a peer if its environment is given.

Everything alternates (floor, mergegraph, peer, floor, …), so that a slow moment of the machine hits all of
them. The first round warms the page cache and the compiled kernels and is not counted. Wall and CPU time and
peak resident memory come from the operating system, for the whole process, interpreter and imports included.

    python benchmarks/make_checkpoint.py bench/models
    python benchmarks/run.py --models bench/models --work bench/work --json bench/result.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

# This process imports nothing large: a child's peak memory starts from its parent's.

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """One method: the models it merges (the base first, where there is one) and its parameters."""

    method: str
    models: tuple[str, ...]
    base: str | None
    each: str
    shared: str

    def plan(self, directory: Path) -> str:
        """The plan in YAML."""
        lines = [f"merge_method: {self.method}", "models:"]
        for model in self.models:
            if self.each and model == self.base:
                continue  # task vectors are taken from the base, it is none of them
            lines.append(f"  - model: {directory / model}")
            lines += [f"    parameters: {self.each}"] if self.each else []
        lines += [f"base_model: {directory / self.base}"] if self.base else []
        lines += [f"parameters: {self.shared}"] if self.shared else []
        return "\n".join([*lines, "dtype: bfloat16", ""])


ALL = ("base", "tune1", "tune2", "tune3")
CASES = (
    Case("linear", ALL[:3], None, "{weight: 0.33}", ""),
    Case("slerp", ALL[:2], "base", "", "{t: 0.4}"),
    Case("task_arithmetic", ALL, "base", "{weight: 0.5}", ""),
    Case("ties", ALL, "base", "{weight: 0.5, density: 0.5}", ""),
)


@dataclass(frozen=True)
class Usage:
    """What one process used."""

    wall: float
    cpu: float
    peak_rss: int


@dataclass(frozen=True)
class Row:
    """Medians of one method and tool."""

    method: str
    tool: str
    wall: float
    cpu: float
    peak_rss: int
    bytes: int
    floor: float
    floor_synced: float
    walls: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Wall time in multiples of the floor."""
        return self.wall / self.floor

    @property
    def ratio_synced(self) -> float:
        """Wall time in multiples of the floor that also waits for the disk, as mergegraph does."""
        return self.wall / self.floor_synced


def measure(command: list[str], log: Path) -> Usage:
    """Run a command to its end; its output goes to `log`."""
    started = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"{' '.join(command)} failed with {process.returncode}:\n{log.read_text(errors='replace')}")
    # Linux counts kilobytes, macOS bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return Usage(wall, used.ru_utime + used.ru_stime, used.ru_maxrss * unit)


def weights(directory: Path) -> int:
    """Bytes of a checkpoint's weight files."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def run_case(case: Case, options: argparse.Namespace) -> list[Row]:
    """Alternate the floor and every tool, and summarise."""
    models = [options.models / name for name in case.models]
    out = weights(models[0])
    total = sum(map(weights, models)) + out
    plan = options.work / f"{case.method}.yml"
    plan.write_text(case.plan(options.models.resolve()))
    floors: list[dict[str, float]] = []
    used: dict[str, list[Usage]] = {tool: [] for tool in tools(options)}
    for number in range(options.runs + 1):
        floor = measure_floor(models, out, options)
        results = {tool: run_tool(tool, plan, options) for tool in used}
        if number > 0:
            floors.append(floor)
            for tool, usage in results.items():
                used[tool].append(usage)
        print(f"{case.method}: round {number} of {options.runs}", file=sys.stderr)
    return [summarise(case.method, tool, usages, floors, total) for tool, usages in used.items()]


def tools(options: argparse.Namespace) -> list[str]:
    """The programs to time."""
    return ["mergegraph", *(["mergekit"] if options.peer else [])]


def measure_floor(models: list[Path], out: int, options: argparse.Namespace) -> dict[str, float]:
    """Time the floor in a process of its own; its own clock excludes the interpreter's start."""
    command = [sys.executable, str(HERE / "floor.py"), "--write", str(out), "--to", str(options.work)]
    command += ["--threads", str(options.threads)]
    for model in models:
        command += ["--read", str(model)]
    found: dict[str, float] = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    return found


def run_tool(tool: str, plan: Path, options: argparse.Namespace) -> Usage:
    """Merge once into a fresh directory, and remove the result."""
    out = Path(tempfile.mkdtemp(dir=options.work)) / "out"
    if tool == "mergegraph":
        command = [str(Path(sys.executable).with_name("mergegraph")), "run", str(plan), "-o", str(out)]
        command += ["--threads", str(options.threads), "--memory", options.memory]
        command += ["--device", "cpu", "--progress", "none"]
    else:
        command = [str(options.peer / "bin" / "mergekit-yaml"), str(plan), str(out)]
    try:
        return measure(command, options.work / f"{tool}.log")
    finally:
        shutil.rmtree(out.parent)


def summarise(method: str, tool: str, used: list[Usage], floors: list[dict[str, float]], total: int) -> Row:
    """Medians of time, the largest of memory."""
    return Row(
        method,
        tool,
        wall=statistics.median(usage.wall for usage in used),
        cpu=statistics.median(usage.cpu for usage in used),
        peak_rss=max(usage.peak_rss for usage in used),
        bytes=total,
        floor=statistics.median(floor["seconds"] for floor in floors),
        floor_synced=statistics.median(floor["seconds_synced"] for floor in floors),
        walls=tuple(usage.wall for usage in used),
    )


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    head = ("method", "tool", "wall s", "CPU s", "peak MB", "GB/s", "floor s", "× floor", "× synced floor")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        speed = row.bytes / row.wall / 1e9
        cells = [row.method, row.tool, f"{row.wall:.2f}", f"{row.cpu:.2f}", f"{row.peak_rss / 1e6:.0f}"]
        cells += [f"{speed:.2f}", f"{row.floor:.2f}", f"{row.ratio:.2f}", f"{row.ratio_synced:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", type=Path, required=True, help="directory made by make_checkpoint.py")
    parser.add_argument(
        "--work", type=Path, required=True, help="directory for results, on the disk to measure"
    )
    parser.add_argument("--methods", nargs="+", default=["linear", "slerp", "ties"])
    parser.add_argument(
        "--runs", type=int, default=3, help="counted rounds, after one that is not (default 3)"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--memory", default="1GiB", help="the budget given to mergegraph")
    parser.add_argument("--peer", type=Path, help="virtual environment with mergekit, to time it too")
    parser.add_argument("--json", type=Path, help="where to write all numbers")
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, write JSON."""
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    known = {case.method: case for case in CASES}
    unknown = [name for name in options.methods if name not in known]
    if unknown:
        sys.exit(f"no benchmark for {', '.join(unknown)}; there is {', '.join(known)}")
    rows = [row for name in options.methods for row in run_case(known[name], options)]
    print(table(rows))
    if options.json:
        machine = {"cpus": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}
        found = [{**asdict(row), "ratio": row.ratio, "ratio_synced": row.ratio_synced} for row in rows]
        options.json.write_text(json.dumps({"machine": machine, "rows": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
