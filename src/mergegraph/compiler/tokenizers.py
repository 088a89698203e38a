"""Tokenizer keys of a plan: refused, unless all models have the same tokenizer and they change nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mergegraph.compiler.inputs import Input
from mergegraph.errors import did_you_mean
from mergegraph.plan.merge import MergePlan, RawValue
from mergegraph.plan.source import Problems
from mergegraph.plan.values import ModelRef, parse_model_ref

_REMOVE = "remove the key: tokenizer and chat template are then copied from the base or first model"


def asks_for_tokenizers(plan: MergePlan) -> bool:
    """Whether anything in the plan depends on the models' tokenizer files."""
    return any(given is not None for given in (plan.tokenizer_source, plan.tokenizer, plan.chat_template))


def check_tokenizers(plan: MergePlan, inputs: Mapping[ModelRef, Input], problems: Problems) -> None:
    """Note every tokenizer key that would change something."""
    for key, given in (("tokenizer_source", plan.tokenizer_source), ("tokenizer", plan.tokenizer)):
        if given is not None:
            _check_tokenizer(key, given, plan, inputs, problems)
    given = plan.chat_template
    if given is None:
        return
    if given.value != "auto":
        text = "chat_template is not supported by this version, but for auto"
        problems.add(text, given.origin, _REMOVE)
    elif odd := _unequal(inputs, lambda model: model.chat_template):
        text = f"chat_template: auto is not supported by this version where chat templates differ: {odd}"
        problems.add(text, given.origin, _REMOVE)


def tokenizer_notes(plan: MergePlan, donor: Input) -> list[str]:
    """Remarks on tokenizer keys that were found to change nothing."""
    found = []
    for key, given in (("tokenizer_source", plan.tokenizer_source), ("tokenizer", plan.tokenizer)):
        if given is not None:
            found.append(
                f"{given.origin}: {key} changes nothing: all models have the same tokenizer; its files are "
                f"copied from {donor.name}, and all embedding rows are kept"
            )
    if plan.chat_template is not None:
        found.append(
            f"{plan.chat_template.origin}: chat_template changes nothing: all models have the same; it is "
            f"copied from {donor.name}"
        )
    return found


def _check_tokenizer(
    key: str, given: RawValue, plan: MergePlan, inputs: Mapping[ModelRef, Input], problems: Problems
) -> None:
    source: Any = given.value
    if key == "tokenizer":
        extra = [name for name in ("tokens", "pad_to_multiple_of") if given.value.get(name)]
        if extra:
            text = f"tokenizer: {' and '.join(extra)} is not supported by this version"
            problems.add(text, given.origin, "remove it: all embedding rows are kept as they are")
            return
        source = given.value.get("source") or "union"
    known = plan.referenced_models()
    if source not in ("base", "union") and _model_ref(source) not in known:
        text = f"{key} names no model of this plan, which is not supported by this version"
        near = did_you_mean(str(source), ["base", "union", *map(str, known)])
        problems.add(text, given.origin, near or "write base, union or a model that the plan merges")
    elif odd := _unequal(inputs, lambda model: model.tokenizer):
        text = (
            f"{key} is not supported by this version where tokenizers differ, because vocabularies "
            f"are not remapped: {odd}"
        )
        problems.add(text, given.origin, _REMOVE)


def _model_ref(source: Any) -> ModelRef | None:
    """The model that a string or a mapping of the same form as elsewhere names."""
    if isinstance(source, str):
        return parse_model_ref(source) if source.strip() else None
    model = source.get("model") if isinstance(source, dict) else None
    if isinstance(model, dict):
        return ModelRef(str(model.get("path")), model.get("revision"))
    return parse_model_ref(model) if isinstance(model, str) and model.strip() else None


def _unequal(inputs: Mapping[ModelRef, Input], digest: Callable[[Input], str | None]) -> str:
    """Say which models have none, or another one than the first; empty if all are equal."""
    models = list(inputs.values())
    without = [model.name for model in models if digest(model) is None]
    if without:
        return f"{', '.join(without)} {'has' if len(without) == 1 else 'have'} none that can be read"
    others = [model.name for model in models if digest(model) != digest(models[0])]
    return (
        f"{', '.join(others)} {'differs' if len(others) == 1 else 'differ'} from {models[0].name}"
        if others
        else ""
    )
