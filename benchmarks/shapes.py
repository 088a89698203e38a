"""The checkpoints that the benchmarks merge: a base and fine-tunes of it, made once and then reused.

Weights are random with fixed seeds, so every machine merges the same bytes, and the fine-tunes are small
changes of the base, as real ones are. Making one takes a few megabytes of memory whatever its size.

    python -m benchmarks.shapes bench/models llama-1.1b float32
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from mergegraph.tensorspec import format_bytes
from mergegraph.testing import Llama, write_llama

SHARD_SIZE = 1_000_000_000
_DESCRIPTION = "shape.json"
_PARTIAL = ".partial-"


@dataclass(frozen=True)
class Shape:
    """A family of checkpoints: dimensions, stored dtype, and how many (the base included)."""

    llama: Llama
    dtype: str = "BF16"
    models: int = 4
    shard_size: int = SHARD_SIZE

    @property
    def names(self) -> tuple[str, ...]:
        """The checkpoints, the base first."""
        return ("base", *(f"tune{i}" for i in range(1, self.models)))

    @property
    def described(self) -> dict[str, object]:
        """Everything that decides the bytes of a checkpoint; another value means other checkpoints."""
        return {"llama": asdict(self.llama), "dtype": self.dtype, "shard_size": self.shard_size}


def _sized(layers: int, vocab: int = 32000) -> Shape:
    llama = Llama(layers=layers, hidden=2048, intermediate=5632, heads=32, kv_heads=4, vocab=vocab)
    return Shape(llama)


_SMALL = Llama(layers=4, hidden=64, intermediate=128, heads=4, kv_heads=2, vocab=320)

SHAPES = {
    "llama-1.1b": _sized(22),
    "llama-0.3b": _sized(4),
    "llama-0.6b": _sized(11),
    "embedding": Shape(
        Llama(layers=1, hidden=2048, intermediate=2048, heads=16, kv_heads=4, vocab=262144, tied=True),
        models=3,
    ),
    "embedding-half": Shape(
        Llama(layers=1, hidden=2048, intermediate=2048, heads=16, kv_heads=4, vocab=131072, tied=True),
        models=3,
    ),
    "tiny-tensors": Shape(
        Llama(layers=1000, hidden=64, intermediate=64, heads=4, kv_heads=2, vocab=320), shard_size=20_000_000
    ),
    "float32": Shape(
        Llama(layers=4, hidden=2048, intermediate=5632, heads=32, kv_heads=4, vocab=32000),
        dtype="F32",
        models=3,
    ),
    "five": Shape(
        Llama(layers=4, hidden=2048, intermediate=5632, heads=32, kv_heads=4, vocab=32000), models=5
    ),
    "quick": Shape(_SMALL, shard_size=60_000),
    "quick-float32": Shape(_SMALL, dtype="F32", shard_size=60_000),
    "quick-five": Shape(_SMALL, models=5, shard_size=60_000),
}
"""By name. The first three differ in depth alone, the two called embedding in their largest tensor."""


def make(root: Path, name: str, models: int | None = None) -> Iterator[str]:
    """Write the checkpoints of shape `name` below `root` that are not there yet; say what was done.

    A checkpoint appears when it is complete, so one that is there is never half of one.

    Raises:
        ValueError: there is no such shape, or `root` holds checkpoints of other dimensions by that name.
    """
    shape = find(name)
    home = root / name
    home.mkdir(parents=True, exist_ok=True)
    _check_description(home, shape)
    for number, model in enumerate(shape.names[:models]):
        target = home / model
        if target.exists():
            yield f"{target} is there"
            continue
        started = time.perf_counter()
        partial = home / f"{_PARTIAL}{model}"
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        write_llama(
            partial,
            shape.llama,
            seed=number,
            dtype=shape.dtype,
            shard_size=shape.shard_size,
            finetune_of=home / shape.names[0] if number else None,
        )
        partial.rename(target)
        seconds = time.perf_counter() - started
        yield f"{target}: {format_bytes(weights(target))} in {seconds:.1f} s"


def find(name: str) -> Shape:
    """The shape called `name`.

    Raises:
        ValueError: there is none.
    """
    if name not in SHAPES:
        raise ValueError(f"there is no shape {name!r}; there is {', '.join(SHAPES)}")
    return SHAPES[name]


def weights(directory: Path) -> int:
    """Bytes of a checkpoint's weight files."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def _check_description(home: Path, shape: Shape) -> None:
    file = home / _DESCRIPTION
    if not file.exists():
        file.write_text(json.dumps(shape.described, indent=2) + "\n", encoding="utf-8")
    elif json.loads(file.read_text(encoding="utf-8")) != shape.described:
        raise ValueError(f"{home} holds checkpoints of other dimensions; delete it to make them anew")


def main() -> None:
    """Make what is named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="where to: DIRECTORY/SHAPE/base, …/tune1, …")
    parser.add_argument("shapes", nargs="+", metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--models", type=int, help="only the first so many of each, the base included")
    options = parser.parse_args()
    try:
        for name in options.shapes:
            for line in make(options.directory, name, options.models):
                print(line, flush=True)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
