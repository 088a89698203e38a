"""YAML with line numbers, and with the limits that text from a stranger needs.

The YAML library is used for its events and its scalar rules only; the tree is built here, so that every
key and value keeps its line, duplicate keys are noticed, and aliases cannot multiply without bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from mergegraph.errors import PlanError, Problem
from mergegraph.graph.node import Origin

MAX_CHARACTERS = 2**20
MAX_DEPTH = 32
MAX_VALUES = 100_000

_TAG = "tag:yaml.org,2002:"
_MERGE_TAG = f"{_TAG}merge"
_SCALAR_TAGS = frozenset(f"{_TAG}{kind}" for kind in ("str", "int", "float", "bool", "null", "timestamp"))
_COLLECTION_TAGS = frozenset({f"{_TAG}seq", f"{_TAG}map", "!"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One ``key: value`` of a mapping; `origin` is the line of the key."""

    key: str
    value: Located
    origin: Origin


@dataclass(frozen=True, slots=True)
class Located:
    """A YAML value and the line it starts on.

    `value` is a scalar (str, int, float, bool, None, or a date or bytes that no plan wants), a tuple
    of `Located`, or a dict of `Entry` by key. `size` counts all values within, aliases expanded.
    """

    value: Any
    origin: Origin
    size: int = 1

    @property
    def items(self) -> tuple[Located, ...] | None:
        """The elements of a sequence; None for anything else."""
        return self.value if isinstance(self.value, tuple) else None

    @property
    def entries(self) -> Mapping[str, Entry] | None:
        """The entries of a mapping; None for anything else."""
        return self.value if isinstance(self.value, dict) else None

    def plain(self) -> Any:
        """Return the value as ordinary dicts, lists and scalars."""
        if self.entries is not None:
            return {key: entry.value.plain() for key, entry in self.entries.items()}
        if self.items is not None:
            return [item.plain() for item in self.items]
        return self.value

    def kind(self) -> str:
        """Name the type of the value, for messages."""
        if self.value is None:
            return "nothing"
        names = {dict: "a mapping", tuple: "a list", str: "a string", bool: "a boolean"}
        numbers = {int: "an integer", float: "a number"}
        return {**names, **numbers}.get(type(self.value), f"a {type(self.value).__name__}")


@dataclass(slots=True)
class Problems:
    """Collects what is wrong with one plan file, so that everything is reported at once."""

    found: list[tuple[int, Problem]] = field(default_factory=list)

    def add(self, message: str, origin: Origin, hint: str | None = None, model: str | None = None) -> None:
        """Note one problem at `origin`."""
        self.found.append((origin.line, Problem(message, str(origin), model=model, hint=hint)))

    def extend(self, problems: Iterable[Problem]) -> None:
        """Take over problems found elsewhere in this plan."""
        for problem in problems:
            line = (problem.where or "").rpartition(":")[2]
            self.found.append((int(line) if line.isdigit() else 0, problem))

    def sorted(self) -> list[Problem]:
        """Return the distinct problems in line order; those of one line in the order found.

        A value that is used through several aliases is wrong once, not once per use.
        """
        return list(dict.fromkeys(p for _, p in sorted(self.found, key=lambda item: item[0])))

    def raise_if_any(self) -> None:
        """Raise all problems as one error.

        Raises:
            PlanError: there is at least one.
        """
        if self.found:
            raise PlanError(self.sorted())


def load_yaml(text: str, file: str, problems: Problems) -> Located:
    """Return the one YAML document in `text`.

    Repeated and non-string keys are added to `problems`, and reading goes on.

    Raises:
        PlanError: the text is not YAML, is empty, has several documents, or is too large or too deep.
    """
    return _load(text, file, problems, several=False)[0]


def load_documents(text: str, file: str, problems: Problems) -> tuple[Located, ...]:
    """Return all YAML documents in `text`, at least one; lines count from the top of the file.

    Raises:
        PlanError: the text is not YAML, is empty, or is too large or too deep.
    """
    return _load(text, file, problems, several=True)


def _load(text: str, file: str, problems: Problems, *, several: bool) -> tuple[Located, ...]:
    if len(text) > MAX_CHARACTERS:
        message = f"the plan has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read"
        _fail(message, Origin(file, 1), "a plan is far smaller; is this the right file?")
    try:
        return _Builder(text, file, problems).documents(several=several)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        _fail(f"not valid YAML: {_say(error)}", Origin(file, line), _yaml_hint(error))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        message = f"not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed"
        _fail(message, Origin(file, line), "remove it; plans are plain text")


def _fail(message: str, origin: Origin, hint: str | None = None) -> NoReturn:
    raise PlanError([Problem(message, str(origin), hint=hint)])


def _say(error: yaml.MarkedYAMLError) -> str:
    return " ".join(part for part in (error.context, error.problem) if part)


def _yaml_hint(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or ""
    if "'\\t'" in problem:
        return "indent with spaces; YAML does not allow tabs"
    if "mapping values are not allowed" in problem:
        return "check the indentation, and quote strings that contain ': '"
    if "cannot start any token" in problem:
        return "quote strings that start with @, %, ` or another special character"
    if "alias" in problem:
        return "define the anchor (&name) above its use, outside of itself"
    return "check indentation, brackets and quotes at this line and just above it"


class _Builder:
    """Builds `Located` values from the events of one text."""

    def __init__(self, text: str, file: str, problems: Problems) -> None:
        self.loader = yaml.SafeLoader(text)
        self.file = file
        self.problems = problems
        self.anchors: dict[str, Located] = {}
        self.total = 0

    def documents(self, *, several: bool) -> tuple[Located, ...]:
        found: list[Located] = []
        self._next()  # stream start
        while isinstance(start := self._next(), yaml.DocumentStartEvent):
            if found and not several:
                _fail(
                    "the file holds more than one YAML document",
                    self._origin(start),
                    "only plans for a mixture of experts have stages; make one file for each merge",
                )
            self.anchors = {}  # an anchor is known in its own document only
            found.append(self._value(self._next(), 0))
            self._next()  # document end
        if not found:
            _fail("the plan is empty", Origin(self.file, 1), "a plan has at least merge_method and models")
        return tuple(found)

    def _next(self) -> Any:
        return self.loader.get_event()  # type: ignore[no-untyped-call]

    def _origin(self, event: Any) -> Origin:
        return Origin(self.file, event.start_mark.line + 1)

    def _value(self, event: Any, depth: int) -> Located:
        origin = self._origin(event)
        if depth > MAX_DEPTH:
            _fail(f"values are nested more than {MAX_DEPTH} deep", origin, "no plan needs that")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, origin)
        if isinstance(event, yaml.ScalarEvent):
            located = Located(self._scalar(event, origin), origin)
        elif event.tag is not None and event.tag not in _COLLECTION_TAGS:
            _fail(f"the YAML tag {event.tag!r} is not supported", origin, "write a plain list or mapping")
        elif isinstance(event, yaml.SequenceStartEvent):
            items = tuple(self._value(e, depth + 1) for e in self._until(yaml.SequenceEndEvent))
            located = Located(items, origin, 1 + sum(i.size for i in items))
        else:
            located = self._mapping(origin, depth)
        self._count(1, origin)
        if event.anchor is not None:
            self.anchors[event.anchor] = located
        return located

    def _until(self, end: type) -> Iterator[Any]:
        while not isinstance(event := self._next(), end):
            yield event

    def _count(self, size: int, origin: Origin) -> None:
        self.total += size
        if self.total > MAX_VALUES:
            _fail(f"the plan has more than {MAX_VALUES:,} values", origin, "aliases count once for each use")

    def _alias(self, event: Any, origin: Origin) -> Located:
        if event.anchor not in self.anchors:
            hint = f"define it (&{event.anchor}) above its use, outside of itself"
            _fail(f"the alias *{event.anchor} stands for nothing", origin, hint)
        located = self.anchors[event.anchor]
        self._count(located.size, origin)
        return located

    def _scalar(self, event: Any, origin: Origin) -> Any:
        tag = event.tag
        if tag is None or tag == "!":
            tag = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)  # type: ignore[no-untyped-call]
        if tag == _MERGE_TAG:
            return event.value
        if tag not in _SCALAR_TAGS:
            self.problems.add(f"the YAML tag {tag!r} is not supported", origin, "write a plain value")
            return event.value
        node = yaml.ScalarNode(tag, event.value, event.start_mark, event.end_mark)
        try:
            return self.loader.construct_object(node)
        except (ValueError, OverflowError, LookupError, AttributeError, yaml.constructor.ConstructorError):
            # Whatever the library raises for text that only looks like a date or a number.
            self.problems.add(f"{event.value[:40]!r} is not a value", origin, "quote it if it is a string")
        return event.value

    def _mapping(self, origin: Origin, depth: int) -> Located:
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        numbered: list[Entry] = []
        for event in self._until(yaml.MappingEndEvent):
            is_merge = isinstance(event, yaml.ScalarEvent) and event.value == "<<" and event.implicit[0]
            key = self._value(event, depth + 1)
            at = self._origin(event)
            value = self._value(self._next(), depth + 1)
            if is_merge:
                self._merge(value, at, merged)
            elif type(key.value) is int and str(key.value) == event.value:
                numbered.append(Entry(event.value, value, at))
            elif not isinstance(key.value, str):
                written = f" {event.value!r}" if isinstance(event, yaml.ScalarEvent) else ""
                self._refuse_key(written, key, at)
            else:
                self._set(own, Entry(key.value, value, at))
        # A table by number, such as one of layers, has only numbers for keys; elsewhere one is a slip.
        table = not merged and all(key.isdecimal() for key in own)
        for entry in numbered:
            if table:
                self._set(own, entry)
            else:
                self._refuse_key(f" {entry.key!r}", Located(int(entry.key), entry.origin), entry.origin)
        entries = {**merged, **own}
        return Located(entries, origin, 1 + sum(1 + e.value.size for e in entries.values()))

    def _refuse_key(self, written: str, key: Located, at: Origin) -> None:
        self.problems.add(f"the key{written} is {key.kind()}, not a string", at, "quote it")

    def _set(self, own: dict[str, Entry], entry: Entry) -> None:
        if entry.key in own:
            first = own[entry.key].origin.line
            message = f"the key {entry.key!r} is set twice (first on line {first})"
            self.problems.add(message, entry.origin, "remove one of them")
        else:
            own[entry.key] = entry

    def _merge(self, value: Located, at: Origin, merged: dict[str, Entry]) -> None:
        """Take over the entries of a ``<<`` key; own keys, and earlier mappings, win."""
        for mapping in value.items if value.items is not None else (value,):
            if mapping.entries is None:
                self.problems.add(f"'<<' needs a mapping, not {mapping.kind()}", at, "write <<: *anchor")
                continue
            for key, entry in mapping.entries.items():
                merged.setdefault(key, entry)
