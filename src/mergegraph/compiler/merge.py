"""A merge plan and the headers of its checkpoints → the graph of every output tensor.

Pure: nothing is read or written. All problems of a plan are collected and reported together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mergegraph.architectures.roles import is_derived
from mergegraph.compiler.checks import check_plan, shape_problem
from mergegraph.compiler.config import output_config
from mergegraph.compiler.groups import Group, Operand, as_slices, groups
from mergegraph.compiler.inputs import Input
from mergegraph.compiler.notes import notes
from mergegraph.compiler.report import Assignment, CompileReport, Dropped, Partial, config_differences, unused
from mergegraph.compiler.resolver import Resolver, Setting
from mergegraph.compiler.seeds import stream_of
from mergegraph.errors import GraphError
from mergegraph.graph.graph import Graph, Output, Piece, SourceTensor
from mergegraph.graph.node import Node
from mergegraph.graph.simplify import simplify
from mergegraph.methods.base import MergeMethod, Values
from mergegraph.ops import IDENTICAL, cast, load, stream
from mergegraph.plan.merge import MergePlan
from mergegraph.plan.source import Problems
from mergegraph.plan.values import ModelRef
from mergegraph.tensorspec import DType, TensorSpec, promote


@dataclass(frozen=True)
class Compiled:
    """What compiling gives: the graph, the config to write, and an account of every input tensor."""

    graph: Graph
    config: dict[str, Any]
    report: CompileReport


def donor_of(plan: MergePlan, inputs: Mapping[ModelRef, Input]) -> Input:
    """The model that config, tokenizer and the like come from: the base, else the first in the plan."""
    return inputs[plan.base_model or plan.referenced_models()[0]]


def compile_merge(
    plan: MergePlan, method: MergeMethod, inputs: Mapping[ModelRef, Input], seed: int | None = None
) -> Compiled:
    """Compile `plan` over `inputs` (every referenced model).

    Raises:
        PlanError: with every problem found.
    """
    problems = Problems()
    check_plan(plan, method, inputs, problems)
    problems.raise_if_any()
    compiler = _Compiler(plan, method, inputs, problems, seed)
    graph = compiler.graph()
    if not graph.outputs and not problems.found:
        problems.add("the plan has no output tensor", plan.method_origin, "give models that hold tensors")
    problems.raise_if_any()
    return Compiled(graph, compiler.config(graph), compiler.report(graph))


def settings_of(
    plan: MergePlan, method: MergeMethod, inputs: Mapping[ModelRef, Input], tensor: str
) -> list[Setting]:
    """Return the resolved parameters of one output tensor of a plan that compiles."""
    return _Compiler(plan, method, inputs, Problems()).settings(tensor)


class _Compiler:
    """One compilation: builds outputs one by one and keeps account of what they use."""

    def __init__(
        self,
        plan: MergePlan,
        method: MergeMethod,
        inputs: Mapping[ModelRef, Input],
        problems: Problems,
        seed: int | None = None,
    ) -> None:
        self.plan, self.method, self.inputs, self.problems = plan, method, inputs, problems
        self.donor = donor_of(plan, inputs)
        self.seed = seed
        self.slices = as_slices(plan)
        self.resolver = Resolver(plan, method)
        self.partial: list[Partial] = []
        self.dropped: list[Dropped] = []
        self._templates: dict[object, Node] = {}
        self._assigned: dict[tuple[Values, tuple[tuple[str, Values], ...]], list[str]] = {}

    def graph(self) -> Graph:
        outputs: dict[str, Output] = {}
        for group in groups(self.slices, self.inputs, self.donor):
            try:
                output = self._output(group)
            except (ValueError, GraphError) as error:
                self._problem(group, str(error))
                continue
            if output is not None:
                outputs[group.name] = output
        return Graph(outputs)

    def settings(self, tensor: str) -> list[Setting]:
        """Every parameter that decides output `tensor`, with the plan line it comes from."""
        for group in groups(self.slices, self.inputs, self.donor):
            if group.name == tensor:
                chosen = self._arrange(group, [o for o in group.operands if o.entry is not None])
                return self.resolver.settings(group, chosen[1]) if chosen and chosen[1] else []
        return []

    def config(self, graph: Graph) -> dict[str, Any]:
        return output_config(self.plan, self.slices, self.inputs, self.donor, graph)

    def report(self, graph: Graph) -> CompileReport:
        dropped = [*self.dropped, *unused(self.inputs, graph, self.dropped)]
        return CompileReport(
            partial=tuple(self.partial),
            dropped=tuple(dropped),
            config_differences=config_differences(self.inputs),
            notes=notes(self.plan, self.method, self.inputs, graph),
            parameters=tuple(
                Assignment(shared, each, tuple(tensors)) for (shared, each), tensors in self._assigned.items()
            ),
        )

    # ---- one output -----------------------------------------------------------------------------

    def _output(self, group: Group) -> Output | None:
        present = [o for o in group.operands if o.entry is not None]
        if not present:
            return None
        specs = [_spec(o) for o in present]
        if is_derived(group.name, len(specs[0].shape)):
            return self._derived(group, present)
        if any(s.shape != specs[0].shape for s in specs):
            self._shape_problem(group, present)
            return None
        if not all(s.dtype.arithmetic for s in specs):
            return self._checked(group, present, specs)
        chosen = self._arrange(group, present)
        if chosen is None:
            return None
        base, models = chosen
        if len(present) < len(group.operands):
            missing = tuple(o.input.name for o in group.operands if o.entry is None)
            self.partial.append(Partial(group.name, missing))
        return self._merged(group, base, models)

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
            if most == 1 and len(models) == 1:
                return models[0], []
            return self._unmatched(group, models)
        if base is not None and len(models) < least:
            return base, []
        if len(models) >= least and (most is None or len(models) <= most):
            return base, models
        return self._unmatched(group, present)

    def _unmatched(self, group: Group, present: list[Operand]) -> tuple[Operand | None, list[Operand]] | None:
        have = ", ".join(o.input.name for o in present)
        lack = ", ".join(o.input.name for o in group.operands if o.entry is None)
        match self.plan.unmatched:
            case "drop":
                reason = f"not in {lack} (unmatched: drop)"
                self.dropped += [Dropped(o.input.name, o.tensor, reason) for o in present]
                return None
            case "copy":
                return present[0], []
            case _:
                hint = "set unmatched: copy (take it as it is) or unmatched: drop in the plan"
                message = (
                    f"{group.name} is in {have} but not in {lack}, and {self.method.name} needs it there"
                )
                self._problem(group, message, hint)
                return None

    def _merged(self, group: Group, base: Operand | None, models: list[Operand]) -> Output:
        operands = [o for o in group.operands if o is base or any(o is m for m in models)]
        specs = [_spec(o) for o in operands]
        out = self.plan.out_dtype or self.plan.dtype or promote([s.dtype for s in specs])
        shared, each = self.resolver.values(group, models) if models else (Values({}), ())
        if models:
            named = tuple((o.input.name, p) for o, p in zip(models, each, strict=True))
            self._assigned.setdefault((shared, named), []).append(group.name)
        roles = tuple("base" if o is base else "model" for o in operands)
        key = (tuple(specs), roles, shared, each, out)
        if key not in self._templates:
            self._templates[key] = self._template(specs, roles, shared, each, out)
        streams: tuple[tuple[float, float], ...] = ()
        if self.method.random:
            streams = tuple(stream_of(self.seed, group.name, o.input.name) for o in operands)
        return _bound(self._templates[key], operands, streams)

    def _template(
        self,
        specs: list[TensorSpec],
        roles: tuple[str, ...],
        shared: Values,
        each: tuple[Values, ...],
        out: DType,
    ) -> Node:
        """The expression over slots; outputs with equal specs and parameters share it."""
        loads = [self._widened(load(i, spec)) for i, spec in enumerate(specs)]
        base = next((x for x, role in zip(loads, roles, strict=True) if role == "base"), None)
        models = tuple(x for x, role in zip(loads, roles, strict=True) if role == "model")
        if self.method.random:
            slots = [i for i, role in enumerate(roles) if role == "model"]
            each = tuple(v.including("stream", stream(i)) for v, i in zip(each, slots, strict=True))
        result = self.method.build(base, models, shared, each) if models else base
        return simplify(cast(result, dtype=out.name))

    def _widened(self, x: Node) -> Node:
        return cast(x, dtype="F64") if self.plan.dtype is DType.F64 else x

    def _derived(self, group: Group, present: list[Operand]) -> Output | None:
        """A buffer that loaders recompute: the donor's, unchanged; nobody's if the donor has none."""
        own = next((o for o in present if o.input is self.donor), None)
        left = [o for o in present if o is not own]
        self.dropped += [Dropped(o.input.name, o.tensor, "derived buffer") for o in left]
        return None if own is None else _bound(load(0, _spec(own)), [own])

    def _checked(self, group: Group, present: list[Operand], specs: list[TensorSpec]) -> Output | None:
        """No arithmetic on integers and packed floats: equal in all inputs, or an error in the run."""
        if any(s.dtype is not specs[0].dtype for s in specs):
            kinds = ", ".join(
                f"{s.dtype.torch_name} in {o.input.name}" for o, s in zip(present, specs, strict=True)
            )
            self._problem(group, f"{group.name} cannot be merged: {kinds}")
            return None
        loads = [load(i, spec) for i, spec in enumerate(specs)]
        return _bound(loads[0] if len(loads) == 1 else IDENTICAL(*loads), present)

    # ---- problems -------------------------------------------------------------------------------

    def _problem(self, group: Group, message: str, hint: str | None = None) -> None:
        text = message if group.name in message else f"{group.name}: {message}"
        self.problems.add(text, group.part.origin, hint)

    def _shape_problem(self, group: Group, present: list[Operand]) -> None:
        shapes = {o.input.name: _spec(o).shape for o in present}
        self.problems.add(*shape_problem(group.name, shapes, group.part.origin))


def _spec(operand: Operand) -> TensorSpec:
    assert operand.entry is not None
    return operand.entry.spec


def _bound(
    expression: Node, operands: list[Operand], streams: tuple[tuple[float, float], ...] = ()
) -> Output:
    sources = tuple(SourceTensor(o.input.key, o.tensor) for o in operands)
    return Output(
        TensorSpec(expression.spec.shape, expression.spec.dtype), (Piece(expression, sources, streams),)
    )
