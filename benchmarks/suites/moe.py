"""A mixture of eight experts with random gates."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import peer, shapes
from benchmarks.contest import OURS, Contest, Contestant, Outcome, hold, mergegraph_run
from benchmarks.measure import ProgramFailed, run
from benchmarks.settings import Settings, Unavailable
from benchmarks.suites.base import Chart, Column, Series, Suite, contest_columns, to_floor
from benchmarks.suites.merging import ready

EXPERTS = 8
_LOAD = "import sys, mergegraph; mergegraph.load_plan(sys.argv[1])"


def measure(settings: Settings, work: Path) -> Iterator[Outcome]:
    """Build one from a base and its fine-tunes, each of which is several experts.

    Raises:
        Unavailable: this version of mergegraph takes no such plan.
    """
    shape = settings.main_shape
    home = settings.models / shape
    names = shapes.find(shape).names
    plan = work / "moe.yml"
    plan.write_text(plan_text(home.resolve(), names), encoding="utf-8")
    try:
        run([sys.executable, "-c", _LOAD, str(plan)], work / "load.log")
    except ProgramFailed as error:
        raise Unavailable(f"mergegraph takes no plan of experts yet: {_last_line(str(error))}") from error
    ready(settings, shape)
    inputs = tuple(home / name for name in names)
    contestants = [Contestant(OURS, lambda out: mergegraph_run(plan, out, settings, settings.threads))]
    if settings.peer is not None:
        venv = settings.peer
        command = Contestant(peer.NAME, lambda out: peer.moe_command(venv, plan, out), settings.peer_runs)
        contestants.append(command)
    # Experts replace the base's feed-forward networks, and nothing else is taken from the others.
    rest = shapes.weights(inputs[0]) - expert_bytes(inputs[0])
    limits = (rest, *map(expert_bytes, inputs[1:]))
    contest = Contest(inputs, tuple(contestants), settings.threads, limits)
    for cache in settings.caches:
        row = hold(contest, settings, work, cache, f"{EXPERTS} experts of {shape}")
        yield {"key": f"moe {shape} {cache}", "experts": EXPERTS, "shape": shape, **row}


def plan_text(home: Path, names: tuple[str, ...]) -> str:
    """A plan with as many experts as `EXPERTS`, from the fine-tunes in turn."""
    lines = [f"base_model: {home / names[0]}", "gate_mode: random", "dtype: bfloat16", "experts:"]
    tunes = names[1:]
    for i in range(EXPERTS):
        lines.append(f"  - source_model: {home / tunes[i % len(tunes)]}")
        lines.append(f"    positive_prompts: [expert {i}]")
    return "\n".join([*lines, ""])


def expert_bytes(checkpoint: Path) -> int:
    """Bytes of the tensors that become experts: the feed-forward networks."""
    total = 0
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, entry in header.items():
            if ".mlp." in name:
                begin, end = entry["data_offsets"]
                total += end - begin
    return total


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


SUITE = Suite(
    name="moe",
    title="Mixture of experts",
    note=(
        "Eight experts made of fine-tunes, gates at random. The floor reads what stays of the base and, "
        "of every fine- tune once, what becomes experts."
    ),
    measure=measure,
    columns=contest_columns(
        Column("shape", lambda row: str(row["shape"])),
        Column("experts", lambda row: str(row["experts"])),
        Column("cache", lambda row: str(row["cache"])),
    ),
    chart=Chart(
        kind="bars",
        goal=1.0,
        title="Building a mixture of experts, in multiples of the floor",
        axis="× floor",
        series=(Series(OURS, to_floor), Series(peer.NAME, lambda row: to_floor(row, peer.NAME))),
    ),
)
