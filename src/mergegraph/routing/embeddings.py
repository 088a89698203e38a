"""What a prompt looks like to the embedding table: the sum of its tokens' rows. No model is loaded."""

from __future__ import annotations

import numpy as np

from mergegraph.routing.prompts import PromptTable
from mergegraph.routing.weights import Array, Weights, embedding_name, embedding_rows, widen

_BLOCK = 256
"""Embedding rows held at a time."""


def prompt_sums(weights: Weights, table: PromptTable, where: str) -> Array:
    """Return ``[prompts, hidden]`` float64: the sum of the embeddings of each prompt's tokens.

    Only the rows of tokens that occur are read, each once.

    Args:
        weights: the base model.
        table: the prompts.
        where: the base model's directory, for messages.

    Raises:
        CheckpointError: there is no embedding, or it is too small for the tokenizer.
    """
    name = embedding_name(weights, where)
    spec = weights.specs[name]
    tokens = table.vocabulary
    counts = np.zeros((len(table.tokens), tokens.size))
    for counted, row in zip(counts, table.tokens, strict=True):
        np.add.at(counted, np.searchsorted(tokens, row), 1.0)
    sums = np.zeros((len(table.tokens), spec.shape[1]))
    for start in range(0, tokens.size, _BLOCK):
        rows = widen(embedding_rows(weights, name, tokens[start : start + _BLOCK], where), spec.dtype)
        # One row after the other: a matrix product would round as the machine's BLAS likes.
        for column, row in enumerate(rows, start):
            for prompt in np.flatnonzero(counts[:, column]):
                sums[prompt] += counts[prompt, column] * row.astype(np.float64)
    return sums
