"""The expression language: immutable, Merkle-keyed nodes, and the ops they apply.

A node says *what* a value is, never how or where it is computed. Equal work has equal keys, so
deduplication is free: a repeated subexpression is the same node to every pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cached_property
from hashlib import blake2b
from importlib import import_module
from typing import Any

from mergegraph.errors import GraphError
from mergegraph.tensorspec import DType, Space, TensorSpec

Attr = str | int | float | bool | None | tuple["Attr", ...]
"""An attribute value: metadata of a node, part of its key."""


class Locality(Enum):
    """Which input elements an output element needs: this alone decides how an op is executed."""

    SOURCE = "source"
    """Bytes of a checkpoint tensor, or a range of them."""
    ELEMENTWISE = "elementwise"
    """Element i of the output needs only elements i of the inputs (and any STAT operands)."""
    ROWWISE = "rowwise"
    """Needs whole rows (last axis) at a time."""
    REDUCE = "reduce"
    """Folds tiles into a small state, then finalises it to a STAT."""
    SMALL = "small"
    """STATs in, STAT out: runs once per value, on the host, in float64."""
    WHOLE = "whole"
    """Needs the whole tensor at once; charged in full against the memory budget."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where in a plan a value comes from. Never part of a node's key."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Real:
    """Spelling of one float type in generated scalar code: its constructor, zero and one."""

    type: str
    zero: str
    one: str


SpecRule = Callable[[Sequence[TensorSpec], dict[str, Any]], TensorSpec]
WorkspaceRule = Callable[[Sequence[TensorSpec], dict[str, Any]], int]
ScalarRule = Callable[[Sequence[str], dict[str, Any], Real, str], tuple[list[str], str]]
"""(operand names, attrs, float type, prefix for temporaries) → (statements, result expression).

Element i of statistic ``w`` is spelled ``w_i``; the element's index in the tensor is spelled ``e``.
"""


@dataclass(frozen=True)
class Op:
    """One instruction: a name, how local it is, and rules that say what it means.

    Called with nodes it builds a node; called with tensors it computes, so a merge method is one
    definition for both. Operands are positional, metadata is keyword-only.

    Attributes:
        name: the task kind users see in a dry run.
        locality: see `Locality`.
        infer: spec rule; raises `GraphError` when operands do not fit.
        kernel: ``module:attribute`` below `mergegraph.kernels`, imported on first use so that
            planning never loads torch. ELEMENTWISE, ROWWISE, WHOLE: a function of tensors.
            REDUCE: a `mergegraph.kernels.Reduction`. SMALL: a function of float64 arrays.
            A plug-in may put the callable itself here.
        scalar: how to compute one element, as generated code; without it the op runs as torch
            calls on tiles.
        row: ROWWISE only: the function of `mergegraph.kernels.rows` that computes a row, for generated code:
            (operand rows, count, result, statistics…), with the number of the first element after the result
            if `indexed`.
        sparse: ROWWISE only: the result is the operand with some elements left out, as zeros.
        indexed: the result depends on the element's index: generated code spells it ``e``, kernels take
            the first element's as ``first``.
        by_column: statistics ``[m, columns]`` hold numbers for each column, which is an element's index
            in its piece modulo `columns`: generated code spells it ``k``, and row i of a statistic ``w``
            ``w[i, k]``; kernels take the first element's index as ``first``.
        workspace: bytes per element that the kernel needs beyond operands and result; where that does not
            follow from the number of elements alone, a function that gives the bytes for a whole tensor.
    """

    name: str
    locality: Locality
    infer: SpecRule
    kernel: str | Callable[..., Any] = ""
    scalar: ScalarRule | None = None
    row: str = ""
    sparse: bool = False
    indexed: bool = False
    by_column: bool = False
    workspace: int | WorkspaceRule = 0

    @cached_property
    def implementation(self) -> Any:
        """The kernel itself, imported on first use."""
        if callable(self.kernel):
            return self.kernel
        module, _, attribute = self.kernel.partition(":")
        return getattr(import_module(f"mergegraph.kernels.{module}"), attribute)

    def __call__(self, *operands: Any, **attrs: Any) -> Any:
        """Build a node if any operand is one, else compute on the given tensors."""
        if any(isinstance(x, Node) for x in operands):
            return node(self, *operands, **attrs)
        return import_module("mergegraph.kernels").call(self, operands, attrs)

    def __repr__(self) -> str:
        return f"Op({self.name})"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One value of the graph. Two nodes are equal exactly if their keys are."""

    op: Op
    inputs: tuple[Node, ...]
    attrs: tuple[tuple[str, Attr], ...]
    spec: TensorSpec
    key: bytes = field(repr=False)
    origin: Origin | None = field(default=None, repr=False)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def attributes(self) -> dict[str, Any]:
        """The attributes as keyword arguments."""
        return dict(self.attrs)

    def workspace_bytes(self, elements: int) -> int:
        """Bytes that computing `elements` of it takes beyond operands and result."""
        need = self.op.workspace
        if isinstance(need, int):
            return need * elements
        return need([x.spec for x in self.inputs], self.attributes)

    @property
    def is_stat(self) -> bool:
        """Whether the value is a small, held statistic."""
        return self.spec.space is Space.STAT

    @property
    def is_row(self) -> bool:
        """Whether the value is a few numbers for each row."""
        return self.spec.space is Space.ROW


def node(op: Op, *operands: Any, origin: Origin | None = None, **attrs: Attr) -> Node:
    """Apply `op` to nodes; plain numbers and tuples of them become `constant` nodes.

    Raises:
        GraphError: the operands do not fit the op.
    """
    inputs = tuple(x if isinstance(x, Node) else constant(x) for x in operands)
    spec = op.infer([x.spec for x in inputs], attrs)
    items = tuple(sorted(attrs.items()))
    return Node(op, inputs, items, spec, _digest(op.name, items, inputs), origin)


def _digest(name: str, attrs: object, inputs: Iterable[Node]) -> bytes:
    digest = blake2b(f"{name}{attrs!r}".encode(), digest_size=16)
    for x in inputs:
        digest.update(x.key)
    return digest.digest()


def _constant_spec(_: Sequence[TensorSpec], attrs: dict[str, Any]) -> TensorSpec:
    return TensorSpec((len(attrs["values"]),), DType.F64, Space.STAT)


CONSTANT = Op("constant", Locality.SMALL, _constant_spec, "small:constant")


def constant(values: float | Sequence[float], origin: Origin | None = None) -> Node:
    """A STAT whose value is known when the plan is compiled: weights, t, densities."""
    numbers = (values,) if isinstance(values, int | float) else values
    if not isinstance(numbers, tuple | list) or not all(isinstance(v, int | float) for v in numbers):
        raise GraphError(f"a constant must be numbers, not {values!r}")
    return node(CONSTANT, values=tuple(float(v) for v in numbers), origin=origin)


def walk(roots: Iterable[Node]) -> Iterator[Node]:
    """Yield every node below `roots` once, operands before users, in a fixed order."""
    seen: set[bytes] = set()
    stack = [(root, False) for root in reversed(tuple(roots))]
    while stack:
        current, expanded = stack.pop()
        if expanded:
            yield current
        elif current.key not in seen:
            seen.add(current.key)
            stack.append((current, True))
            stack.extend((x, False) for x in reversed(current.inputs))
