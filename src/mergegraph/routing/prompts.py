"""Prompts → token ids, from ``tokenizer.json`` alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from mergegraph.errors import CheckpointError, PlanError, Problem

_TOKENIZER = "tokenizer.json"
# Where a BOS token may be named; the first file that has the key decides, even with null.
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True, slots=True)
class GatePrompts:
    """What one expert is for: prompts it should be chosen for, and prompts it should not be.

    `label` names the expert in messages and reports.
    """

    label: str
    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptGroup:
    """The prompts of one expert as positions in a `PromptTable`."""

    positive: tuple[int, ...]
    negative: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PromptTable:
    """All prompts as token ids, each distinct one once, and which of them belong to which expert."""

    tokens: tuple[tuple[int, ...], ...]
    groups: tuple[PromptGroup, ...]

    @property
    def vocabulary(self) -> Any:
        """The token ids that occur, sorted, as an int64 array."""
        return np.unique(np.concatenate([np.asarray(row, dtype=np.int64) for row in self.tokens]))


class PromptEncoder:
    """The tokenizer of a model directory, used as the usual MoE configurations expect.

    Every prompt is prefixed with the text of the BOS token, if the tokenizer names one, and no other special
    token is added.

    Attributes:
        bos: that text, or None.

    Raises:
        CheckpointError: the directory has no usable ``tokenizer.json``.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / _TOKENIZER
        if not self._path.is_file():
            raise CheckpointError(
                "has no tokenizer.json, which prompts are read with",
                path=str(directory),
                hint="add the model's tokenizer.json (save_pretrained of its AutoTokenizer writes one), or "
                "use the gate_mode random, uniform_random or zero, which needs no prompts",
            )
        try:
            self._tokenizer = Tokenizer.from_file(str(self._path))
        except Exception as error:  # the library raises nothing more specific
            raise CheckpointError(
                f"is not a tokenizer: {str(error)[:200]}",
                path=str(self._path),
                hint="fetch or export it again",
            ) from error
        # Whatever the file was saved with: prompts are neither cut nor filled up.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.bos = _bos(directory)

    def table(self, experts: Iterable[GatePrompts]) -> PromptTable:
        """Encode the prompts of all experts.

        Raises:
            PlanError: a prompt has no tokens.
        """
        rows: dict[tuple[int, ...], int] = {}
        problems: list[Problem] = []

        def place(label: str, prompts: Sequence[str]) -> tuple[int, ...]:
            found = []
            for prompt in prompts:
                ids = self.encode(prompt)
                if not ids:
                    problems.append(_empty(label, prompt))
                found.append(rows.setdefault(ids, len(rows)))
            return tuple(found)

        groups = tuple(PromptGroup(place(e.label, e.positive), place(e.label, e.negative)) for e in experts)
        if problems:
            raise PlanError(problems)
        return PromptTable(tuple(rows), groups)

    def encode(self, prompt: str) -> tuple[int, ...]:
        """Return the token ids of one prompt, BOS first if there is one."""
        return tuple(self._tokenizer.encode(f"{self.bos or ''}{prompt}", add_special_tokens=False).ids)


def _empty(label: str, prompt: str) -> Problem:
    return Problem(f"{label}: the prompt {prompt[:40]!r} has no tokens", hint="remove it or write more text")


def _bos(directory: Path) -> str | None:
    for name in _SETTINGS:
        path = directory / name
        if not path.is_file():
            continue
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(settings, dict):
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError, OSError) as error:
            raise CheckpointError(
                f"is not a tokenizer's settings: {str(error)[:200]}",
                path=str(path),
                hint="fetch or export it again",
            ) from None
        if "bos_token" in settings:
            token = settings["bos_token"]
            text = token.get("content") if isinstance(token, dict) else token
            return text if isinstance(text, str) and text else None
    return None
