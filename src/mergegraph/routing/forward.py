"""The base model's hidden states, computed with one decoder layer in memory at a time.

transformers' own modules do all arithmetic, so the numbers are those of the whole model, bit for bit. The
model is built without weights; the token embedding gets only the rows that the prompts use. Then, layer by
layer, the decoder's own forward is called with every layer but one replaced by the identity: this
leaves masks and position embeddings to the family's code, and nothing of them is kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor, nn

from mergegraph.errors import CheckpointError, MissingPackageError
from mergegraph.routing.prompts import PromptTable
from mergegraph.routing.weights import STORED, Array, Weights, embedding_name, embedding_rows
from mergegraph.tensorspec import DType

BATCH_TOKENS = 1024
"""Tokens run at once, padding included (a longer prompt runs alone)."""

STATE_BYTES = 256 * 2**20
"""Hidden states held in memory; more of them lie in a temporary file."""

_EMBEDDING = "embed_tokens"
_TORCH = {
    DType.BF16: torch.bfloat16,
    DType.F16: torch.float16,
    DType.F32: torch.float32,
    DType.F64: torch.float64,
}
_MLP_NAMES = ("mlp", "feed_forward")
_OTHER_GATES = "use the gate_mode cheap_embed, random, uniform_random or zero"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class LayerStates:
    """What one layer sees of every prompt: ``[prompts, hidden]`` float32 each, in the table's order.

    Attributes:
        layer: which.
        hidden: the input of the layer.
        router: the input of its MLP, which a router in its place sees.
    """

    layer: int
    hidden: Array
    router: Array


@dataclass(frozen=True, slots=True)
class _Batch:
    """Prompts that run together, padded on the right."""

    prompts: tuple[int, ...]
    lengths: tuple[int, ...]
    ids: Tensor
    mask: Tensor


class StreamedDecoder:
    """The decoder of a base model without its weights, and where to read them.

    Args:
        weights: the base model.
        directory: its directory, for ``config.json``.
        device: where layers are computed.

    Raises:
        MissingPackageError: transformers is not installed.
        CheckpointError: the base is of a family that cannot be run layer by layer.
    """

    def __init__(self, weights: Weights, directory: Path, device: str) -> None:
        self._weights = weights
        self._where = str(directory)
        self._device = torch.device(device)
        self._embedding = embedding_name(weights, self._where)
        self._prefix = self._embedding.removesuffix(f"{_EMBEDDING}.weight")
        self._dtype = self._stored_dtype()
        self._model = self._build(directory)
        self._forwards = [layer.forward for layer in self._model.layers]
        self._mlps = [self._mlp(layer) for layer in self._model.layers]
        for module in (*self._model.layers, self._model.norm):
            module.forward = _identity

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return len(self._forwards)

    def run(
        self, table: PromptTable, pooling: str, scratch: Path, progress: Progress | None = None
    ) -> Iterator[LayerStates]:
        """Run all prompts through all layers, and yield what each layer sees.

        Only real tokens count, never padding.

        Args:
            table: the prompts.
            pooling: what stands for a prompt: ``last`` (its last token) or ``mean`` (over its tokens).
            scratch: a directory for hidden states that do not fit in memory.
            progress: told the tokens done, and all that there are to do, over all layers.

        Raises:
            CheckpointError: the weights are not those of the config, or cannot be read.
        """
        batches = self._batches(table)
        total = self.layers * sum(sum(batch.lengths) for batch in batches)
        done = 0
        states = self._embed(batches, table, scratch)
        for index, layer in enumerate(self._model.layers):
            self._load(layer, f"{self._prefix}layers.{index}.")
            seen = [np.empty((len(table.tokens), states[0].shape[-1]), np.float32) for _ in range(2)]
            for batch, state in zip(batches, states, strict=True):
                before = state.to(self._device)
                after, router = self._step(index, batch, before)
                for array, values in zip(seen, (before, router), strict=True):
                    array[list(batch.prompts)] = _pool(values, batch.lengths, pooling)
                state.copy_(after)
                done += sum(batch.lengths)
                if progress is not None:
                    progress(done, total)
            layer.to("meta")
            yield LayerStates(index, *seen)

    def _step(self, index: int, batch: _Batch, state: Tensor) -> tuple[Tensor, Tensor]:
        """Run one layer on `state`; return its output and what its MLP was given."""
        layer, forward = self._model.layers[index], self._forwards[index]
        outputs: list[Tensor] = []
        routed: list[Tensor] = []

        def live(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            out = forward(state, *args, **kwargs)
            outputs.append(out[0] if isinstance(out, tuple) else out)
            return hidden

        hook = self._mlps[index].register_forward_pre_hook(lambda _, args: routed.append(args[0]))
        layer.forward = live
        try:
            self._call(batch)
        finally:
            layer.forward = _identity
            hook.remove()
        if len(outputs) != 1 or len(routed) != 1 or outputs[0].shape != state.shape:
            raise self._unsupported("its layers do not pass one hidden state from one to the next")
        return outputs[0], routed[0].reshape(state.shape)

    def _call(self, batch: _Batch) -> Tensor:
        ids, mask = batch.ids.to(self._device), batch.mask.to(self._device)
        with torch.no_grad():
            out = self._model(input_ids=ids, attention_mask=mask, use_cache=False)
        hidden: Tensor = out.last_hidden_state
        return hidden

    def _embed(self, batches: Sequence[_Batch], table: PromptTable, scratch: Path) -> list[Tensor]:
        """Install the embedding rows that are needed, and return the input of the first layer."""
        stored = embedding_rows(self._weights, self._embedding, table.vocabulary, self._where)
        rows = self._tensor(self._embedding, stored).to(self._dtype)
        module = self._model.embed_tokens
        module.weight = nn.Parameter(rows.to(self._device), requires_grad=False)
        module.padding_idx = None  # an id of the whole table, of use in training only
        shapes = [(*batch.ids.shape, rows.shape[1]) for batch in batches]
        states = _allocate(shapes, self._dtype, scratch)
        for batch, state in zip(batches, states, strict=True):
            first = self._call(batch)
            if first.shape != state.shape:
                raise self._unsupported("its layers do not pass one hidden state from one to the next")
            state.copy_(first)
        return states

    def _batches(self, table: PromptTable) -> list[_Batch]:
        """Group prompts of similar length, so that little is padding."""
        order = sorted(range(len(table.tokens)), key=lambda prompt: (len(table.tokens[prompt]), prompt))
        groups: list[list[int]] = [[]]
        for prompt in order:
            if groups[-1] and (len(groups[-1]) + 1) * len(table.tokens[prompt]) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(prompt)
        vocabulary = table.vocabulary
        return [_batch(group, table, vocabulary) for group in groups]

    def _load(self, layer: nn.Module, prefix: str) -> None:
        for name, empty in layer.state_dict().items():
            spec = self._weights.specs.get(prefix + name)
            if spec is None or spec.shape != tuple(empty.shape):
                have = "is not among its tensors" if spec is None else f"is {spec}"
                wanted = f"{type(layer).__name__} of transformers needs it as {list(empty.shape)}"
                raise CheckpointError(
                    f"{prefix}{name} {have}; {wanted}",
                    path=self._where,
                    hint=f"hidden states need a dense base model that fits its config.json; {_OTHER_GATES}",
                )
            value = self._tensor(prefix + name, self._weights.read(prefix + name))
            set_module_tensor_to_device(layer, name, self._device, value=value)

    def _tensor(self, name: str, stored: Array) -> Tensor:
        """View stored bits as what they mean."""
        dtype = _TORCH[self._weights.specs[name].dtype]
        if stored.dtype == np.uint16:  # torch has no use for unsigned 16-bit numbers
            return torch.from_numpy(stored.view(np.int16)).view(dtype)
        return torch.from_numpy(stored)

    def _stored_dtype(self) -> torch.dtype:
        """The dtype that most of the layers' bytes are stored in; everything is computed in it."""
        sizes: dict[DType, int] = {}
        for name, spec in self._weights.specs.items():
            if name.startswith(f"{self._prefix}layers."):
                sizes[spec.dtype] = sizes.get(spec.dtype, 0) + spec.nbytes
        if not sizes or not self._embedding.endswith(f"{_EMBEDDING}.weight"):
            raise self._unsupported(f"it has no tensors called …{_EMBEDDING}.weight and …layers.0.…")
        main = max(sizes, key=lambda dtype: sizes[dtype])
        if main not in STORED:
            raise self._unsupported(f"its layers are stored as {main.torch_name}")
        return _TORCH[main]

    def _build(self, directory: Path) -> Any:
        """Make the decoder as transformers would, without memory for its weights."""
        try:
            from transformers import AutoConfig, AutoModel  # slow to import, and optional
        except ImportError as error:
            raise MissingPackageError("hidden-state gates", "transformers", extra="moe") from error
        try:
            loaded: Any = AutoConfig.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
            config = loaded.get_text_config(decoder=True)
            with init_empty_weights(include_buffers=False):
                make: Any = AutoModel.from_config
                model = make(config, dtype=self._dtype, trust_remote_code=False)
        except Exception as error:  # whatever the model class does not like about the config
            reason = " ".join(str(error).split())[:300]
            raise self._unsupported(f"transformers cannot build it: {reason}") from error
        self._check(model, config)
        for name, buffer in list(model.named_buffers()):
            if buffer.device != self._device:
                set_module_tensor_to_device(model, name, self._device, value=buffer)
        model.eval()
        return model

    def _check(self, model: Any, config: Any) -> None:
        inner = getattr(model, "layers", None)
        if not isinstance(inner, nn.ModuleList) or not hasattr(model, "norm"):
            raise self._unsupported(f"{type(model).__name__} has no plain stack of layers")
        known = (f"{_EMBEDDING}.", "layers.", "norm.")
        others = [name for name in model.state_dict() if not name.startswith(known)]
        if others:
            raise self._unsupported(f"it has parameters outside its layers: {', '.join(others[:3])}")
        if getattr(config, "num_kv_shared_layers", 0):
            raise self._unsupported("its layers share keys and values")

    def _mlp(self, layer: nn.Module) -> nn.Module:
        for name in _MLP_NAMES:
            module = getattr(layer, name, None)
            if isinstance(module, nn.Module):
                return module
        raise self._unsupported(f"{type(layer).__name__} has no MLP called {' or '.join(_MLP_NAMES)}")

    def _unsupported(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"cannot be run layer by layer for hidden-state gates: {reason}",
            path=self._where,
            hint=_OTHER_GATES,
        )


def _identity(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden


def _batch(prompts: Sequence[int], table: PromptTable, vocabulary: Array) -> _Batch:
    """Pad prompts on the right, in ids of the compact embedding table."""
    lengths = tuple(len(table.tokens[prompt]) for prompt in prompts)
    ids = torch.zeros((len(prompts), max(lengths)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, (prompt, length) in enumerate(zip(prompts, lengths, strict=True)):
        compact = np.searchsorted(vocabulary, np.asarray(table.tokens[prompt], np.int64))
        ids[row, :length] = torch.from_numpy(compact)
        mask[row, :length] = 1
    return _Batch(tuple(prompts), lengths, ids, mask)


def _allocate(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, scratch: Path) -> list[Tensor]:
    """Room for the hidden states of all batches, on the CPU: in memory, or in a file that has no name."""
    ends = np.cumsum([0] + [int(np.prod(shape)) for shape in shapes])
    size = int(ends[-1]) * dtype.itemsize
    if size <= STATE_BYTES:
        return [torch.empty(shape, dtype=dtype) for shape in shapes]
    with tempfile.TemporaryFile(dir=scratch) as file:
        held = torch.from_numpy(np.memmap(file, np.uint8, "w+", shape=(size,))).view(dtype)
    return [held[a:b].view(shape) for (a, b), shape in zip(pairwise(ends.tolist()), shapes, strict=True)]


def _pool(values: Tensor, lengths: Sequence[int], pooling: str) -> Array:
    """Reduce ``[batch, tokens, hidden]`` to one float32 vector for each prompt."""
    pairs = zip(values, lengths, strict=True)
    if pooling == "last":
        pooled = [row[length - 1].float() for row, length in pairs]
    else:
        pooled = [row[:length].float().mean(dim=0) for row, length in pairs]
    found: Array = torch.stack(pooled).cpu().numpy()
    return found
