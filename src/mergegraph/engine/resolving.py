"""From a plan of any kind to a compiled graph: opening what it names, compiling what it merges."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mergegraph.compiler.inputs import Input
from mergegraph.compiler.merge import Compiled, compile_merge, donor_of, find_problems, settings_of
from mergegraph.compiler.resolver import Setting
from mergegraph.engine.opening import Opened, open_inputs
from mergegraph.errors import PlanError
from mergegraph.methods import get_method
from mergegraph.methods.base import MergeMethod
from mergegraph.plan.kinds import AnyPlan
from mergegraph.plan.merge import MergePlan
from mergegraph.plan.source import Problems
from mergegraph.plan.values import ExpertLayout, ModelRef

if TYPE_CHECKING:
    from mergegraph.engine.rows import RowsWork

Explainer = Callable[[str], list[Setting]]


@dataclass(frozen=True)
class Resolved:
    """A compiled plan and what it was compiled from.

    Attributes:
        title: what is done, in a word or two.
        inputs: every checkpoint.
        donor: the one that tokenizer and other files come from.
        compiled: graph, config, account.
        settings: the resolved parameters of an output tensor.
        rows: router rows to compute before the run, if there are any.
    """

    title: str
    inputs: Mapping[ModelRef, Input]
    donor: Input
    compiled: Compiled
    settings: Explainer = field(default=lambda _: [])
    rows: RowsWork | None = None


def resolve(plan: AnyPlan, problems: Problems, seed: int | None, layout: ExpertLayout | None) -> Resolved:
    """Open the models of `plan` and compile it.

    Raises:
        PlanError: with `problems` and everything else that is wrong, as far as it can be told.
    """
    if isinstance(plan, MergePlan):
        return _resolve_merge(plan, problems, seed, layout)
    from mergegraph.engine.mixtures import resolve_mixture  # costs imports that merges do without

    return resolve_mixture(plan, problems, seed, layout)


def _resolve_merge(
    plan: MergePlan, problems: Problems, seed: int | None, layout: ExpertLayout | None
) -> Resolved:
    method, inputs = merge_inputs(plan, problems)
    compiled = compile_merge(plan, method, inputs, seed, layout)
    donor = donor_of(plan, inputs)
    return Resolved(
        method.name, inputs, donor, compiled, lambda tensor: settings_of(plan, method, inputs, tensor)
    )


def merge_inputs(
    plan: MergePlan, problems: Problems, opened: Opened | None = None
) -> tuple[MergeMethod, dict[ModelRef, Input]]:
    """Find the method of a merge, and its models.

    Raises:
        PlanError: with `problems` and everything else that is wrong with this merge.
    """
    method: MergeMethod | None = None
    try:
        method = get_method(plan.method, str(plan.method_origin)) if plan.method else None
    except PlanError as error:
        problems.extend(error.problems)
    inputs = open_inputs(plan, problems, opened)
    if problems.found:
        problems.extend(find_problems(plan, method, inputs))
    problems.raise_if_any()
    assert method is not None
    return method, inputs
