"""Router rows from prompts: computed, or found in the cache, before a run loads them like any checkpoint."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from mergegraph.checkpoint.index import CheckpointIndex, TensorEntry
from mergegraph.checkpoint.names import layer_and_suffix
from mergegraph.compiler.inputs import Input
from mergegraph.compiler.merge import Compiled
from mergegraph.compiler.models import Model
from mergegraph.graph.graph import Graph, SourceTensor
from mergegraph.graph.node import walk
from mergegraph.plan.moe import MoeExpert, MoePlan
from mergegraph.plan.source import Problems
from mergegraph.storage.local import open_checkpoint, sample_digest
from mergegraph.storage.reader import Reader
from mergegraph.tensorspec import TensorSpec

if TYPE_CHECKING:
    from mergegraph.routing.gates import GateArtefact
    from mergegraph.routing.weights import Weights

OnTokens = Callable[[int, int], None]
"""(tokens that have passed a layer, how many will)"""


_LIBRARIES = 360 << 20
"""What torch and transformers take once they are loaded; they stay."""
_STATES = 96 << 20
"""What a batch of prompts takes on its way through a layer."""
_TOKENS = 24 << 20
"""What the tokenizer and embedding rows take."""


@dataclass(frozen=True)
class RowsWork:
    """Rows that are not there yet: what they are computed from, and how they will be loaded.

    Attributes:
        key: the checkpoint key that the graph loads them by.
        index: stands for them while planning: specs, but no file.
        plan: the prompts, and how they become rows.
        base: the model that reads the prompts.
    """

    key: str
    index: CheckpointIndex
    plan: MoePlan
    base: Model

    def memory(self, running: int) -> int:
        """Most bytes held while rows are computed, or by a run of `running` bytes after it.

        Modes that run the base model hold one layer, as it is stored and as it is computed with.
        """
        if self.plan.gate_mode == "cheap_embed":
            return running + _TOKENS
        layers: dict[str, int] = {}
        for name, output in self.base.outputs.items():
            layer, _ = layer_and_suffix(name)
            if layer:
                layers[layer] = layers.get(layer, 0) + output.spec.nbytes
        largest = max((o.spec.nbytes for o in self.base.outputs.values()), default=0)
        kept = largest if self.base.merged is not None else 0
        forward = _TOKENS + _STATES + 2 * max(layers.values(), default=0) + kept
        return _LIBRARIES + max(forward, running)

    def compute(
        self, fetched: Mapping[str, Input], device: str, on_tokens: OnTokens
    ) -> tuple[CheckpointIndex, GateArtefact]:
        """Compute the rows, or find them, and return them as a checkpoint.

        Args:
            fetched: every input, by key, with its files on this machine.
            device: where hidden states are computed.
            on_tokens: told how far the computation is.

        Raises:
            CheckpointError: the base has no tokenizer, or cannot be run.
            MissingPackageError: the mode needs transformers.
        """
        from mergegraph.routing.gates import GateRequest, gate_rows  # loads tokenizers
        from mergegraph.routing.prompts import GatePrompts

        def prompts(kind: str, listed: tuple[MoeExpert, ...]) -> tuple[GatePrompts, ...]:
            return tuple(GatePrompts(f"{kind} {i}", e.positive, e.negative) for i, e in enumerate(listed))

        donor = fetched[self.base.donor.key]
        shared = self.plan.shared if any(e.positive for e in self.plan.shared) else ()
        request = GateRequest(
            base=self._digest(fetched),
            directory=Path(donor.index.root),
            layers=1 + max(int(name.split(".")[1]) for name in self.index.tensors),
            experts=prompts("expert", self.plan.experts),
            mode=str(self.plan.gate_mode),
            shared=prompts("shared expert", shared),
            experts_per_token=self.plan.experts_per_token,
            centre=self.plan.router.centre,
            temperature=self.plan.router.temperature,
        )
        with Reader({key: model.index for key, model in fetched.items()}) as reader:
            artefact = gate_rows(request, self._weights(donor, reader), device=device, progress=on_tokens)
        return open_checkpoint(str(artefact.path), name=self.key), artefact

    def _weights(self, donor: Input, reader: Reader) -> Weights:
        from mergegraph.engine.computed import ComputedWeights
        from mergegraph.routing.weights import CheckpointWeights

        if self.base.merged is not None:
            return ComputedWeights(self.base.merged.graph, reader)
        return CheckpointWeights(donor.index, reader, donor.key)

    def _digest(self, fetched: Mapping[str, Input]) -> str:
        """What decides the base model's weights."""
        digest = blake2b(digest_size=16)
        graph = self.base.merged.graph if self.base.merged is not None else Graph(self.base.outputs)
        digest.update(graph.fingerprint.encode())
        for key in dict.fromkeys(source.checkpoint for source in graph.sources()):
            index = fetched[key].index
            digest.update(f"{index.identity}{sample_digest(index)}".encode())
            digest.update(repr(sorted((f.name, f.size, f.stamp) for f in index.files.values())).encode())
        return digest.hexdigest()


def check_rows(plan: MoePlan, base: Model, problems: Problems) -> None:
    """Note what is missing for computing rows: better now than after an hour."""
    mode = str(plan.gate_mode)
    if "tokenizer.json" not in base.donor.index.sidecars:
        hint = "add the file (tokenizers save it as save_pretrained), or use gate_mode: random"
        text = f"gate_mode {mode} reads prompts, and {base.donor.name} has no tokenizer.json"
        problems.add(text, plan.base_origin, hint)
    if mode != "cheap_embed" and importlib.util.find_spec("transformers") is None:
        hint = "pip install 'mergegraph[moe]', or use gate_mode: cheap_embed"
        problems.add(f"gate_mode {mode} needs the package transformers", plan.gate_origin, hint)


def rows_work(plan: MoePlan, base: Model, key: str, compiled: Compiled) -> RowsWork:
    """What is to be computed for the rows that a compiled plan loads by `key`."""
    specs: dict[str, TensorSpec] = {}
    for output in compiled.graph.outputs.values():
        for part in output.parts:
            for n in walk([part.expression]):
                source = _source(n.attributes.get("slot"), part.sources) if n.op.name == "load" else None
                if source is not None and source.checkpoint == key:
                    specs[source.tensor] = n.spec
    entries, begin = {}, 0
    for name, spec in specs.items():
        entries[name] = TensorEntry(spec, "rows", begin, begin + spec.nbytes)
        begin += spec.nbytes
    return RowsWork(key, CheckpointIndex("router rows", "", entries, {}, {}), plan, base)


def _source(slot: object, sources: tuple[SourceTensor, ...]) -> SourceTensor | None:
    return sources[slot] if isinstance(slot, int) else None
