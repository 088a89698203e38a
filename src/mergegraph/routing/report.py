"""What is known of a router before it is used: a report as plain data, and warnings in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mergegraph.routing.prompts import PromptGroup
from mergegraph.routing.rows import Balance, balance, condition, cosines, worst_pair
from mergegraph.routing.weights import Array

CONDITION_LIMIT = 5.0
"""Above it rows are so alike that users of the same configurations are used to being warned."""

_DIGITS = 5


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One layer's router.

    Attributes:
        condition: condition number of its rows; None if they are linearly dependent.
        worst: the two experts whose rows are most alike, and their cosine; None for a single expert.
        balance: where it sends the experts' own prompts.
    """

    condition: float | None
    worst: tuple[int, int, float] | None
    balance: Balance


@dataclass(frozen=True, slots=True)
class GateReport:
    """All routers that one set of prompts gives.

    Attributes:
        mode: how their rows were computed.
        experts: the experts' labels; numbers elsewhere are positions here.
        prompts: number of distinct prompts.
        tokens: number of their tokens.
        bos: the text that every prompt was prefixed with, or None.
        layers: one report for each layer.
        overlap: cosines of all pairs of experts' rows, averaged over layers.
        notes: what deserves attention, in words.
    """

    mode: str
    experts: tuple[str, ...]
    prompts: int
    tokens: int
    bos: str | None
    layers: tuple[LayerReport, ...]
    overlap: tuple[tuple[float, ...], ...]
    notes: tuple[str, ...]

    @property
    def load(self) -> tuple[float, ...]:
        """Per expert, its share of all choices, averaged over layers."""
        shares = np.mean([layer.balance.load for layer in self.layers], axis=0)
        return tuple(float(share) for share in shares)

    @property
    def own(self) -> tuple[float, ...]:
        """Per expert, the share of its own prompts that choose it, averaged over layers."""
        return tuple(float(s) for s in np.mean([layer.balance.own for layer in self.layers], axis=0))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain data, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GateReport:
        """Return the report that `as_dict` was called on.

        Raises:
            KeyError: a field is missing.
            TypeError: a field is of another kind.
        """
        layers = tuple(
            LayerReport(
                layer["condition"],
                None if layer["worst"] is None else (layer["worst"][0], layer["worst"][1], layer["worst"][2]),
                Balance(*(tuple(layer["balance"][field]) for field in ("load", "mass", "own"))),
            )
            for layer in data["layers"]
        )
        return cls(
            mode=data["mode"],
            experts=tuple(data["experts"]),
            prompts=data["prompts"],
            tokens=data["tokens"],
            bos=data["bos"],
            layers=layers,
            overlap=tuple(tuple(row) for row in data["overlap"]),
            notes=tuple(data["notes"]),
        )


class Reporter:
    """Collects layers, and says what is to be said of all of them together.

    Args:
        experts: the experts' labels.
        groups: their prompts.
        chosen: how many experts a token will choose.
        centred: whether what all rows have in common was subtracted from them.
    """

    def __init__(
        self, experts: Sequence[str], groups: Sequence[PromptGroup], chosen: int, *, centred: bool = False
    ) -> None:
        self._experts = tuple(experts)
        self._groups = groups
        self._chosen = chosen
        self._centred = centred
        self._overlap = np.zeros((len(experts), len(experts)))
        self._layers: list[LayerReport] = []
        self._empty: dict[int, int] = {}

    def add(self, rows: Array, probes: Array) -> None:
        """Take in the next layer.

        Args:
            rows: ``[experts, hidden]``.
            probes: ``[prompts, hidden]``: what the router sees of each prompt.
        """
        overlap = cosines(rows)
        self._overlap += overlap
        for expert in np.flatnonzero(~rows.any(axis=1)).tolist():
            self._empty[expert] = self._empty.get(expert, 0) + 1
        worst = worst_pair(overlap)
        number = condition(rows, centred=self._centred)
        found = balance(rows, probes, self._groups, self._chosen)
        self._layers.append(
            LayerReport(
                None if number is None else round(number, _DIGITS),
                None if worst is None else (worst[0], worst[1], round(worst[2], _DIGITS)),
                Balance(_rounded(found.load), _rounded(found.mass), _rounded(found.own)),
            )
        )

    def finish(
        self, mode: str, prompts: int, tokens: int, bos: str | None, notes: Sequence[str]
    ) -> GateReport:
        """Return the report of all layers; its notes begin with `notes`."""
        overlap = self._overlap / max(len(self._layers), 1)
        return GateReport(
            mode=mode,
            experts=self._experts,
            prompts=prompts,
            tokens=tokens,
            bos=bos,
            layers=tuple(self._layers),
            overlap=tuple(_rounded(row) for row in overlap.tolist()),
            notes=(*notes, *self._notes()),
        )

    def _notes(self) -> list[str]:
        notes = [
            f"{self._experts[expert]}: the router row is zero in {_layers(count, len(self._layers))}: "
            "its prompts cancel out"
            for expert, count in sorted(self._empty.items())
        ]
        if len(self._experts) > 1:
            notes += self._condition_notes()
            if self._chosen < len(self._experts):
                notes += self._balance_notes()
        return notes

    def _condition_notes(self) -> list[str]:
        poor = [x for x in self._layers if x.condition is None or x.condition > CONDITION_LIMIT]
        if not poor:
            return []
        # Dependent rows are the worst of all.
        worst = max(poor, key=lambda x: float("inf") if x.condition is None else x.condition)
        number = "infinite" if worst.condition is None else f"{worst.condition:.1f}"
        pair = ""
        if worst.worst is not None:
            first, second, cosine = worst.worst
            pair = (
                f"; most alike are {self._experts[first]} and {self._experts[second]} (cosine {cosine:.3f})"
            )
        otherwise = "" if self._centred else ", or centre the rows"
        return [
            f"in {_layers(len(poor), len(self._layers))} the router rows are nearly dependent: condition "
            f"number up to {number}, above {CONDITION_LIMIT:g}{pair}. Make the experts' prompts differ "
            f"more{otherwise}"
        ]

    def _balance_notes(self) -> list[str]:
        own = np.mean([layer.balance.own for layer in self._layers], axis=0)
        chance = self._chosen / len(self._experts)
        return [
            f"{label}: only {share:.0%} of its own prompts choose it (by chance {chance:.0%} would)"
            for label, share in zip(self._experts, own.tolist(), strict=True)
            if share < chance
        ]


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(round(value, _DIGITS) for value in values)


def _layers(count: int, total: int) -> str:
    if count == total:
        return "every layer"
    return f"{count} of {total} layers"
