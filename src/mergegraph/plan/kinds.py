"""Which kind of plan a file is, and reading it as that."""

from __future__ import annotations

from mergegraph.errors import did_you_mean
from mergegraph.plan import schema
from mergegraph.plan.merge import MergePlan, read_merge
from mergegraph.plan.models import Reading
from mergegraph.plan.moe import MERGE_SIGNS, MoePlan, read_moe
from mergegraph.plan.source import Entry, Located, Problems, load_documents
from mergegraph.plan.surgery import SurgeryPlan
from mergegraph.plan.surgery_reader import read_surgery

AnyPlan = MergePlan | MoePlan | SurgeryPlan

_SIGNS = {
    "surgery": ("surgery",),
    "moe": ("experts", "gate_mode", "shared_experts"),
    "merge": MERGE_SIGNS,
}
"""Keys that only one kind of plan has, unless a kind above it decides."""

_WHAT = {"moe": "a mixture of experts", "merge": "a merge"}
_KINDS = "a merge has merge_method:, a mixture of experts has experts:, anything else has surgery:"


def parse_any(text: str, file: str) -> AnyPlan:
    """Read a plan of any kind; `file` is its name in messages.

    Raises:
        PlanError: with everything that is wrong, in line order.
    """
    problems = Problems()
    plan = read_any(text, file, problems)
    problems.raise_if_any()
    return plan


def read_any(text: str, file: str, problems: Problems) -> AnyPlan:
    """Read what can be read of a plan of any kind, noting what is wrong with it.

    With problems the plan must not be run, but more can still be said about it. Of several documents the
    last one is the plan, and those before it are its stages.

    Raises:
        PlanError: nothing more can be said: it is not YAML, of no or of two kinds, or names no model.
    """
    *earlier, root = load_documents(text, file, problems)
    kind = _kind(root, problems)
    reading = Reading(text, file, problems)
    reading.read_stages(tuple(earlier))
    plan: AnyPlan | None = None
    if kind == "merge":
        _refuse_stages_of_merge(root, reading)
        plan = read_merge(root, text, file, problems)
    elif kind is not None:
        plan = read_moe(root, reading) if kind == "moe" else read_surgery(root, reading)
        reading.refuse_unused_stages()
    if plan is None:
        problems.raise_if_any()
    assert plan is not None
    return plan


def _kind(root: Located, problems: Problems) -> str | None:
    """Tell the kind of plan by its keys; one of no or of two kinds is a problem.

    With a list of experts it can be read on as a MoE plan.
    """
    found: dict[str, Entry] = {}
    for kind, keys in _SIGNS.items():
        sign = next((entry for key, entry in (root.entries or {}).items() if key in keys), None)
        if sign is not None:
            found[kind] = sign
    if len(found) == 1 or "surgery" in found:
        return next(iter(found))
    if root.entries is None:
        hint = "write merge_method: NAME and models: at the top level"
        problems.add(f"a plan must be a mapping, not {root.kind()}", root.origin, hint)
    elif not found:
        _ask_for_kind(root, problems)
    else:
        _refuse_both(root, found, problems)
        return "moe" if "experts" in root.entries else None
    return None


def _ask_for_kind(root: Located, problems: Problems) -> None:
    """Note that no key tells the kind of plan; a mistyped one may be meant to."""
    known = (*schema.MERGE.names, *schema.MOE.names)
    signs = [key for keys in _SIGNS.values() for key in keys]
    odd = [entry for key, entry in (root.entries or {}).items() if key not in known]
    near = next(((e.origin, hint) for e in odd if (hint := did_you_mean(e.key, signs))), None)
    origin, hint = near or (root.origin, _KINDS)
    problems.add("it is not clear what kind of plan this is", origin, hint)


def _refuse_both(root: Located, found: dict[str, Entry], problems: Problems) -> None:
    """Note that a plan has keys of a merge and of a mixture of experts."""
    (first_kind, first), (kind, second) = sorted(found.items(), key=lambda item: item[1].origin.line)
    message = (
        f"{second.key!r} is for {_WHAT[kind]}, but {first.key!r} (line {first.origin.line}) is for "
        f"{_WHAT[first_kind]}"
    )
    hint = "a mixture lists its models below experts:, with a source_model: each; for a merge, remove this"
    if "experts" in (root.entries or {}):
        hint = (
            "a merge stands below source_model:, base_model: or backbone:, or as a stage before this document"
        )
    elif kind == "merge":
        hint = f"for a merge, remove {first.key!r}; a mixture lists its models below experts:"
    problems.add(message, second.origin, hint)


def _refuse_stages_of_merge(root: Located, reading: Reading) -> None:
    if reading.stages:
        message = "the last document is a merge plan, and a merge cannot use stages"
        hint = "put a MoE plan last, or make one file for each merge"
        reading.problems.add(message, root.origin, hint)
