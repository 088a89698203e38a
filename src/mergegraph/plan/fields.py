"""Reading the keys of one mapping: whole numbers, choices, lists, and what every plan has in common."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeVar

from mergegraph.errors import did_you_mean
from mergegraph.graph.node import Origin
from mergegraph.plan.source import Entry, Located, Problems
from mergegraph.plan.values import Parameters, check_keys, read_dtype, read_parameters
from mergegraph.tensorspec import DType

Choice = TypeVar("Choice", bound=str)


class Fields:
    """One mapping of a plan. Every method reads a key; what is wrong is noted, and the default returned.

    A key whose value is null is not given.
    """

    def __init__(self, mapping: Located, problems: Problems) -> None:
        self.mapping = mapping
        self.origin = mapping.origin
        self.problems = problems

    def entry(self, key: str) -> Entry | None:
        """Return the entry of an optional key."""
        entry = (self.mapping.entries or {}).get(key)
        return None if entry is None or entry.value.value is None else entry

    def required(self, key: str, what: str, hint: str) -> Entry | None:
        """Return the entry of a key that `what` needs."""
        entry = self.entry(key)
        if entry is None:
            written = (self.mapping.entries or {}).get(key)
            at = self.origin if written is None else written.origin
            self.problems.add(f"{what} needs {key}", at, hint)
        return entry

    def origin_of(self, key: str) -> Origin:
        """Return the line of a key, or of the mapping if it is not given."""
        entry = self.entry(key)
        return self.origin if entry is None else entry.origin

    def parameters(self) -> Parameters:
        """Read the ``parameters:`` block."""
        entry = self.entry("parameters")
        return {} if entry is None else read_parameters(entry, self.problems)

    def dtype(self, key: str) -> DType | None:
        """Read a dtype."""
        entry = self.entry(key)
        return None if entry is None else read_dtype(entry, self.problems)

    def seed(self) -> int | None:
        """Read the seed of everything random."""
        entry = self.entry("seed")
        if entry is None:
            return None
        seed = entry.value.value
        if type(seed) is int and 0 <= seed < 2**63:
            return seed
        self.problems.add("seed must be an integer from 0 to 2^63 - 1", entry.origin, "for example seed: 1")
        return None

    def choice(self, key: str, choices: Iterable[Choice], default: Choice, hint: str) -> Choice:
        """Read one of several names; `hint` is for a value that resembles none of them."""
        return self.optional_choice(key, choices, hint) or default

    def optional_choice(self, key: str, choices: Iterable[Choice], hint: str) -> Choice | None:
        """Read one of several names, if the key is given."""
        entry, known = self.entry(key), tuple(choices)
        if entry is None:
            return None
        for name in known:
            if entry.value.value == name:
                return name
        near = did_you_mean(str(entry.value.value), known)
        message = f"{key} must be one of {', '.join(known)}"
        self.problems.add(message, entry.origin, near or hint)
        return None

    def whole(self, key: str, *, least: int, most: int | None = None) -> int | None:
        """Read a whole number of at least `least`."""
        entry = self.entry(key)
        if entry is None:
            return None
        found = entry.value.value
        if type(found) is int and found >= least and (most is None or found <= most):
            return found
        span = f"of at least {least}" if most is None else f"from {least} to {most}"
        said = found if type(found) is int else entry.value.kind()
        hint = f"for example {key}: {max(least, 1)}"
        self.problems.add(f"{key} must be a whole number {span}, not {said}", entry.origin, hint)
        return None

    def number(self, key: str, *, least: float | None = None, above: float | None = None) -> float | None:
        """Read a finite number that is not less than `least`, and greater than `above`."""
        entry = self.entry(key)
        number = None if entry is None else read_number(key, entry.value, self.problems)
        if entry is None or number is None:
            return None
        if least is not None and number < least:
            self.problems.add(
                f"{key} is {number:g}, less than {least:g}", entry.origin, f"write {least:g} or more"
            )
            return None
        if above is not None and number <= above:
            message = f"{key} must be greater than {above:g}, not {number:g}"
            self.problems.add(message, entry.origin, f"for example {key}: 1.0")
            return None
        return number

    def flag(self, key: str) -> bool:
        """Read true or false; false if the key is not given."""
        entry = self.entry(key)
        if entry is None or isinstance(entry.value.value, bool):
            return entry is not None and entry.value.value
        message = f"{key} must be true or false, not {entry.value.kind()}"
        self.problems.add(message, entry.origin, f"write {key}: true")
        return False

    def text(self, key: str, example: str) -> str | None:
        """Read a string that is not empty."""
        entry = self.entry(key)
        if entry is None:
            return None
        if isinstance(entry.value.value, str) and entry.value.value.strip():
            return entry.value.value
        said = "an empty string" if isinstance(entry.value.value, str) else entry.value.kind()
        message = f"{key} must be a string, not {said}"
        self.problems.add(message, entry.origin, f"for example {key}: {example}")
        return None

    def elements(self, key: str, wants: str) -> tuple[Located, ...]:
        """Return the elements of a list, which is not empty if it is given; `wants` describes one."""
        entry = self.entry(key)
        return () if entry is None else read_elements(entry, wants, self.problems)


def read_elements(entry: Entry, wants: str, problems: Problems) -> tuple[Located, ...]:
    """Return the elements of a list that must not be empty."""
    if entry.value.items is None:
        message = f"{entry.key} must be a list, not {entry.value.kind()}"
        problems.add(message, entry.origin, f"start each item with a dash: - {wants}")
    elif not entry.value.items:
        problems.add(f"{entry.key} is empty", entry.origin, f"add {wants}")
    return entry.value.items or ()


def read_mapping(item: Located, keys: tuple[str, ...], what: str, problems: Problems) -> bool:
    """Check that an item is a mapping with only known keys."""
    if item.entries is None:
        hint = f"write {keys[0]}: …, and the other keys below it"
        problems.add(f"{what} must be a mapping, not {item.kind()}", item.origin, hint)
        return False
    check_keys(item, keys, what, problems)
    return True


def read_number(what: str, value: Located, problems: Problems) -> float | None:
    """Read a finite number. ``1e-3`` is a string to YAML; it means a number where one is wanted."""
    found = value.value
    number = math.nan
    if isinstance(found, int | float | str) and not isinstance(found, bool):
        try:
            number = float(found)
        except (ValueError, OverflowError):
            number = math.nan
    if math.isfinite(number):
        return number
    said = repr(found) if isinstance(found, str | float) else value.kind()
    problems.add(f"{what} must be a finite number, not {said}", value.origin, "for example 0.5")
    return None


def without(mapping: Located, *keys: str) -> Located:
    """Return a mapping without some of its keys."""
    entries = {key: entry for key, entry in (mapping.entries or {}).items() if key not in keys}
    return Located(entries, mapping.origin, mapping.size)
