"""Where the rows of a router come from, as MoE plans and upcycling say it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mergegraph.plan import schema
from mergegraph.plan.fields import Fields, read_mapping

GATE_MODES = {
    "hidden": True,
    "hidden_last": True,
    "hidden_avg": True,
    "router_input": True,
    "router_input_avg": True,
    "cheap_embed": True,
    "random": False,
    "uniform_random": False,
    "zero": False,
}
"""Every gate mode, and whether it reads prompts."""

BLIND_MODES = tuple(mode for mode, reads_prompts in GATE_MODES.items() if not reads_prompts)


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """How router rows are scaled.

    Attributes:
        centre: subtract what the rows of all experts have in common; for modes that read prompts.
        temperature: what rows are divided by; for modes that read prompts.
        std: standard deviation of random rows.
    """

    centre: bool = False
    temperature: float = 1.0
    std: float = 1.0


def read_gate_mode(fields: Fields, modes: Iterable[str], default: str) -> str | None:
    """Read ``gate_mode:``; None if it is given and is none of `modes`."""
    hint = f"{', '.join(BLIND_MODES)} need no prompts"
    return fields.optional_choice("gate_mode", modes, hint) if fields.entry("gate_mode") else default


def reads_prompts(mode: str | None) -> bool:
    """Whether a gate mode, if it is known, makes rows from prompts."""
    return mode is not None and GATE_MODES[mode]


def read_router(fields: Fields, mode: str | None, default: RouterOptions) -> RouterOptions:
    """Read ``router:``; an option that `mode` does not use is a problem."""
    entry = fields.entry("router")
    if entry is None or not read_mapping(entry.value, schema.ROUTER.names, "router", fields.problems):
        return default
    options = Fields(entry.value, fields.problems)
    centre = options.flag("centre")
    temperature = options.number("temperature", above=0)
    std = options.number("std", above=0)
    used = {"centre": reads_prompts(mode), "temperature": reads_prompts(mode), "std": mode == "random"}
    for key, in_use in used.items():
        given = options.entry(key)
        if given is not None and mode is not None and not in_use:
            message = f"{key} has no effect with gate_mode {mode}"
            fields.problems.add(message, given.origin, "remove it, or choose another gate_mode")
    return RouterOptions(
        centre,
        default.temperature if temperature is None else temperature,
        default.std if std is None else std,
    )
