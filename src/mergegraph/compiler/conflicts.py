"""What is wrong with single tensors, told once for all tensors that it is wrong with in the same way."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from mergegraph.architectures.experts import Kind
from mergegraph.architectures.roles import is_head, is_token_embedding
from mergegraph.compiler.experts import Place
from mergegraph.compiler.groups import Group, Operand
from mergegraph.compiler.inputs import Input
from mergegraph.errors import Problem
from mergegraph.graph.node import Origin
from mergegraph.tensorspec import TensorSpec

Shape = tuple[int, ...]


@dataclass(slots=True)
class _Finding:
    problems: list[Problem] = field(default_factory=list)
    shown: int = 1


class Conflicts:
    """Collects problems of tensors by what is wrong, and counts instead of repeating them."""

    def __init__(self) -> None:
        self._found: dict[Hashable, _Finding] = {}

    def add(self, kind: Hashable, problem: Problem, shown: int = 1) -> None:
        """Note a problem; up to `shown` of one `kind` are told one by one, more by the first and a number."""
        finding = self._found.setdefault(kind, _Finding(shown=shown))
        finding.problems.append(problem)

    def problems(self) -> list[Problem]:
        """Return what is to be told."""
        told = []
        for finding in self._found.values():
            first, more = finding.problems[0], len(finding.problems) - 1
            if more < finding.shown:
                told += finding.problems
            else:
                text = f"{first.message} (and {more} more {'tensor' if more == 1 else 'tensors'})"
                told.append(replace(first, message=text))
        return told

    def agree(self, group: Group, present: Sequence[Operand]) -> bool:
        """Whether operands can be combined element by element; if not, that is noted."""
        specs = [spec_of(o) for o in present]
        odd = [s for s in specs if s is not specs[0] and s != specs[0]]
        if not odd:
            return True
        if any(s.shape != specs[0].shape for s in odd):
            self._shapes(group, present, specs)
            return False
        if any(s.dtype is not specs[0].dtype for s in odd) and not all(s.dtype.arithmetic for s in specs):
            self._dtypes(group, present, specs)
            return False
        return True

    def agree_on_stacks(self, models: Iterable[tuple[Input, Origin]]) -> None:
        """Stacks of one name must hold their matrices alike: a transposed one is another thing."""
        first: dict[str, tuple[str, Kind]] = {}
        for model, origin in models:
            for name, kind in model.form.kinds.items():
                other, known = first.setdefault(name, (model.name, kind))
                if (known.layout, len(known.names)) != (kind.layout, len(kind.names)):
                    text = f"{model.name} and {other} hold experts differently in {name}"
                    hint = "one is the transpose of the other, or of another family; convert it first"
                    self.add((name, other), Problem(text, str(origin), name, None, hint))

    def _shapes(self, group: Group, present: Sequence[Operand], specs: Sequence[TensorSpec]) -> None:
        shapes = {o.input.name: s.shape for o, s in zip(present, specs, strict=True)}
        odd = next(o for o, s in zip(present, specs, strict=True) if s.shape != specs[0].shape)
        text = "; ".join(f"{list(shape)} in {model}" for model, shape in shapes.items())
        vocabulary = _is_vocabulary(group.name, list(shapes.values()))
        hint = "the models must have one architecture and size"
        if vocabulary:
            hint = "the models have vocabularies of different sizes; resize them to one vocabulary first"
        problem = Problem(
            f"{group.name} has different shapes: {text}",
            str(odd.source.origin),
            group.name,
            odd.input.name,
            hint,
        )
        # Another hidden size changes every tensor, and each in one of very few ways.
        kind = (str(odd.source.origin), tuple(shapes), vocabulary, _differences(list(shapes.values())))
        self.add(kind, problem, shown=3)

    def _dtypes(self, group: Group, present: Sequence[Operand], specs: Sequence[TensorSpec]) -> None:
        odd = next(o for o, s in zip(present, specs, strict=True) if s.dtype is not specs[0].dtype)
        kinds = ", ".join(
            f"{s.dtype.torch_name} in {o.input.name}" for o, s in zip(present, specs, strict=True)
        )
        hint = "only floating-point tensors are merged; others must be of one dtype, and equal, in all models"
        problem = Problem(
            f"{group.name} cannot be merged: {kinds}",
            str(odd.source.origin),
            group.name,
            odd.input.name,
            hint,
        )
        self.add(("dtype", kinds, str(odd.source.origin)), problem)


def spec_of(operand: Operand) -> TensorSpec:
    """The spec of an operand that its model has."""
    place: Place | None = operand.place
    assert place is not None
    return place.spec


def _is_vocabulary(name: str, shapes: list[Shape]) -> bool:
    """Whether a tensor with a row per token differs in the number of rows alone."""
    return (is_head(name) or is_token_embedding(name)) and len({shape[1:] for shape in shapes}) == 1


def _differences(shapes: list[Shape]) -> Hashable:
    """The sizes that differ, without their places: ``[8, 12]``, ``[16, 12]`` → 8 against 16."""
    if len({len(shape) for shape in shapes}) > 1:
        return tuple(len(shape) for shape in shapes)
    return frozenset(sizes for sizes in zip(*shapes, strict=True) if len(set(sizes)) > 1)
