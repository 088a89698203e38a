"""The checkpoints and plans of ``mergegraph demo``."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from mergegraph.testing.tiny import Llama, write_llama

SHAPE = Llama(layers=8, hidden=512, intermediate=1408, heads=8, kv_heads=4, vocab=8192)
"""32 million parameters: 65 MB in bfloat16, a second to make, large enough to show progress."""

SHARD_SIZE = 25_000_000
PLANS = ("slerp", "ties")

# The example plans name their models so; `prepare_demo` puts the real place instead.
_PLACE = "demo/"


def prepare_demo(directory: Path, *, shape: Llama = SHAPE, shard_size: int = SHARD_SIZE) -> list[Path]:
    """Write three checkpoints and the plans that merge them.

    ``base`` has random weights, ``chat`` and ``code`` are small changes of it. The plans are those
    of ``configs/merge`` with the models' place filled in.

    Args:
        directory: where to; made if it is not there.
        shape: the models' dimensions.
        shard_size: most bytes of tensors in one file.

    Returns:
        The plan files, in the order to run them.
    """
    base = write_llama(directory / "base", shape, seed=1, shard_size=shard_size)
    for seed, name in enumerate(("chat", "code"), start=2):
        write_llama(directory / name, shape, seed=seed, shard_size=shard_size, finetune_of=base)
    return [_write_plan(directory, name) for name in PLANS]


def _write_plan(directory: Path, name: str) -> Path:
    text = (files("mergegraph.testing") / "plans" / f"{name}.yml").read_text(encoding="utf-8")
    path = directory / f"{name}.yml"
    path.write_text(text.replace(_PLACE, f"{directory.resolve()}/"), encoding="utf-8")
    return path
