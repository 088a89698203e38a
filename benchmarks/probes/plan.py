"""Time the planning of a merge from inside: opening, compiling, scheduling, in a fresh process."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter

started = time.perf_counter()

from mergegraph import engine  # noqa: E402  (the import is part of what is timed)
from mergegraph.schedule.schedule import schedule  # noqa: E402


def main() -> None:
    """Plan once and print JSON."""
    imported = time.perf_counter()
    compiled = engine.compile_plan(sys.argv[1], memory=sys.argv[2], threads=int(sys.argv[3]))
    done = time.perf_counter()
    # Its share: `compile_plan` ends with the same call.
    sources = {model.key: model.index for model in compiled.inputs.values()}
    again = compiled.schedule
    schedule(compiled.graph, compiled.layout, sources, threads=again.workers, budget=again.budget)
    scheduling = time.perf_counter() - done
    kinds = Counter(output.kind for output in compiled.graph.outputs.values())
    found = {
        "import": imported - started,
        "compile": done - imported - scheduling,
        "schedule": scheduling,
        "outputs": len(compiled.graph.outputs),
        "kinds": dict(sorted(kinds.items())),
        "expressions": len({id(program.phases) for program in again.programs}),
        "charged": again.peak_bytes,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
