"""Mixtures of experts and surgery: opening what they name, compiling the merges that they build with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mergegraph.compiler.inputs import Input
from mergegraph.compiler.merge import compile_merge, donor_of
from mergegraph.compiler.models import Model, checkpoint_model, merged_model
from mergegraph.compiler.moe import Mixture, compile_moe, rows_key
from mergegraph.engine.opening import Opened, input_alone, inputs_of, open_all
from mergegraph.engine.resolving import Resolved, merge_inputs
from mergegraph.engine.rows import check_rows, rows_work
from mergegraph.engine.surgery import Asked, resolve_surgery
from mergegraph.errors import PlanError
from mergegraph.methods import get_method
from mergegraph.plan.merge import MergePlan
from mergegraph.plan.models import ModelLike, name_of
from mergegraph.plan.moe import MoePlan
from mergegraph.plan.router import reads_prompts
from mergegraph.plan.source import Problems
from mergegraph.plan.surgery import SurgeryPlan
from mergegraph.plan.values import ExpertLayout, ModelRef


def resolve_mixture(
    plan: MoePlan | SurgeryPlan, problems: Problems, seed: int | None, layout: ExpertLayout | None
) -> Resolved:
    """Open the models of `plan` and compile it.

    Raises:
        PlanError: with `problems` and everything else that is wrong, as far as it can be told.
    """
    opened = open_all(plan, problems)
    if isinstance(plan, MoePlan):
        return _resolve_moe(plan, opened, problems, seed, layout)
    asked = Asked(opened, problems, seed, layout)
    models = _Models(opened, problems, seed, inputs_of(plan.referenced_models(), None, opened))
    done = resolve_surgery(plan, asked, models.get, lambda merge: merge_inputs(merge, problems, opened))
    return Resolved(done.title, done.inputs, done.donor, done.compiled)


def _merge_model(plan: MergePlan, opened: Opened, problems: Problems, seed: int | None) -> Model | None:
    """Compile a merge that a plan builds with; None if there is something wrong with it."""
    own = Problems()
    try:
        method, inputs = merge_inputs(plan, own, opened)
        compiled = compile_merge(plan, method, inputs, plan.seed if seed is None else seed)
    except PlanError as error:
        problems.extend(error.problems)
        return None
    return merged_model(name_of(plan), compiled, donor_of(plan, inputs))


@dataclass
class _Models:
    """The models that a plan builds with, each opened or compiled once."""

    opened: Opened
    problems: Problems
    seed: int | None
    inputs: Mapping[ModelRef, Input]
    merges: list[tuple[MergePlan, Model | None]] = field(default_factory=list)

    def get(self, model: ModelLike) -> Model | None:
        """The model; None if it cannot be opened or compiled, which is noted."""
        if isinstance(model, ModelRef):
            return checkpoint_model(self.inputs[model]) if model in self.inputs else None
        known = [made for merge, made in self.merges if merge is model]
        if not known:
            known = [_merge_model(model, self.opened, self.problems, self.seed)]
            self.merges.append((model, known[0]))
        return known[0]


def _resolve_moe(
    plan: MoePlan, opened: Opened, problems: Problems, seed: int | None, layout: ExpertLayout | None
) -> Resolved:
    refs = [model for model in plan.models() if isinstance(model, ModelRef)]
    inputs = inputs_of(refs, plan.base if isinstance(plan.base, ModelRef) else None, opened)
    models = _Models(opened, problems, seed, inputs)
    base = models.get(plan.base)
    experts = [models.get(e.model) for e in plan.experts]
    shared = [models.get(e.model) for e in plan.shared]
    backbone = base
    if plan.backbone is not None:
        needs = _needs_base(plan.backbone.plan.method)
        backbone = _merge_model(plan.backbone.merge(base_required=needs), opened, problems, seed)
    if base is not None and reads_prompts(plan.gate_mode):
        check_rows(plan, base, problems)
    problems.raise_if_any()
    assert base is not None and backbone is not None
    mixture = Mixture(base, [m for m in experts if m], [m for m in shared if m], backbone)
    compiled = compile_moe(plan, mixture, seed, layout)
    every = {ref: inputs.get(ref) or input_alone(ref, opened) for ref in plan.referenced_models()}
    rows = None
    if reads_prompts(plan.gate_mode):
        rows = rows_work(plan, base, rows_key(plan, base), compiled)
    facts = compiled.facts or {}
    count = facts.get("experts")
    title = f"{facts.get('architecture')} of {count} expert{'' if count == 1 else 's'}"
    return Resolved(title, every, base.donor, compiled, rows=rows)


def _needs_base(method: str) -> bool:
    try:
        return get_method(method, None).base == "required"
    except PlanError:
        return False  # said when the merge is compiled
