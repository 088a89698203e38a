"""Merge plans: the YAML of ``mergekit-yaml``, checked completely and with a line for every value.

Keys and meaning are those of that tool, with three differences: unknown keys are errors, everything that
is wrong is reported at once, and there are two keys of our own, ``seed`` and ``unmatched``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from mergegraph.graph.node import Origin
from mergegraph.plan import schema
from mergegraph.plan.fields import Fields, read_elements, read_mapping
from mergegraph.plan.source import Entry, Located, Problems, load_yaml
from mergegraph.plan.values import ModelRef, Parameters, check_keys, read_layer_range, read_model_ref
from mergegraph.tensorspec import DType

Unmatched = Literal["error", "copy", "drop"]
UNMATCHED: tuple[Unmatched, ...] = get_args(Unmatched)


@dataclass(frozen=True, slots=True)
class Source:
    """One model that goes into a slice, or (without `layer_range`) into the whole merge."""

    model: ModelRef
    layer_range: tuple[int, int] | None
    parameters: Parameters
    origin: Origin


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of output layers, merged from equally many layers of each source."""

    sources: tuple[Source, ...]
    base_model: ModelRef | None
    parameters: Parameters
    origin: Origin


@dataclass(frozen=True, slots=True)
class RawValue:
    """A plain YAML value that the compiler, not the plan, gives a meaning; and its line."""

    value: Any
    origin: Origin


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge plan as written. Exactly one of `models` and `slices` is not empty.

    `unmatched` says what becomes of a tensor that the method cannot merge for want of an input. `notes` are
    remarks on keys that are accepted without effect. `text` is the original YAML, of the whole file where
    the plan is a part of another. `name` is what a stage is called.
    """

    method: str
    method_origin: Origin
    models: tuple[Source, ...]
    slices: tuple[Slice, ...]
    base_model: ModelRef | None
    base_origin: Origin | None
    parameters: Parameters
    dtype: DType | None
    out_dtype: DType | None
    tokenizer_source: RawValue | None
    tokenizer: RawValue | None
    chat_template: RawValue | None
    seed: int | None
    unmatched: Unmatched
    notes: tuple[str, ...]
    text: str
    file: str
    name: str | None = None

    def sources(self) -> tuple[Source, ...]:
        """Return the sources of all models or slices, in file order."""
        return self.models or tuple(source for part in self.slices for source in part.sources)

    def referenced_models(self) -> tuple[ModelRef, ...]:
        """Return every model once, in file order.

        A base model that is also listed comes first if ``base_model:`` stands above the list; one that
        is not listed comes last.
        """
        sources = self.sources()
        listed = [source.model for source in sources]
        bases = [part.base_model for part in self.slices if part.base_model is not None]
        if self.base_model is None or self.base_origin is None:
            return tuple(dict.fromkeys(listed + bases))
        ahead = self.base_model in listed and self.base_origin.line < sources[0].origin.line
        order = [self.base_model, *listed, *bases] if ahead else [*listed, self.base_model, *bases]
        return tuple(dict.fromkeys(order))


_OTHER_KINDS = {
    "surgery": "a plan for surgery",
    "experts": "a plan for a mixture of experts",
    "gate_mode": "a plan for a mixture of experts",
    "shared_experts": "a plan for a mixture of experts",
}
_ONLY_MERGES = "only a merge plan can stand here: merge_method: and models:"


def parse_plan(text: str, file: str) -> MergePlan:
    """Read a merge plan; `file` is its name in messages.

    Raises:
        PlanError: with everything that is wrong, in line order.
    """
    problems = Problems()
    plan = read_plan(text, file, problems)
    problems.raise_if_any()
    return plan


def read_plan(text: str, file: str, problems: Problems) -> MergePlan:
    """Read what can be read of a merge plan, noting what is wrong with it.

    With problems the plan must not be run, but more can still be said about it.

    Raises:
        PlanError: nothing can be read: it is not YAML, no mapping, or a plan of another kind.
    """
    root = load_yaml(text, file, problems)
    if root.entries is None:
        hint = "write merge_method: NAME and models: at the top level"
        problems.add(f"a plan must be a mapping, not {root.kind()}", root.origin, hint)
        problems.raise_if_any()
    if is_other_kind(root, problems):
        problems.raise_if_any()
    return read_merge(root, text, file, problems)


def is_other_kind(root: Located, problems: Problems, hint: str = _ONLY_MERGES) -> bool:
    """Whether a mapping is a plan of another kind, whose keys would all be reported as unknown."""
    found = next((e for key, e in (root.entries or {}).items() if key in _OTHER_KINDS), None)
    if found is not None:
        problems.add(f"this is {_OTHER_KINDS[found.key]} (it has {found.key!r})", found.origin, hint)
    return found is not None


def read_merge(
    root: Located,
    text: str,
    file: str,
    problems: Problems,
    *,
    name: str | None = None,
    models: tuple[Source, ...] | None = None,
) -> MergePlan:
    """Read a mapping that is meant as a merge plan; it may be a part of `text`.

    `models` are the models of a plan that lists none.
    """
    return _Reader(root, problems, models).plan(text, file, name)


class _Reader:
    """Reads one plan, noting problems as it goes."""

    def __init__(self, root: Located, problems: Problems, given: tuple[Source, ...] | None) -> None:
        self.root = root
        self.given = given
        self.fields = Fields(root, problems)
        self.problems = problems
        self.notes: list[str] = []

    def plan(self, text: str, file: str, name: str | None) -> MergePlan:
        check_keys(self.root, schema.MERGE.names, "a merge plan", self.problems, refused=("modules",))
        method, method_origin = self._method()
        models, slices = self._inputs()
        base = self.fields.entry("base_model")
        return MergePlan(
            method=method,
            method_origin=method_origin,
            models=models,
            slices=slices,
            base_model=self._base(self.root),
            base_origin=None if base is None else base.origin,
            parameters=self.fields.parameters(),
            dtype=self.fields.dtype("dtype"),
            out_dtype=self.fields.dtype("out_dtype"),
            tokenizer_source=self._raw("tokenizer_source", "union, base or a model", str, dict),
            tokenizer=self._tokenizer(),
            chat_template=self._raw("chat_template", "a string", str),
            seed=self.fields.seed(),
            unmatched=self.fields.choice(
                "unmatched", UNMATCHED, "error", "error refuses tensors that only some models have"
            ),
            notes=tuple(self.notes),
            text=text,
            file=file,
            name=name,
        )

    def _fields(self, mapping: Located) -> Fields:
        return Fields(mapping, self.problems)

    def _base(self, mapping: Located) -> ModelRef | None:
        entry = self._fields(mapping).entry("base_model")
        return None if entry is None else read_model_ref(entry.value, self.problems)

    def _method(self) -> tuple[str, Origin]:
        entry = (self.root.entries or {}).get("merge_method")
        if entry is None:
            self.problems.add("merge_method is missing", self.root.origin, "add merge_method: NAME")
            return "", self.root.origin
        if not isinstance(entry.value.value, str) or not entry.value.value:
            message = f"merge_method must be the name of a method, not {entry.value.kind()}"
            self.problems.add(message, entry.origin, "for example merge_method: slerp")
            return "", entry.origin
        return entry.value.value, entry.origin

    def _inputs(self) -> tuple[tuple[Source, ...], tuple[Slice, ...]]:
        if self.given is not None:
            return self.given, ()
        models, slices, modules = (self.fields.entry(k) for k in ("models", "slices", "modules"))
        if modules is not None:
            hint = "merge the language model alone, with models: or slices:"
            self.problems.add("'modules' is not supported by this version", modules.origin, hint)
        elif models is not None and slices is not None:
            first, second = sorted((models, slices), key=lambda entry: entry.origin.line)
            message = f"models and slices cannot both be given ({first.key} is on line {first.origin.line})"
            self.problems.add(message, second.origin, "remove one of them")
        elif models is None and slices is None:
            self.problems.add("the plan merges nothing", self.root.origin, "add models: or slices:")
        sources = [self._source(item, sliced=False) for item in self._list(models, "a model: entry")]
        kept = tuple(source for source in sources if source is not None)
        self._refuse_repeats(kept, "models")
        parts = [self._slice(item) for item in self._list(slices, "a sources: entry")]
        return kept, tuple(part for part in parts if part is not None)

    def _list(self, entry: Entry | None, wants: str) -> tuple[Located, ...]:
        return () if entry is None else read_elements(entry, wants, self.problems)

    def _source(self, item: Located, *, sliced: bool) -> Source | None:
        what, section = ("a source", schema.SLICE_SOURCE) if sliced else ("a model", schema.SOURCE)
        if not read_mapping(item, section.names, what, self.problems):
            return None
        entries = item.entries or {}
        model = None
        if "model" in entries:
            model = read_model_ref(entries["model"].value, self.problems)
        else:
            self.problems.add(f"{what} needs the key 'model'", item.origin, "add model: PATH")
        layers = None
        if sliced and "layer_range" in entries:
            layers = read_layer_range(entries["layer_range"], self.problems)
        elif sliced:
            hint = "add layer_range: [start, end]"
            self.problems.add("a source needs the key 'layer_range'", item.origin, hint)
        parameters = self._fields(item).parameters()
        return None if model is None else Source(model, layers, parameters, item.origin)

    def _slice(self, item: Located) -> Slice | None:
        if not read_mapping(item, schema.SLICE.names, "a slice", self.problems):
            return None
        entry = (item.entries or {}).get("sources")
        if entry is None:
            self.problems.add("a slice needs the key 'sources'", item.origin, "add sources: with a list")
        read = [self._source(source, sliced=True) for source in self._list(entry, "a model: entry")]
        sources = tuple(source for source in read if source is not None)
        self._refuse_repeats(sources, "a slice")
        self._compare_lengths(sources)
        residual = self._fields(item).entry("residual_weight")
        if residual is not None:
            self.notes.append(f"{residual.origin}: residual_weight has no effect; no merge method uses it")
        return Slice(sources, self._base(item), self._fields(item).parameters(), item.origin)

    def _refuse_repeats(self, sources: tuple[Source, ...], where: str) -> None:
        seen: dict[ModelRef, Source] = {}
        for source in sources:
            first = seen.setdefault(source.model, source)
            if first is not source:
                first_line = first.origin.line
                message = f"the model {source.model} is listed twice in {where} (first on line {first_line})"
                self.problems.add(message, source.origin, "remove one, or put them into slices of their own")

    def _compare_lengths(self, sources: tuple[Source, ...]) -> None:
        ranges = [(source, source.layer_range) for source in sources if source.layer_range is not None]
        for source, (start, end) in ranges[1:]:
            first = ranges[0][1]
            if end - start != first[1] - first[0]:
                message = (
                    f"the sources of a slice have different lengths: [{start}, {end}] is "
                    f"{end - start} layers, [{first[0]}, {first[1]}] is {first[1] - first[0]}"
                )
                self.problems.add(message, source.origin, "give every source the same number of layers")

    def _raw(self, key: str, wants: str, *types: type) -> RawValue | None:
        entry = self.fields.entry(key)
        if entry is None:
            return None
        if not isinstance(entry.value.value, types):
            message = f"{key} must be {wants}, not {entry.value.kind()}"
            self.problems.add(message, entry.origin, f"write {key}: and {wants}")
            return None
        return RawValue(entry.value.plain(), entry.origin)

    def _tokenizer(self) -> RawValue | None:
        raw = self._raw("tokenizer", "a mapping", dict)
        entry, source = (self.fields.entry(k) for k in ("tokenizer", "tokenizer_source"))
        if raw is None or entry is None:
            return None
        if source is not None:
            second = max(entry.origin, source.origin, key=lambda origin: origin.line)
            message = "tokenizer_source and tokenizer cannot both be given"
            self.problems.add(message, second, "remove one of them")
        check_keys(entry.value, ("source", "tokens", "pad_to_multiple_of"), "tokenizer", self.problems)
        tokens = self._fields(entry.value).entry("tokens")
        if tokens is not None and tokens.value.entries is None:
            message = f"tokens must be a mapping, not {tokens.value.kind()}"
            self.problems.add(message, tokens.origin, "write TOKEN: {source: …}")
        for token in (tokens.value.entries or {}).values() if tokens is not None else ():
            read_mapping(token.value, ("source", "force"), f"the token {token.key!r}", self.problems)
        return raw
