"""A merge plan and the headers of its checkpoints → the graph of every output tensor.

Pure: nothing is read or written. All problems of a plan are collected and reported together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergegraph.architectures.roles import is_balance, is_derived
from mergegraph.compiler.checks import Sound, check_plan
from mergegraph.compiler.config import output_config
from mergegraph.compiler.conflicts import Conflicts, spec_of
from mergegraph.compiler.decisions import Decision, decided, expression_of, likeness
from mergegraph.compiler.experts import output_form, stored_outputs
from mergegraph.compiler.groups import Group, Operand, Row, as_slices, comparable, groups, rows
from mergegraph.compiler.inputs import Input
from mergegraph.compiler.notes import FilterUse, notes
from mergegraph.compiler.report import Assignment, CompileReport, Dropped, Partial, config_differences, unused
from mergegraph.compiler.resolver import Resolved, Resolver, Setting, UnresolvedError
from mergegraph.compiler.seeds import stream_labels
from mergegraph.errors import GraphError, Problem
from mergegraph.graph.graph import Graph, Output, SourceTensor
from mergegraph.graph.node import Node
from mergegraph.methods.base import MergeMethod, Values
from mergegraph.ops import IDENTICAL, load
from mergegraph.plan.merge import MergePlan
from mergegraph.plan.source import Problems
from mergegraph.plan.values import ExpertLayout, ModelRef
from mergegraph.tensorspec import DType, promote


@dataclass(frozen=True)
class Compiled:
    """What compiling gives: the graph, the config to write, and an account of every input tensor.

    `facts` are what a dry run tells of a mixture of experts; a merge has none.
    """

    graph: Graph
    config: dict[str, Any]
    report: CompileReport
    facts: Mapping[str, Any] | None = None


_NONE: Resolved = (Values({}), ())


def donor_of(plan: MergePlan, inputs: Mapping[ModelRef, Input]) -> Input:
    """The model that config, tokenizer and the like come from: the base, else the first in the plan."""
    return inputs[plan.base_model or plan.referenced_models()[0]]


def compile_merge(
    plan: MergePlan,
    method: MergeMethod,
    inputs: Mapping[ModelRef, Input],
    seed: int | None = None,
    layout: ExpertLayout | None = None,
) -> Compiled:
    """Compile `plan` over `inputs` (every referenced model); `seed` is for methods that draw at random.

    Experts are written as `layout` says, or as the inputs store them.

    Raises:
        PlanError: with every problem found.
    """
    problems = Problems()
    sound = check_plan(plan, method, inputs, problems)
    if problems.found:
        problems.extend(_tensor_problems(plan, method, inputs, sound))
        problems.raise_if_any()
    compiler = _Compiler(plan, method, inputs, seed=seed, layout=layout)
    graph = compiler.graph()
    problems.extend(compiler.conflicts.problems())
    if not graph.outputs and not problems.found:
        problems.add("the plan has no output tensor", plan.method_origin, "give models that hold tensors")
    problems.raise_if_any()
    config, remarks = compiler.config(graph)
    return Compiled(graph, config, compiler.report(graph, remarks))


def find_problems(
    plan: MergePlan, method: MergeMethod | None, inputs: Mapping[ModelRef, Input]
) -> list[Problem]:
    """Return what can be told to be wrong, even if the method is unknown (None) or models are missing."""
    problems = Problems()
    sound = check_plan(plan, method, inputs, problems)
    problems.extend(_tensor_problems(plan, method, inputs, sound))
    return problems.sorted()


def _tensor_problems(
    plan: MergePlan, method: MergeMethod | None, inputs: Mapping[ModelRef, Input], sound: Sound
) -> list[Problem]:
    """What is wrong with single tensors, as far as a plan with other problems lets it be seen."""
    if method is not None and sound.roles:
        compiler = _Compiler(plan, method, inputs, resolving=sound.parameters)
        compiler.graph()
        return compiler.conflicts.problems()
    conflicts = Conflicts()
    slices = comparable(as_slices(plan), inputs)
    if slices:
        base = None if plan.base_model is None else inputs.get(plan.base_model)
        donor = base or next(iter(inputs.values()))
        for group in groups(slices, inputs, donor):
            present = [o for o in group.operands if o.place is not None]
            if present and not is_derived(group.name, len(spec_of(present[0]).shape)):
                conflicts.agree(group, present)
    return conflicts.problems()


def settings_of(
    plan: MergePlan, method: MergeMethod, inputs: Mapping[ModelRef, Input], tensor: str
) -> list[Setting]:
    """Return the resolved parameters of one output tensor of a plan that compiles."""
    return _Compiler(plan, method, inputs).settings(tensor)


class _Compiler:
    """One compilation: builds outputs one by one and keeps account of what they use.

    Without `resolving` it only finds problems: parameters are known to be wrong, and no output is built.
    """

    def __init__(
        self,
        plan: MergePlan,
        method: MergeMethod,
        inputs: Mapping[ModelRef, Input],
        *,
        seed: int | None = None,
        layout: ExpertLayout | None = None,
        resolving: bool = True,
    ) -> None:
        self.plan, self.method, self.inputs, self.resolving = plan, method, inputs, resolving
        self.seed, self.layout = seed, layout
        self.labels = stream_labels(model.name for model in inputs.values())
        self.donor = donor_of(plan, inputs)
        self.slices = as_slices(plan)
        self.resolver = Resolver(plan, method)
        self.conflicts = Conflicts()
        self.partial: list[Partial] = []
        self.dropped: list[Dropped] = []
        self._use = FilterUse(plan, method, self.slices)
        self._templates: dict[object, Node] = {}
        self._assigned: dict[object, tuple[Values, tuple[tuple[str, Values], ...], list[str]]] = {}
        self._decisions: dict[object, Decision] = {}

    def graph(self) -> Graph:
        outputs: dict[str, Output] = {}
        for row in rows(self.slices, self.inputs, self.donor):
            output = self._output(row)
            if output is not None:
                outputs[row.name] = output
        inputs = [self.donor, *self.inputs.values()]
        self.conflicts.agree_on_stacks((self.inputs[s.model], s.origin) for s in self.plan.sources())
        form = output_form([m.form for m in inputs], self.layout, self.donor.spelling)
        return Graph(stored_outputs(outputs, form))

    def settings(self, tensor: str) -> list[Setting]:
        """Every parameter that decides output `tensor`, with the plan line it comes from."""
        for group in groups(self.slices, self.inputs, self.donor):
            # A stack is explained by its first matrix.
            if tensor in group.filter_name.split("\n"):
                chosen = self._arrange(group, [o for o in group.operands if o.place is not None])
                return self.resolver.settings(group, chosen[1]) if chosen and chosen[1] else []
        return []

    def config(self, graph: Graph) -> tuple[dict[str, Any], list[str]]:
        """The output's config, and remarks on it."""
        return output_config(self.plan, self.slices, self.inputs, self.donor, graph)

    def report(self, graph: Graph, remarks: list[str]) -> CompileReport:
        dropped = [*self.dropped, *unused(self.inputs, graph, self.dropped)]
        return CompileReport(
            partial=tuple(self.partial),
            dropped=tuple(dropped),
            config_differences=config_differences(self.inputs),
            notes=(*notes(self.plan, self.method, self.inputs, self.donor, self._use), *remarks),
            parameters=tuple(
                Assignment(shared, each, tuple(tensors)) for shared, each, tensors in self._assigned.values()
            ),
        )

    # ---- one output -----------------------------------------------------------------------------

    def _output(self, row: Row) -> Output | None:
        key = likeness(row)
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._decision(row.group())
            if decision is None:
                return None
            if decision.recurs and row.suffix:
                self._decisions[key] = decision
        if decision.missing:
            self.partial.append(Partial(row.name, decision.missing))
        if decision.tensors is not None:
            decision.tensors.append(row.name)
        return decision.bound(row, self.seed)

    def _decision(self, group: Group) -> Decision | None:
        present = [o for o in group.operands if o.place is not None]
        if not present:
            return None
        first = spec_of(present[0])
        if is_derived(group.name, len(first.shape)):
            return self._derived(group, present)
        if not self.conflicts.agree(group, present):
            return None
        if not first.dtype.arithmetic:
            return self._checked(group, present)
        chosen = self._arrange(group, present)
        return None if chosen is None else self._merged(group, *chosen)

    def _arrange(self, group: Group, present: list[Operand]) -> tuple[Operand | None, list[Operand]] | None:
        """Split operands into base and models; None if the tensor is left out (noted or a problem).

        A tensor that only some inputs have is merged over those. If the method cannot do that: the base's
        own tensor is copied, and so is a lone tensor of a method that takes exactly two; a tensor that the
        base lacks has no task vector, and is up to the plan's ``unmatched``.
        """
        base_ref = group.part.base_model or self.plan.base_model
        if self.method.base == "ignored":
            base, models = None, present
        else:
            base = next((o for o in present if o.source.model == base_ref), None)
            models = [o for o in present if o.source.model != base_ref]
        least, most = self.method.inputs
        if self.method.base == "required" and base is None:
            if most == 1 and len(models) == 1 and self.plan.unmatched != "drop":
                return models[0], []
            return self._unmatched(group, models)
        if base is not None and len(models) < least:
            reason = f"{self.method.name} needs {least} models besides the base, whose tensor is copied"
            self.dropped += [Dropped(o.input.name, _source(o).label, reason) for o in models]
            return base, []
        if len(models) >= least and (most is None or len(models) <= most):
            return base, models
        return self._unmatched(group, present)

    def _unmatched(self, group: Group, present: list[Operand]) -> tuple[Operand | None, list[Operand]] | None:
        have = ", ".join(o.input.name for o in present)
        lack = ", ".join(o.input.name for o in group.operands if o.place is None)
        match self.plan.unmatched:
            case "drop":
                reason = f"not in {lack} (unmatched: drop)"
                self.dropped += [Dropped(o.input.name, _source(o).label, reason) for o in present]
                return None
            case "copy":
                return present[0], []
            case _:
                text = f"{group.name} is in {have} but not in {lack}, and {self.method.name} needs it there"
                where = str(present[0].source.origin)
                hint = "set unmatched: copy (take it as it is) or unmatched: drop in the plan"
                self.conflicts.add((have, lack), Problem(text, where, group.name, None, hint))
                return None

    def _merged(self, group: Group, base: Operand | None, models: list[Operand]) -> Decision | None:
        if not self.resolving:
            return None
        taken = {id(base), *map(id, models)}
        operands = [o for o in group.operands if id(o) in taken]
        specs = [spec_of(o) for o in operands]
        out = self.plan.out_dtype or self.plan.dtype or promote([s.dtype for s in specs])
        if is_balance(group.name):
            out = promote([DType.F32, *(s.dtype for s in specs)])
        try:
            shared, each = resolved = self.resolver.values(group, models) if models else _NONE
            roles = tuple("base" if o is base else "model" for o in operands)
            # By identity: the resolver keeps its answers, and equal specs that are two only cost a template.
            key = (tuple(map(id, specs)), roles, id(resolved), out)
            if key not in self._templates:
                self._templates[key] = expression_of(
                    self.method, specs, roles, resolved, out, wide=self.plan.dtype is DType.F64
                )
        except (ValueError, GraphError) as error:
            self._unbuilt(group, models, error)
            return None
        random = self.method.random
        if not models:
            return decided(group, self._templates[key], operands, self.labels, random=random)
        self._use.note(group, models)
        who = (id(resolved), *(id(o.input) for o in models))
        if who not in self._assigned:
            named = tuple((o.input.name, p) for o, p in zip(models, each, strict=True))
            self._assigned[who] = (shared, named, [])
        return decided(
            group,
            self._templates[key],
            operands,
            self.labels,
            tensors=self._assigned[who][2],
            random=random,
            recurs=not self._use.watches and self.resolver.same_in_all_layers(group, models),
        )

    def _derived(self, group: Group, present: list[Operand]) -> Decision | None:
        """A buffer that loaders recompute, unchanged: the donor's, and nobody's if the donor has none.

        Layers that the donor has no part in keep the first model's.
        """
        taking_part = any(o.input is self.donor for o in group.operands)
        own = next((o for o in present if not taking_part or o.input is self.donor), None)
        left = [o for o in present if o is not own]
        self.dropped += [Dropped(o.input.name, _source(o).label, "derived buffer") for o in left]
        return None if own is None else decided(group, load(0, spec_of(own)), [own], self.labels)

    def _checked(self, group: Group, present: list[Operand]) -> Decision:
        """No arithmetic on integers and packed floats: equal in all inputs, or an error in the run."""
        loads = [load(i, spec_of(o)) for i, o in enumerate(present)]
        expression = loads[0] if len(loads) == 1 else IDENTICAL(*loads)
        return decided(group, expression, present, self.labels, recurs=True)

    def _unbuilt(self, group: Group, models: list[Operand], error: ValueError | GraphError) -> None:
        """Note why an output cannot be computed, at the plan line that decides it."""
        if isinstance(error, UnresolvedError):
            hint = "end the list with a condition without filter"
            text, where, model = f"{error} for {group.name}", error.origin, error.model
        else:
            hint, text, model = None, f"{group.name}: {error}", None
            settings = self.resolver.settings(group, models)
            settings.sort(key=lambda s: s.model is None)  # those of single models first
            where = next((s.origin for s in settings if s.origin is not None), self.plan.method_origin)
        self.conflicts.add((str(error), str(where)), Problem(text, str(where), group.name, model, hint))


def _source(operand: Operand) -> SourceTensor:
    place = operand.place
    assert place is not None
    return SourceTensor(operand.input.key, place.tensor, place.view)
