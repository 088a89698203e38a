"""MoE plans: the YAML of ``mergekit-moe``, checked completely and with a line for every value.

Keys and meaning are those of that tool. Ours are more gate modes, ``router``, ``backbone``,
``expert_layout``, ``out_dtype`` and ``seed``, and that a model may itself be a merge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mergegraph.graph.node import Origin
from mergegraph.plan import schema
from mergegraph.plan.fields import Fields, read_mapping
from mergegraph.plan.merge import MergePlan, Source, is_other_kind
from mergegraph.plan.models import (
    ModelLike,
    PlanFile,
    Reading,
    Reference,
    distinct,
    name_of,
    read_common,
    read_expert_layout,
    read_model_like,
    references_in,
)
from mergegraph.plan.router import (
    BLIND_MODES,
    GATE_MODES,
    RouterOptions,
    read_gate_mode,
    read_router,
    reads_prompts,
)
from mergegraph.plan.source import Entry, Located
from mergegraph.plan.values import ExpertLayout, ModelRef, check_keys


@dataclass(frozen=True, slots=True)
class MoeExpert:
    """One expert, and the text that its router row is made from. `origin` is the line of its entry."""

    model: ModelLike
    positive: tuple[str, ...]
    negative: tuple[str, ...]
    noise_scale: float | None
    residual_scale: float | None
    origin: Origin

    @property
    def prompts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """All its prompts."""
        return self.positive, self.negative


@dataclass(frozen=True, slots=True)
class Backbone:
    """The merge that makes the tensors outside the experts.

    `base` is there for a method that requires a base model which the plan leaves to the MoE plan.
    """

    plan: MergePlan
    base: ModelRef | None
    base_origin: Origin | None

    def merge(self, *, base_required: bool) -> MergePlan:
        """Return the complete merge plan, for a method that requires a base model or does not."""
        if not base_required or self.base is None or self.plan.base_model is not None:
            return self.plan
        return replace(self.plan, base_model=self.base, base_origin=self.base_origin)


@dataclass(frozen=True, slots=True, kw_only=True)
class MoePlan(PlanFile):
    """A MoE plan as written. There is at least one expert.

    `architecture` is as spelled; what it means is the compiler's business.
    """

    base: ModelLike
    base_origin: Origin
    experts: tuple[MoeExpert, ...]
    shared: tuple[MoeExpert, ...]
    gate_mode: str | None
    gate_origin: Origin
    router: RouterOptions
    experts_per_token: int
    experts_per_token_origin: Origin
    architecture: str | None
    architecture_origin: Origin
    backbone: Backbone | None
    expert_layout: ExpertLayout | None
    expert_layout_origin: Origin

    def models(self) -> tuple[ModelLike, ...]:
        """Return the base, the experts' and the shared experts' models, each once."""
        return distinct([self.base, *(expert.model for expert in (*self.experts, *self.shared))])

    def references(self) -> list[Reference]:
        """Return every place that names a checkpoint."""
        found = references_in(self.base, self.base_origin)
        for expert in (*self.experts, *self.shared):
            found += references_in(expert.model, expert.origin)
        if self.backbone is not None:
            found += references_in(self.backbone.plan, self.backbone.plan.method_origin)
        return found


_DEFAULT_MODE = "hidden"

MERGE_SIGNS = ("merge_method", "models", "slices", "modules")
"""Keys that make a plan a merge."""

_MERGE_KEYS = {
    "parameters": "parameters belong to a merge: below source_model: or backbone:",
    "tokenizer_source": "the tokenizer is the base model's",
    "tokenizer": "the tokenizer is the base model's",
    "chat_template": "the chat template is the base model's",
    "unmatched": "it belongs to a merge: below source_model: or backbone:",
    "name": "only stages, the documents before the last one, have names",
}
"""Keys of merge plans that do not make a plan one, and what to do about them here."""


def read_moe(root: Located, reading: Reading) -> MoePlan | None:
    """Read a mapping that is meant as a MoE plan, noting what is wrong with it.

    With problems the plan must not be run, but more can still be said about it; None if the model of the
    base or of an expert cannot be told.
    """
    return _Reader(root, reading).plan()


class _Reader:
    """Reads one plan, noting problems as it goes."""

    def __init__(self, root: Located, reading: Reading) -> None:
        self.reading = reading
        self.problems = reading.problems
        self.fields = Fields(root, reading.problems)
        self.notes: list[str] = []

    def plan(self) -> MoePlan | None:
        fields = self.fields
        self._check_keys()
        mode = read_gate_mode(fields, GATE_MODES, _DEFAULT_MODE)
        base_entry = fields.required("base_model", "a MoE plan", "add base_model: MODEL")
        base = None if base_entry is None else read_model_like(base_entry.value, self.reading)
        fields.required("experts", "a MoE plan", "add experts: with a source_model: each")
        listed, shared = (self._experts(key, mode) for key in ("experts", "shared_experts"))
        experts = tuple(expert for expert in listed if expert is not None)
        shared_experts = tuple(expert for expert in shared if expert is not None)
        self._check_prompts(experts, shared_experts, mode)
        self._note_experts(experts)
        backbone = self._backbone(experts, base)
        router = read_router(fields, mode, RouterOptions())
        active = self._experts_per_token(len(listed))
        architecture, layout = fields.text("architecture", "mixtral"), read_expert_layout(fields)
        common = read_common(fields, self.reading, tuple(self.notes))
        if base is None or not listed or None in (*listed, *shared):
            return None
        return MoePlan(
            base=base,
            base_origin=fields.origin_of("base_model"),
            experts=experts,
            shared=shared_experts,
            gate_mode=mode or _DEFAULT_MODE,
            gate_origin=fields.origin_of("gate_mode"),
            router=router,
            experts_per_token=active,
            experts_per_token_origin=fields.origin_of("experts_per_token"),
            architecture=architecture,
            architecture_origin=fields.origin_of("architecture"),
            backbone=backbone,
            expert_layout=layout,
            expert_layout_origin=fields.origin_of("expert_layout"),
            **common,
        )

    def _check_keys(self) -> None:
        root = self.fields.mapping
        refused = (*_MERGE_KEYS, *MERGE_SIGNS)
        check_keys(root, schema.MOE.names, "a MoE plan", self.problems, refused=refused)
        for key, hint in _MERGE_KEYS.items():
            entry = (root.entries or {}).get(key)
            if entry is not None:
                self.problems.add(f"a MoE plan has no key {key!r}", entry.origin, hint)

    def _experts(self, key: str, mode: str | None) -> list[MoeExpert | None]:
        what = "an expert" if key == "experts" else "a shared expert"
        items = self.fields.elements(key, "a source_model: entry")
        return [self._expert(item, what, mode) for item in items]

    def _expert(self, item: Located, what: str, mode: str | None) -> MoeExpert | None:
        if not read_mapping(item, schema.EXPERT.names, what, self.problems):
            return None
        fields = Fields(item, self.problems)
        entry = fields.required("source_model", what, "add source_model: MODEL")
        model = None if entry is None else read_model_like(entry.value, self.reading)
        positive, negative = (
            self._prompts(fields.entry(key), mode) for key in ("positive_prompts", "negative_prompts")
        )
        noise = fields.number("noise_scale", least=0)
        scale = fields.number("residual_scale")
        return None if model is None else MoeExpert(model, positive, negative, noise, scale, item.origin)

    def _prompts(self, entry: Entry | None, mode: str | None) -> tuple[str, ...]:
        if entry is None:
            return ()
        if entry.value.entries is not None:
            message = f"{entry.key} must be a string or a list of strings, not a mapping"
            self.problems.add(message, entry.origin, "quote prompts that contain ': '")
            return ()
        items = (entry.value,) if entry.value.items is None else entry.value.items
        return tuple(self._prompt(item, mode) for item in items)

    def _prompt(self, item: Located, mode: str | None) -> str:
        if not isinstance(item.value, str):
            hint = "quote prompts that contain ': '" if item.entries is not None else "quote it"
            self.problems.add(f"a prompt must be a string, not {item.kind()}", item.origin, hint)
            return ""
        if reads_prompts(mode) and not item.value.strip():
            hint = f"write some text, or use gate_mode: {' or '.join(BLIND_MODES)}"
            self.problems.add("a prompt is empty", item.origin, hint)
        return item.value

    def _check_prompts(
        self, experts: tuple[MoeExpert, ...], shared: tuple[MoeExpert, ...], mode: str | None
    ) -> None:
        if mode is None:
            return
        if not reads_prompts(mode):
            idle = next((e for e in (*experts, *shared) if e.positive or e.negative), None)
            if idle is not None:
                self.notes.append(f"{idle.origin}: prompts have no effect with gate_mode {mode}")
            return
        others = f"or use gate_mode: {' or '.join(BLIND_MODES)}"
        for expert in experts:
            if not expert.positive:
                message = f"gate_mode {mode} needs positive_prompts for every expert"
                hint = f"add positive_prompts: with text for this expert, {others}"
                self.problems.add(message, expert.origin, hint)
        if len({bool(expert.positive) for expert in shared}) > 1:
            lacking = next(expert for expert in shared if not expert.positive)
            message = "some shared experts have positive_prompts, and this one has none"
            self.problems.add(message, lacking.origin, "give all of them prompts, or none")
        complete = [expert for expert in experts if expert.positive]
        if len(complete) > 1 and all(expert.prompts == complete[0].prompts for expert in complete):
            message = "all experts have the same prompts: a router could not tell them apart"
            hint = f"give each expert prompts of its own, {others}"
            self.problems.add(message, complete[1].origin, hint)
        else:
            self._note_equal_prompts(complete)

    def _note_equal_prompts(self, experts: list[MoeExpert]) -> None:
        seen: dict[tuple[tuple[str, ...], tuple[str, ...]], MoeExpert] = {}
        for expert in experts:
            first = seen.setdefault(expert.prompts, expert)
            if first is not expert:
                self.notes.append(
                    f"{expert.origin}: the prompts are those of the expert on line {first.origin.line}: "
                    "their router rows are equal"
                )

    def _note_experts(self, experts: tuple[MoeExpert, ...]) -> None:
        if not experts:
            return
        count, origin = len(experts), self.fields.origin_of("experts")
        if count & (count - 1):
            self.notes.append(f"{origin}: {count} experts is not a power of two; some programs want one")
        if count > 1 and len(distinct(expert.model for expert in experts)) == 1:
            self.notes.append(f"{origin}: all experts are the same model, which is a start for training only")

    def _experts_per_token(self, count: int) -> int:
        given = self.fields.whole("experts_per_token", least=1)
        if given is not None and count and given > count:
            message = f"experts_per_token is {given}, but there {_are(count)}"
            origin = self.fields.origin_of("experts_per_token")
            self.problems.add(message, origin, f"write a number from 1 to {count}")
        return min(2, max(count, 1)) if given is None else given

    def _backbone(self, experts: tuple[MoeExpert, ...], base: ModelLike | None) -> Backbone | None:
        entry = self.fields.entry("backbone")
        if entry is None:
            return None
        stage = self.reading.stage(entry.value)
        if stage is not None:
            return Backbone(stage, None, None)
        if entry.value.entries is None:
            hint = (
                "write backbone: {merge_method: linear, parameters: {weight: 1.0}} for the experts' average"
            )
            message = f"backbone must be a merge plan or the name of a stage, not {entry.value.kind()}"
            self.problems.add(message, entry.origin, hint)
            return None
        if any(key in entry.value.entries for key in ("models", "slices")):
            full = self.reading.merge(entry.value)
            return None if full is None else Backbone(full, None, None)
        return self._short_backbone(entry, experts, base)

    def _short_backbone(
        self, entry: Entry, experts: tuple[MoeExpert, ...], base: ModelLike | None
    ) -> Backbone | None:
        """Read a backbone that merges the experts' models."""
        if is_other_kind(entry.value, self.problems):
            return None
        check_keys(entry.value, schema.BACKBONE.names, "a backbone without models", self.problems)
        sources: dict[ModelRef, Source] = {}
        for expert in experts:
            if isinstance(expert.model, ModelRef):
                sources.setdefault(expert.model, Source(expert.model, None, {}, expert.origin))
                continue
            merged = name_of(expert.model)
            message = f"a backbone without models merges the experts' models, but {merged} is a merge itself"
            self.problems.add(message, entry.origin, "list the models to merge: backbone: {models: …}")
            return None
        known = {key: e for key, e in (entry.value.entries or {}).items() if key in schema.BACKBONE.names}
        part = Located(known, entry.value.origin, entry.value.size)
        plan = self.reading.merge(part, tuple(sources.values()))
        own = base if isinstance(base, ModelRef) else None
        origin = self.fields.origin_of("base_model")
        return None if plan is None else Backbone(plan, own, origin)


def _are(count: int) -> str:
    return "is one expert only" if count == 1 else f"are {count} experts"
