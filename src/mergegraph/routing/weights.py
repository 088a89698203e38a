"""The base model's weights, as routing reads them: by name, by rows, as the bits that are stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mergegraph.architectures.roles import is_token_embedding
from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.errors import CheckpointError
from mergegraph.storage.reader import Reader
from mergegraph.tensorspec import DType, TensorSpec

Array = NDArray[Any]

STORED = {DType.BF16: np.uint16, DType.F16: np.uint16, DType.F32: np.float32, DType.F64: np.float64}
"""What numpy holds the bits of each float dtype in."""


class Weights(Protocol):
    """Whatever can give the tensors of the base model: a checkpoint, or a merge that is not written yet."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """What there is, by the names that it is stored under."""
        ...

    def read(self, name: str, begin_row: int = 0, rows: int | None = None) -> Array:
        """Return `rows` rows of a float tensor from `begin_row` on (by default all): its stored bits.

        bfloat16 and float16 come as uint16. The array belongs to the caller, who may write to it.
        """
        ...


class CheckpointWeights:
    """The weights of a checkpoint. Nothing is kept: every read is a read of the file.

    Args:
        index: the checkpoint.
        reader: reads it.
        source: the key that `reader` knows it by.
    """

    def __init__(self, index: CheckpointIndex, reader: Reader, source: str) -> None:
        self._reader = reader
        self._source = source
        self._root = index.root
        self._specs = {name: entry.spec for name, entry in index.tensors.items()}

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        """What there is, by name."""
        return self._specs

    def read(self, name: str, begin_row: int = 0, rows: int | None = None) -> Array:
        """Return rows of a tensor, as `Weights` says."""
        spec = self._specs[name]
        if spec.dtype not in STORED:
            raise CheckpointError(
                f"{name} is {spec}; router rows can only be computed from floating-point weights",
                path=self._root,
                hint="dequantise the base model first, or use a gate_mode that reads no weights",
            )
        shape = spec.shape
        if rows is not None:
            if not (shape and 0 <= begin_row <= begin_row + rows <= shape[0]):
                raise ValueError(f"{name}: rows {begin_row}+{rows} are not within {shape}")
            shape = (rows, *shape[1:])
        stored = np.empty(shape, STORED[spec.dtype])
        stride = math.prod(spec.shape[1:]) * stored.itemsize
        self._reader.read_into(self._source, name, begin_row * stride if rows is not None else 0, stored.data)
        return stored


def widen(stored: Array, dtype: DType) -> Array:
    """Return the numbers that stored bits mean: float64 for float64, else float32, always exact."""
    if dtype is DType.BF16:
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if dtype is DType.F16:
        return stored.view(np.float16).astype(np.float32)
    return stored


def embedding_name(weights: Weights, where: str) -> str:
    """Return the name of the input token embedding.

    Args:
        weights: the base model.
        where: the base model's directory, for messages.

    Raises:
        CheckpointError: there is none, or there are several.
    """
    names = [n for n, spec in weights.specs.items() if is_token_embedding(n) and len(spec.shape) == 2]
    if len(names) != 1:
        found = "none of its tensors is" if not names else f"{', '.join(names)} all look like"
        raise CheckpointError(
            f"{found} an input token embedding",
            path=where,
            hint="give a decoder-only language model as base_model",
        )
    return names[0]


def embedding_rows(weights: Weights, name: str, tokens: Array, where: str) -> Array:
    """Read the embedding rows of `tokens` (sorted, distinct) and nothing else, as stored bits.

    Raises:
        CheckpointError: a token is beyond the table: tokenizer and weights do not belong together.
    """
    vocabulary, hidden = weights.specs[name].shape
    if tokens.size and int(tokens[-1]) >= vocabulary:
        raise CheckpointError(
            f"the tokenizer gives token {int(tokens[-1])}, but {name} has only {vocabulary} rows",
            path=where,
            hint="tokenizer.json is of another model, or tokens were added to it without resizing the model",
        )
    # Neighbours are read together.
    starts = np.flatnonzero(np.diff(tokens, prepend=-2) != 1)
    stops = np.append(starts[1:], tokens.size)
    runs = [
        weights.read(name, int(tokens[start]), int(stop - start))
        for start, stop in zip(starts, stops, strict=True)
    ]
    return np.concatenate(runs) if runs else np.empty((0, hidden), np.float32)
