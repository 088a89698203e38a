"""One plan per merge method, valid for mergegraph and for mergekit alike.

A method that is not listed here is measured with the example of its own declaration.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

BASE = "base"


@dataclass(frozen=True)
class Case:
    """One merge: a method, the checkpoints it reads, and its plan.

    Attributes:
        method: the merge method.
        models: the checkpoints it reads, the base first, as named below the models' directory.
        template: the plan in YAML; ``{name}`` stands for a checkpoint's path.
        peer: whether mergekit knows the method.
    """

    method: str
    models: tuple[str, ...]
    template: str
    peer: bool = True

    def plan(self, directory: Path) -> str:
        """The plan in YAML, its checkpoints below `directory`."""
        text = self.template
        for name in self.models:
            text = text.replace(f"{{{name}}}", str(directory.resolve() / name))
        return text


@dataclass(frozen=True)
class _Recipe:
    """How to spell a method's plan: which models, and parameters of each model and of all."""

    models: int | None  # besides the base; None for all there are
    base: bool  # whether the plan names one
    each: str = ""
    shared: str = ""
    merged: bool = False  # whether the base is one of the merged models


_RECIPES = {
    "linear": _Recipe(2, False, each="{weight: 0.33}", merged=True),
    "slerp": _Recipe(1, True, shared="{t: 0.4}", merged=True),
    "nuslerp": _Recipe(1, False, each="{weight: 0.5}", merged=True),
    "multislerp": _Recipe(2, False, each="{weight: 0.33}", merged=True),
    "karcher": _Recipe(2, False, merged=True),
    "task_arithmetic": _Recipe(None, True, each="{weight: 0.5}"),
    "ties": _Recipe(None, True, each="{weight: 0.5, density: 0.5}"),
    "dare_linear": _Recipe(None, True, each="{weight: 0.5, density: 0.5}"),
    "dare_ties": _Recipe(None, True, each="{weight: 0.5, density: 0.5}"),
    "breadcrumbs": _Recipe(None, True, each="{weight: 0.5, density: 0.6, gamma: 0.01}"),
    "breadcrumbs_ties": _Recipe(None, True, each="{weight: 0.5, density: 0.6, gamma: 0.01}"),
    "della": _Recipe(None, True, each="{weight: 0.5, density: 0.5, epsilon: 0.1}"),
    "della_linear": _Recipe(None, True, each="{weight: 0.5, density: 0.5, epsilon: 0.1}"),
    "model_stock": _Recipe(None, True),
    "nearswap": _Recipe(1, True, shared="{t: 0.0001}"),
    "arcee_fusion": _Recipe(1, True),
    "sce": _Recipe(None, True, shared="{select_topk: 0.5}"),
    "ram": _Recipe(None, True),
    "ramplus_tl": _Recipe(None, True),
    "passthrough": _Recipe(0, False, merged=True),
}

METHODS = tuple(_RECIPES)
"""The methods that both tools know."""

QUICK = ("linear", "slerp", "ties", "dare_ties", "passthrough")
"""What quick mode measures of them: every kind of work once."""


def case(method: str, models: tuple[str, ...], dtype: str = "bfloat16") -> Case:
    """The case of a method that both tools know, on the checkpoints of a shape (the base first)."""
    recipe = _RECIPES[method]
    tunes = models[1:] if recipe.models is None else models[1 : 1 + recipe.models]
    lines = [f"merge_method: {method}"]
    lines += [f"base_model: {{{models[0]}}}"] if recipe.base else []
    lines.append("models:")
    for name in (models[0], *tunes) if recipe.merged else tunes:
        lines.append(f"  - model: {{{name}}}")
        lines += [f"    parameters: {recipe.each}"] if recipe.each else []
    lines += [f"parameters: {recipe.shared}"] if recipe.shared else []
    return Case(method, (models[0], *tunes), "\n".join([*lines, f"dtype: {dtype}", ""]))


def example_case(method: str, example: str, models: tuple[str, ...]) -> Case:
    """The case of any other method: its declared example, on these checkpoints.

    Raises:
        ValueError: the example names more checkpoints than there are.
    """
    names = list(dict.fromkeys(re.findall(r"\./([\w-]+)", example)))
    tunes = iter(models[1:])
    places = {name: models[0] if name == BASE else next(tunes, None) for name in names}
    used = [place for place in places.values() if place is not None]
    if len(used) < len(places):
        raise ValueError(f"the example of {method} names {len(names)} checkpoints; there are {len(models)}")
    template = re.sub(r"\./([\w-]+)", lambda found: f"{{{places[found[1]]}}}", example)
    return Case(method, tuple(name for name in models if name in used), f"{template.strip()}\n", peer=False)
