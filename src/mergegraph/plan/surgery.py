"""Surgery on mixtures of experts: upcycle, extract, prune and align, each a small plan of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mergegraph.graph.node import Origin
from mergegraph.plan.merge import MergePlan
from mergegraph.plan.models import ModelLike, PlanFile, Reference, references_in
from mergegraph.plan.router import RouterOptions
from mergegraph.plan.values import ExpertLayout, ModelRef

UpcycleMethod = Literal["sparse", "drop"]
ExtractMode = Literal["pick", "mean", "concatenate"]
AlignBy = Literal["router", "weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpcyclePlan(PlanFile):
    """A mixture of `experts` experts from one dense model.

    The experts are copies of the dense layers (``drop``: with the share `ratio` of neurons drawn anew), each
    split into `granularity` parts: there are ``experts / granularity`` copies.
    """

    model: ModelLike
    model_origin: Origin
    experts: int
    experts_per_token: int
    granularity: int
    method: UpcycleMethod
    ratio: float
    noise_scale: float | None
    gate_mode: str
    gate_origin: Origin
    router: RouterOptions
    architecture: str | None
    architecture_origin: Origin
    expert_layout: ExpertLayout | None
    expert_layout_origin: Origin

    def references(self) -> list[Reference]:
        """Return every place that names a checkpoint."""
        return references_in(self.model, self.model_origin)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractPlan(PlanFile):
    """A dense model from `experts` of a mixture; `shares` add up to one."""

    model: ModelRef
    model_origin: Origin
    experts: tuple[int, ...]
    experts_origin: Origin
    shares: tuple[float, ...]
    mode: ExtractMode
    architecture: str | None
    architecture_origin: Origin

    def references(self) -> list[Reference]:
        """Return every place that names a checkpoint."""
        return [Reference(self.model, self.model_origin)]


@dataclass(frozen=True, slots=True)
class ScoreFile:
    """Keep the `count` experts of each layer that have the highest scores in the file at `path`."""

    path: str
    count: int
    origin: Origin


Keep = tuple[int, ...] | Mapping[int, tuple[int, ...]] | ScoreFile
"""The experts that stay: in every layer, by layer, or by score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan(PlanFile):
    """A mixture with fewer experts. `experts_per_token` is None for "as before, if enough stay"."""

    model: ModelRef
    model_origin: Origin
    keep: Keep
    keep_origin: Origin
    experts_per_token: int | None
    experts_per_token_origin: Origin
    expert_layout: ExpertLayout | None

    @property
    def count(self) -> int:
        """How many experts stay in a layer."""
        if isinstance(self.keep, ScoreFile):
            return self.keep.count
        return len(self.keep) if isinstance(self.keep, tuple) else len(next(iter(self.keep.values())))

    def references(self) -> list[Reference]:
        """Return every place that names a checkpoint."""
        return [Reference(self.model, self.model_origin)]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignPlan(PlanFile):
    """A merge of mixtures whose experts are first brought into the order that `reference` has."""

    merge: MergePlan
    reference: ModelRef
    reference_origin: Origin
    by: AlignBy
    expert_layout: ExpertLayout | None

    def references(self) -> list[Reference]:
        """Return every place that names a checkpoint."""
        return references_in(self.merge, self.merge.method_origin)


SurgeryPlan = UpcyclePlan | ExtractPlan | PrunePlan | AlignPlan
