"""Surgery plans: reading what they need beside headers, and compiling what they ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from mergegraph.compiler.extract import compile_extract
from mergegraph.compiler.inputs import Input
from mergegraph.compiler.merge import Compiled, compile_merge, donor_of
from mergegraph.compiler.models import Model
from mergegraph.compiler.selection import Picks, experts_in
from mergegraph.compiler.surgery import compile_prune, compile_upcycle
from mergegraph.engine.opening import Opened, fetched, input_alone
from mergegraph.errors import GraphError
from mergegraph.methods.base import MergeMethod
from mergegraph.plan.merge import MergePlan
from mergegraph.plan.models import ModelLike
from mergegraph.plan.scores import Scores, best, read_scores
from mergegraph.plan.source import Problems
from mergegraph.plan.surgery import (
    AlignPlan,
    ExtractPlan,
    PrunePlan,
    ScoreFile,
    SurgeryPlan,
    UpcyclePlan,
)
from mergegraph.plan.values import ExpertLayout, ModelRef
from mergegraph.storage.reader import Reader

OpenModel = Callable[[ModelLike], Model | None]
OpenMerge = Callable[[MergePlan], tuple[MergeMethod, dict[ModelRef, Input]]]


@dataclass(frozen=True)
class Operation:
    """A compiled surgery plan: what it is called, its checkpoints, the one that tokenizers come from."""

    title: str
    inputs: Mapping[ModelRef, Input]
    donor: Input
    compiled: Compiled


@dataclass(frozen=True)
class Asked:
    """What every kind of surgery is given."""

    opened: Opened
    problems: Problems
    seed: int | None
    layout: ExpertLayout | None


def resolve_surgery(
    plan: SurgeryPlan, asked: Asked, open_model: OpenModel, open_merge: OpenMerge
) -> Operation:
    """Compile a surgery plan.

    Args:
        plan: the plan.
        asked: its opened checkpoints, and options.
        open_model: gives a model that may be a merge.
        open_merge: gives method and models of a merge.

    Raises:
        PlanError: with every problem found.
        CheckpointError: a file that the plan needs cannot be read.
    """
    match plan:
        case UpcyclePlan():
            return _upcycle(plan, asked, open_model)
        case PrunePlan():
            return _prune(plan, asked)
        case ExtractPlan():
            model = _only(plan.model, asked)
            compiled = compile_extract(plan, model)
            return Operation("extract", {plan.model: model}, model, compiled)
        case AlignPlan():
            return _align(plan, asked, open_merge)


def _only(ref: ModelRef, asked: Asked) -> Input:
    """The one checkpoint of a plan."""
    asked.problems.raise_if_any()
    return input_alone(ref, asked.opened)


def _upcycle(plan: UpcyclePlan, asked: Asked, open_model: OpenModel) -> Operation:
    model = open_model(plan.model)
    asked.problems.raise_if_any()
    assert model is not None
    compiled = compile_upcycle(plan, model, asked.seed, asked.layout)
    inputs = {ref: input_alone(ref, asked.opened) for ref in plan.referenced_models()}
    return Operation(f"upcycle ({plan.method})", inputs, model.donor, compiled)


# ---- prune -----------------------------------------------------------------------------------------


def _prune(plan: PrunePlan, asked: Asked) -> Operation:
    model = _only(plan.model, asked)
    picks = _picks(plan, model)
    compiled = compile_prune(plan, model, picks, asked.layout)
    return Operation("prune", {plan.model: model}, model, compiled)


def _picks(plan: PrunePlan, model: Input) -> Picks:
    """The experts that stay, by the prefix of their layer.

    Raises:
        PlanError: the plan names layers or experts that there are not, or leaves some out.
    """
    problems = Problems()
    counts = experts_in(model.tensors)
    layers = {_number(layer): layer for layer in counts if layer}
    if not layers:
        problems.add(f"{model.name} has no experts", plan.model_origin, "prune takes a mixture of experts")
        problems.raise_if_any()
    keep = _kept(plan, counts)
    by_layer = dict.fromkeys(layers, keep) if isinstance(keep, tuple) else dict(keep)
    for number in by_layer:
        if number not in layers:
            known = f"its layers with experts are {min(layers)} to {max(layers)}"
            problems.add(f"layer {number} of {model.name} has no experts", plan.keep_origin, known)
    for number, layer in layers.items():
        if number not in by_layer:
            problems.add(
                f"nothing is said of layer {number}", plan.keep_origin, "name every layer with experts"
            )
        elif any(e >= counts[layer] for e in by_layer[number]):
            text = f"there is no expert {max(by_layer[number])} in layer {number} of {model.name}"
            problems.add(text, plan.keep_origin, f"experts are numbered 0 to {counts[layer] - 1}")
    problems.raise_if_any()
    return {layer: by_layer[number] for number, layer in layers.items()}


def _kept(plan: PrunePlan, counts: Mapping[str, int]) -> tuple[int, ...] | Mapping[int, tuple[int, ...]]:
    """The experts to keep, those of a score file found now; `counts` are those of the model's layers."""
    keep = plan.keep
    if not isinstance(keep, ScoreFile):
        return keep
    scores = _scores(keep, plan.file)
    problems = Problems()
    for layer, count in counts.items():
        number = _number(layer)
        if len(scores.get(number, ())) not in (0, count):
            text = f"layer {number} has {count} experts, and {keep.path} scores {len(scores[number])}"
            problems.add(text, keep.origin, "write one score for each expert")
        elif keep.count > count:
            text = f"count is {keep.count}, but layer {number} has {count} experts"
            problems.add(text, keep.origin, f"write a number from 1 to {count}")
    problems.raise_if_any()
    return best(scores, keep.count)


def _number(layer: str) -> int:
    """The number of a layer, from ``model.layers.3.``."""
    return int(layer.rstrip(".").rsplit(".", 1)[-1])


def _scores(keep: ScoreFile, plan_file: str) -> Scores:
    beside = Path(plan_file).parent / keep.path
    path = Path(keep.path) if Path(keep.path).exists() or not beside.exists() else beside
    problems = Problems()
    try:
        text = path.read_text(encoding="utf-8")
        return read_scores(text, str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        hint = "write the path of a .json, .yml or .csv file"
        problems.add(f"the scores {path} cannot be read: {reason}", keep.origin, hint)
        problems.raise_if_any()
        raise


# ---- align -----------------------------------------------------------------------------------------


def _align(plan: AlignPlan, asked: Asked, open_merge: OpenMerge) -> Operation:
    method, inputs = open_merge(plan.merge)
    asked.problems.raise_if_any()
    reference = inputs[plan.reference]
    here = fetched(inputs)
    moved: list[str] = []
    found = dict(inputs)
    with Reader({model.key: model.index for model in here.values()}) as reader:
        for ref, model in here.items():
            if model.key == reference.key:
                continue
            picks = _matched(plan, here[plan.reference], model, reader)
            found[ref] = replace(inputs[ref], picks=picks)
            changed = sum(new != old for pick in picks.values() for new, old in enumerate(pick))
            total = sum(len(pick) for pick in picks.values())
            moved.append(f"{model.name}: {changed} of {total} experts are matched with one of another number")
    layout = asked.layout or plan.expert_layout
    compiled = compile_merge(plan.merge, method, found, asked.seed, layout)
    report = replace(compiled.report, notes=(*compiled.report.notes, *moved))
    title = f"align ({method.name})"
    return Operation(title, found, donor_of(plan.merge, found), replace(compiled, report=report))


def _matched(plan: AlignPlan, reference: Input, model: Input, reader: Reader) -> Picks:
    from mergegraph.engine.alignment import assignments  # loads scipy

    try:
        return assignments(reference, model, plan.by, reader)
    except GraphError as error:
        problems = Problems()
        problems.add(error.message, plan.reference_origin, "align takes mixtures of one family and size")
        problems.raise_if_any()
        raise
