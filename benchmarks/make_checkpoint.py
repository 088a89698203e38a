"""Make the checkpoints that the benchmarks merge: one base and fine-tunes of it, Llama-shaped.

The default is the shape of a 1.1 B model in bfloat16, 2.2 GB each. Weights are random, seeds fixed, so
every machine merges the same bytes. Memory stays at a few megabytes whatever the size.

    python benchmarks/make_checkpoint.py bench/models --models 4
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from mergegraph.tensorspec import format_bytes, parse_bytes
from mergegraph.testing import Llama, write_llama

SHAPE = Llama(layers=22, hidden=2048, intermediate=5632, heads=32, kv_heads=4, vocab=32000)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, help="where to write base, tune1, tune2, …")
    parser.add_argument("--models", type=int, default=4, help="how many, the base included (default 4)")
    parser.add_argument("--dtype", choices=("BF16", "F16", "F32"), default="BF16")
    parser.add_argument("--shard-size", type=parse_bytes, default=parse_bytes("1GB"), help="default 1GB")
    parser.add_argument("--force", action="store_true", help="make even those that are there")
    for name in ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocab"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(SHAPE, name))
    return parser.parse_args()


def main() -> None:
    """Write the checkpoints that are not there yet."""
    options = parse()
    names = ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocab")
    shape = Llama(**{name: getattr(options, name) for name in names})
    base = options.directory / "base"
    for number in range(options.models):
        directory = options.directory / f"tune{number}" if number else base
        # The tokenizer is written last, so it marks a checkpoint as complete.
        if (directory / "tokenizer_config.json").exists() and not options.force:
            print(f"{directory} is there")
            continue
        started = time.perf_counter()
        write_llama(
            directory,
            shape,
            seed=number,
            dtype=options.dtype,
            shard_size=options.shard_size,
            finetune_of=base if number else None,
        )
        size = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
        print(f"{directory}: {format_bytes(size)} in {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
