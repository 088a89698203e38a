"""A small base model and prompts for three experts; the recorded rows are of these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mergegraph.routing.gates import GateRequest
from mergegraph.routing.prompts import GatePrompts
from mergegraph.routing.weights import Array, CheckpointWeights
from mergegraph.storage.local import open_checkpoint
from mergegraph.storage.reader import Reader
from mergegraph.testing.tiny import Llama, write_llama

LAYERS = 3
SHAPE = Llama(layers=LAYERS, hidden=32, intermediate=48, heads=4, kv_heads=2, vocab=260)
GOLDEN = Path(__file__).with_name("golden") / "rows.npz"

EXPERTS = (
    GatePrompts("poet", ("write a poem", "tell me a story about rain"), ("def main():",)),
    GatePrompts("coder", ("def main():", "import numpy as np")),
    GatePrompts("counter", ("2 + 2 = 4",), ("a", "write a poem")),
)
SHARED = (GatePrompts("shared", ("anything at all", "hello"), ("a",)),)
EVEN = (
    GatePrompts("poet", ("write a poem", "sing a song!")),
    GatePrompts("coder", ("def main(x):", "import numpy"), ("1 + 2 + 3 = ",)),
)
"""Prompts of equal length within each list: where nothing is padded, a mean over padding is right."""


@dataclass(frozen=True, slots=True)
class Case:
    """One recorded run of mergekit-moe."""

    mode: str
    dtype: str
    experts: tuple[GatePrompts, ...] = EXPERTS
    shared: tuple[GatePrompts, ...] = ()


CASES = {
    "cheap_embed": Case("cheap_embed", "F32"),
    "cheap_embed_bf16": Case("cheap_embed", "BF16"),
    "cheap_embed_shared": Case("cheap_embed", "F32", shared=SHARED),
    "hidden": Case("hidden", "F32"),
    "hidden_bf16": Case("hidden", "BF16"),
    "hidden_avg_bf16": Case("hidden_avg", "BF16", experts=EVEN),
}


def write_base(directory: Path, dtype: str = "F32") -> Path:
    return write_llama(directory, SHAPE, seed=1, dtype=dtype)


def request_for(directory: Path, mode: str, experts: tuple[GatePrompts, ...] = EXPERTS) -> GateRequest:
    return GateRequest("the base", directory, LAYERS, experts, mode)


class CountingWeights(CheckpointWeights):
    """The weights of a checkpoint, and what was read of them."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.reads: list[tuple[str, int, int | None]] = []

    def read(self, name: str, begin_row: int = 0, rows: int | None = None) -> Array:
        self.reads.append((name, begin_row, rows))
        return super().read(name, begin_row, rows)


@contextmanager
def weights_of(directory: Path) -> Iterator[CountingWeights]:
    index = open_checkpoint(str(directory), name="base")
    with Reader({"base": index}) as reader:
        yield CountingWeights(index, reader, "base")
