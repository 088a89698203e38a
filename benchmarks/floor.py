"""The floor: read every input byte once, write every output byte once, and do nothing else.

No merge that reads and writes the same way can be faster on the same machine, so benchmarks report
multiples of it. Reads go into one reused buffer per thread, writes come from one, into a file preallocated
like the engine's and, like it, forced to the disk at the end. Writes go through the page cache, one thread
at a time (which is faster than threads that compete for the file), or with ``--direct`` past it.

    python -m benchmarks.floor --read bench/models/llama-1.1b/base --write 2200000000 --to bench/work
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

BLOCK = 1 << 20
"""Bytes per system call: large enough to hide the call, small enough to stay in cache."""

PAGE = 4096
"""Direct writes are whole pages: the last bytes of a file that fill none are left out."""

STRETCH = 32 * BLOCK
"""Consecutive bytes one thread handles, so that each reads and writes sequentially."""


@dataclass(frozen=True)
class Job:
    """Bytes `begin` to `end` of a file: input to read, or output to write."""

    path: Path
    begin: int
    end: int
    output: bool


def stretches(path: Path, size: int, output: bool) -> list[Job]:
    """Cut a file into jobs."""
    starts = range(0, size, STRETCH)
    return [Job(path, begin, min(begin + STRETCH, size), output) for begin in starts]


def interleaved(reads: list[Job], writes: list[Job]) -> list[Job]:
    """All jobs, writes spread evenly between the reads, as a merge does them: disks do both at once."""
    placed = [((i + 1) / len(reads), 0, job) for i, job in enumerate(reads)]
    placed += [((i + 1) / len(writes), 1, job) for i, job in enumerate(writes)]
    return [job for _, _, job in sorted(placed, key=lambda found: found[:2])]


def work(jobs: list[Job], turn: Lock, direct: bool) -> None:
    """Do the jobs of one thread, with buffers and descriptors of its own.

    The kernel reads ahead by descriptor: threads that share one keep each other from it.
    """
    source, target = memoryview(bytearray(BLOCK)), memoryview(mmap.mmap(-1, BLOCK))
    target[:] = os.urandom(BLOCK)
    writing = os.O_WRONLY | (os.O_DIRECT if direct else 0)
    with ExitStack() as opened:
        descriptors: dict[Path, int] = {}
        for job in jobs:
            if job.path not in descriptors:
                descriptors[job.path] = os.open(job.path, writing if job.output else os.O_RDONLY)
                opened.callback(os.close, descriptors[job.path])
            descriptor, begin = descriptors[job.path], job.begin
            while begin < job.end:
                count = min(BLOCK, job.end - begin)
                if job.output and direct:
                    done = os.pwrite(descriptor, target[:count], begin)
                elif job.output:
                    with turn:
                        done = os.pwrite(descriptor, target[:count], begin)
                else:
                    done = os.preadv(descriptor, [source[:count]], begin)
                if done == 0:
                    raise EOFError(f"{job.path} became shorter while it was read")
                begin += done


def measure(
    inputs: list[tuple[Path, int]], size: int, target: Path, threads: int, direct: bool = False
) -> dict[str, Any]:
    """Time it: so many bytes of each input file, `size` bytes of output, spread over `threads`."""
    size -= size % PAGE if direct else 0
    turn = Lock()
    started = time.perf_counter()
    output = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        if size:
            os.posix_fallocate(output, 0, size)
        reads = [job for path, count in inputs for job in stretches(path, count, False)]
        writes = stretches(target, size, True)
        shares = [interleaved(reads[i::threads], writes[i::threads]) for i in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(work, share, turn, direct) for share in shares]:
                done.result()
        seconds = time.perf_counter() - started
        os.fsync(output)
        synced = time.perf_counter() - started
    finally:
        os.close(output)
        target.unlink()
    total = sum(count for _, count in inputs)
    return {"seconds": seconds, "synced": synced, "read": total, "written": size, "threads": threads}


def input_files(text: str) -> list[tuple[Path, int]]:
    """What ``--read DIRECTORY[:BYTES]`` means: files and how much of each, in order."""
    name, _, limit = text.rpartition(":") if text.rpartition(":")[2].isdigit() else (text, "", "")
    left = int(limit) if limit else None
    found = []
    for path in sorted(Path(name).glob("*.safetensors")):
        size = path.stat().st_size if left is None else min(left, path.stat().st_size)
        left = None if left is None else left - size
        if size:
            found.append((path, size))
    return found


def main() -> None:
    """Measure once and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--read", action="append", required=True, metavar="DIR[:BYTES]", help="a checkpoint; repeat for each"
    )
    parser.add_argument("--write", type=int, required=True, help="bytes to write")
    parser.add_argument("--to", type=Path, required=True, help="directory to write a temporary file in")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--direct", action="store_true", help="write past the page cache")
    options = parser.parse_args()
    inputs = [pair for text in options.read for pair in input_files(text)]
    target = options.to / ".floor"
    try:
        found = measure(inputs, options.write, target, options.threads, options.direct)
    except OSError as error:
        sys.exit(f"{target}: {error.strerror}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
