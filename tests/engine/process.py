"""Runs in processes of their own: killed at an exact point, or measured.

``python process.py PLAN OUT [OPTIONS]``: OPTIONS is JSON, ``{"die": {"at": POINT, "after": N},
"signal": NAME, "run": keyword arguments of `mergegraph.run`}``. At the (N+1)-th passage of POINT the
process sends itself the signal. It prints a JSON line about a run that survived.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEADLINE = 60
"""Seconds after which a process that should have ended long ago is taken for hanging."""


def start(plan: Path, out: Path, **options: Any) -> subprocess.Popen[str]:
    """Start a run; its report comes on stdout."""
    return subprocess.Popen(
        [sys.executable, __file__, str(plan), str(out), json.dumps(options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end: return code (negative: the signal that killed it), stdout, stderr."""
    with process:
        try:
            output, errors = process.communicate(timeout=DEADLINE)
        except BaseException:
            process.kill()
            raise
    return process.returncode, output, errors


def run_to_end(plan: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Run in another process and return what it says of itself."""
    code, output, errors = finish(start(plan, out, **options))
    assert code == 0, errors
    report: dict[str, Any] = json.loads(output)
    return report


def kill_at(plan: Path, out: Path, point: str, after: int = 0, **run: Any) -> None:
    """Run until the (after+1)-th passage of `point`, and be killed there."""
    code, _, errors = finish(start(plan, out, die={"at": point, "after": after}, run=run))
    assert code == -signal.SIGKILL, f"was not killed at {point}: {code} {errors}"


# ---- in the other process -----------------------------------------------------------------------


def _points() -> dict[str, tuple[Any, str]]:
    from mergegraph.engine import session
    from mergegraph.storage import publish
    from mergegraph.storage.journal import Journal
    from mergegraph.storage.writer import OutputWriter

    return {
        "record": (Journal, "record"),
        "prepare": (OutputWriter, "_create"),
        "write": (OutputWriter, "write"),
        "sidecars": (session, "copy_sidecars"),
        "manifest": (session, "write_manifest"),
        "json": (session, "write_json"),
        "sync": (OutputWriter, "sync"),
        "publish": (session, "publish"),
        "rename": (publish.os, "rename"),
        "retract": (publish, "_retract"),
        "replace": (publish.os, "replace"),
        "published": (publish, "sync_directory"),
    }


def _die_at(point: str, after: int, name: str) -> None:
    """Signal this process at a passage of `point`; a write is torn, and so is a record of several."""
    owner, attribute = _points()[point]
    real: Callable[..., Any] = getattr(owner, attribute)
    passed = iter(range(after + 1))

    def watched(*args: Any, **more: Any) -> Any:
        if point == "record" and len(args[1]) > 1:
            for entry in args[1].items():
                watched(args[0], dict([entry]))
            return None
        if next(passed, None) == after:
            if point == "write":
                writer, tensor, offset, buffer = args
                real(writer, tensor, offset, buffer[: len(buffer) // 2])
            os.kill(os.getpid(), getattr(signal, name))
        return real(*args, **more)

    setattr(owner, attribute, watched)


def memory() -> tuple[int, int]:
    """Resident size and its high-water mark, in bytes, as the kernel counts them for this image."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident, peak = (int(lines[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
    return resident, peak


def main(plan: str, out: str, options: str = "{}") -> None:
    """Run, and tell what became of it."""
    import mergegraph
    import mergegraph.engine.session  # the imports that the memory budget does not count
    from mergegraph.errors import MergeGraphError

    wanted = json.loads(options)
    die = wanted.get("die")
    if die:
        # Shells start background jobs with this signal ignored, and the suite may be one.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _die_at(die["at"], die["after"], wanted.get("signal", "SIGKILL"))
    if wanted.get("cli"):
        from mergegraph.cli.app import main as command_line

        sys.argv = ["mergegraph", "run", plan, "-o", out, "--progress", "none", *wanted["cli"]]
        command_line()
    resident, before = memory()
    try:
        report = mergegraph.run(plan, out, **wanted.get("run", {}))
    except MergeGraphError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    facts = {
        name: getattr(report, name) for name in ("resumed", "tensors", "plan_peak", "peak_working", "budget")
    }
    used = memory()[1] - resident
    assert before - resident <= used, "importing must not be the peak that is measured"
    print(json.dumps(facts | {"used": used, "modules": sorted(sys.modules)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
