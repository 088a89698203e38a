"""What may stand where a plan names a model: a checkpoint, or a merge that is never written.

A merge stands there inline, or as the name of a stage: an earlier document of the same file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypedDict, get_args

from mergegraph.errors import did_you_mean
from mergegraph.graph.node import Origin
from mergegraph.plan.fields import Fields, without
from mergegraph.plan.merge import MergePlan, Source, is_other_kind, read_merge
from mergegraph.plan.source import Located, Problems
from mergegraph.plan.values import ExpertLayout, ModelRef, read_model_ref
from mergegraph.tensorspec import DType

ModelLike = ModelRef | MergePlan

_PLAN_KEYS = ("merge_method", "models", "slices", "modules", "experts", "gate_mode", "surgery")
"""A mapping with one of these is meant as a plan, not as a model reference."""


def name_of(model: ModelLike) -> str:
    """Return what to call a model in messages: its reference, its stage, or where it is merged."""
    if isinstance(model, ModelRef):
        return str(model)
    return model.name or f"merge on line {model.method_origin.line}"


@dataclass(frozen=True, slots=True)
class Reference:
    """One place of a plan that names a checkpoint."""

    model: ModelRef
    origin: Origin


def references_in(model: ModelLike, origin: Origin) -> list[Reference]:
    """Return all checkpoints that a model consists of; `origin` is where it is named."""
    if isinstance(model, ModelRef):
        return [Reference(model, origin)]
    found = [Reference(source.model, source.origin) for source in model.sources()]
    found += [Reference(s.base_model, s.origin) for s in model.slices if s.base_model is not None]
    if model.base_model is not None:
        found.append(Reference(model.base_model, model.base_origin or model.method_origin))
    return found


def distinct(models: Iterable[ModelLike]) -> tuple[ModelLike, ...]:
    """Return every model once, in order. Merges have no hash, and there are few."""
    found: list[ModelLike] = []
    for model in models:
        if model not in found:
            found.append(model)
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile(ABC):
    """What every plan but a merge has in common, spelled as in `MergePlan`."""

    text: str
    file: str
    dtype: DType | None
    out_dtype: DType | None
    seed: int | None = None
    notes: tuple[str, ...] = ()

    @abstractmethod
    def references(self) -> list[Reference]:
        """Return every place that names a checkpoint, merges and stages included, in any order."""

    def referenced_models(self) -> tuple[ModelRef, ...]:
        """Return every checkpoint once, in file order."""
        in_order = sorted(self.references(), key=lambda reference: reference.origin.line)
        return tuple(dict.fromkeys(reference.model for reference in in_order))

    def origin_of(self, model: ModelRef) -> Origin:
        """Return the first line that names a checkpoint of this plan."""
        lines = [reference.origin for reference in self.references() if reference.model == model]
        return min(lines, key=lambda origin: origin.line)


class Common(TypedDict):
    """What `read_common` has read."""

    text: str
    file: str
    dtype: DType | None
    out_dtype: DType | None
    seed: int | None
    notes: tuple[str, ...]


def read_common(fields: Fields, reading: Reading, notes: tuple[str, ...] = ()) -> Common:
    """Read what every `PlanFile` has, to be handed on by name."""
    return Common(
        text=reading.text,
        file=reading.file,
        dtype=fields.dtype("dtype"),
        out_dtype=fields.dtype("out_dtype"),
        seed=fields.seed(),
        notes=notes,
    )


def read_expert_layout(fields: Fields) -> ExpertLayout | None:
    """Read ``expert_layout:``."""
    return fields.optional_choice(
        "expert_layout", get_args(ExpertLayout), "per-expert is what every loader reads"
    )


@dataclass(slots=True)
class Reading:
    """One file while it is read: what has been found wrong, and the stages so far.

    `asked` holds every string that was looked up as the name of a model, and its line.
    """

    text: str
    file: str
    problems: Problems
    stages: dict[str, MergePlan] = field(default_factory=dict)
    names: dict[str, Origin] = field(default_factory=dict)
    asked: dict[str, Origin] = field(default_factory=dict)

    def stage(self, value: Located) -> MergePlan | None:
        """Return the stage that `value` names, if it is the name of one."""
        if not isinstance(value.value, str):
            return None
        self.asked.setdefault(value.value, value.origin)
        return self.stages.get(value.value)

    def merge(self, root: Located, models: tuple[Source, ...] | None = None) -> MergePlan | None:
        """Read an inline merge plan; `models` are those of one that lists none."""
        if is_other_kind(root, self.problems):
            return None
        plan = read_merge(root, self.text, self.file, self.problems, models=models)
        self._refuse_stages_in(plan)
        return plan

    def read_stages(self, documents: tuple[Located, ...]) -> None:
        """Read the documents before the last one."""
        for document in documents:
            if document.entries is None:
                hint = "write name: and a merge plan, or remove the '---' around it"
                self.problems.add(f"a stage must be a mapping, not {document.kind()}", document.origin, hint)
            elif not is_other_kind(document, self.problems, "earlier documents are merge plans; put it last"):
                self._read_stage(document)
        for plan in self.stages.values():
            self._refuse_stages_in(plan)

    def _read_stage(self, document: Located) -> None:
        fields = Fields(document, self.problems)
        fields.required("name", "a stage", "add name: NAME, and use it where the last document names a model")
        name, line = fields.text("name", "chat") or "", fields.origin_of("name")
        if name in self.stages:
            message = f"the stage {name!r} is there twice (first on line {self.names[name].line})"
            self.problems.add(message, line, "give each stage a name of its own")
        plan = read_merge(without(document, "name"), self.text, self.file, self.problems, name=name)
        if name:
            self.stages.setdefault(name, plan)
            self.names.setdefault(name, line)

    def _refuse_stages_in(self, plan: MergePlan) -> None:
        for reference in references_in(plan, plan.method_origin):
            if reference.model.raw in self.stages:
                message = f"a merge cannot use the stage {reference.model.raw!r}"
                hint = "only the last document can; list the models of that stage here"
                self.problems.add(message, reference.origin, hint)

    def refuse_unused_stages(self) -> None:
        """Note every stage that nothing has asked for."""
        for name, origin in self.names.items():
            if name in self.asked:
                continue
            near = next((text for text in self.asked if did_you_mean(text, (name,))), None)
            hint = "write its name where the last document names a model, or remove it"
            if near is not None:
                hint = f"the model {near!r} on line {self.asked[near].line} looks like it"
            self.problems.add(f"the stage {name!r} is not used", origin, hint)


def read_model_like(value: Located, reading: Reading) -> ModelLike | None:
    """Read a model reference, an inline merge plan or the name of a stage."""
    stage = reading.stage(value)
    if stage is not None:
        return stage
    if any(key in _PLAN_KEYS for key in value.entries or {}):
        return reading.merge(value)
    return read_model_ref(value, reading.problems)
