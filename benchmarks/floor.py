"""The floor: read every input byte once, write every output byte once, and do nothing else.

No merge can be faster than that on the same machine, so benchmarks report multiples of it. Reads go
into one reused buffer per thread, writes come from one, into a file preallocated like the engine's.

    python benchmarks/floor.py --read bench/models/base --write 2200000000 --to bench/work
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = 1 << 20
"""Bytes per system call: large enough to hide the call, small enough to stay in cache."""

STRETCH = 64 * BLOCK
"""Consecutive bytes one thread handles, so that each reads and writes sequentially."""

Job = tuple[int, int, int]
"""(file descriptor, first byte, one past the last byte)"""


def stretches(descriptor: int, size: int) -> Iterator[Job]:
    """Cut a file into jobs."""
    return ((descriptor, begin, min(begin + STRETCH, size)) for begin in range(0, size, STRETCH))


def read(jobs: list[Job]) -> None:
    """Read the bytes of `jobs` into one buffer."""
    buffer = memoryview(bytearray(BLOCK))
    for descriptor, begin, end in jobs:
        while begin < end:
            begin += os.preadv(descriptor, [buffer[: min(BLOCK, end - begin)]], begin)


def write(jobs: list[Job]) -> None:
    """Write the byte ranges of `jobs` from one buffer."""
    buffer = memoryview(os.urandom(BLOCK))
    for descriptor, begin, end in jobs:
        while begin < end:
            begin += os.pwrite(descriptor, buffer[: min(BLOCK, end - begin)], begin)


def measure(inputs: list[Path], size: int, target: Path, threads: int) -> dict[str, float | int]:
    """Time it. Reads and writes alternate as in a merge: both are spread over the same threads."""
    files = [path for source in inputs for path in sorted(source.glob("*.safetensors"))]
    started = time.perf_counter()
    sources = [os.open(path, os.O_RDONLY) for path in files]
    output = os.open(target, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        os.posix_fallocate(output, 0, size)
        total = sum(os.fstat(source).st_size for source in sources)
        reads = [job for source in sources for job in stretches(source, os.fstat(source).st_size)]
        writes = list(stretches(output, size))
        with ThreadPoolExecutor(threads) as pool:
            lists = [(reads[i::threads], writes[i::threads]) for i in range(threads)]
            list(pool.map(lambda pair: (read(pair[0]), write(pair[1])), lists))
        seconds = time.perf_counter() - started
        os.fsync(output)
        synced = time.perf_counter() - started
    finally:
        for descriptor in (*sources, output):
            os.close(descriptor)
        target.unlink()
    return {"seconds": seconds, "seconds_synced": synced, "read": total, "written": size, "threads": threads}


def main() -> None:
    """Measure once and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--read", type=Path, action="append", required=True, help="a checkpoint; repeat for each"
    )
    parser.add_argument("--write", type=int, required=True, help="bytes to write")
    parser.add_argument("--to", type=Path, required=True, help="directory to write a temporary file in")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    print(json.dumps(measure(options.read, options.write, options.to / ".floor", options.threads)))


if __name__ == "__main__":
    main()
