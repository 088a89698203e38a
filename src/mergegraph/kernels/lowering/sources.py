"""Finding what names in the text of kernels stand for, without importing the modules."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mergegraph.kernels.lowering.kinds import Unsupported

_PACKAGE, _HERE = "mergegraph", Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Known:
    """What a name of a module is: a function, an expression that it was assigned, or something outside."""

    module: Module
    function: ast.FunctionDef | None = None
    expression: ast.expr | None = None
    outside: str = ""
    """The full name of what is not of this project, as ``numpy.float32``."""

    @property
    def inline(self) -> bool:
        """Whether it is a function that is always expanded where it is called."""
        return self.function is not None and "helper" in _decorators(self.function)

    @property
    def emitted(self) -> bool:
        """Whether it is a function whose code is made by Python: see `mergegraph.kernels.fused_vector`."""
        return self.function is not None and "_emitted" in _decorators(self.function)


@dataclass(frozen=True, slots=True, eq=False)
class Module:
    """The text of a module as a tree, and where each of its names comes from."""

    name: str
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    values: dict[str, ast.expr] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    """Names that are given values more than once, or in some other way."""
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Name → the module it is from and its name there; no name for a module itself."""

    def look_up(self, name: str) -> Known:
        """What `name` is.

        Raises:
            Unsupported: nothing that could be compiled.
        """
        homes = (self.functions, self.values, self.imported)
        if name in self.changed or sum(name in home for home in homes) > 1:
            raise Unsupported(f"{name} is more than one thing")
        if name in self.functions:
            function = self.functions[name]
            if not {"jit", "helper", "_emitted"}.intersection(_decorators(function)):
                raise Unsupported(f"{name} is not compiled")
            return Known(self, function=function)
        if name in self.values:
            return Known(self, expression=self.values[name])
        if name not in self.imported:
            return Known(self, outside=name)
        origin, there = self.imported[name]
        if origin.partition(".")[0] == _PACKAGE and there:
            return module(origin).look_up(there)
        return Known(self, outside=f"{origin}.{there}" if there else origin)


@cache
def module(name: str) -> Module:
    """A module of this package, by its full name."""
    path = _HERE.joinpath(*name.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    try:
        return parsed(file.read_text("utf-8"), name)
    except (OSError, SyntaxError) as error:
        raise Unsupported(f"{name} has no text to read: {error}") from error


def parsed(text: str, name: str) -> Module:
    """The module of a text."""
    found = Module(name)
    for node in ast.parse(text).body:
        match node:
            case ast.FunctionDef():
                _note(found, found.functions, {node.name: node})
            case ast.Assign(targets=[ast.Name(id=target)], value=value):
                _note(found, found.values, {target: value})
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                pairs = zip(targets, values, strict=True)
                _note(found, found.values, {t.id: v for t, v in pairs if isinstance(t, ast.Name)})
            case ast.Import(names=names):
                _note(found, found.imported, {x.asname or x.name: (x.name, "") for x in names})
            case ast.ImportFrom(module=str(origin), names=names):
                _note(found, found.imported, {x.asname or x.name: (origin, x.name) for x in names})
            case ast.ClassDef():
                found.changed.add(node.name)
            case _:
                found.changed.update(stored_names(node))
    return found


def stored_names(node: ast.AST) -> frozenset[str]:
    """The names that are given values somewhere in a statement or function."""
    names = (x for x in ast.walk(node) if isinstance(x, ast.Name))
    return frozenset(x.id for x in names if isinstance(x.ctx, ast.Store))


def _note(found: Module, kind: dict[str, Any], names: dict[str, Any]) -> None:
    found.changed.update(kind.keys() & names.keys())
    kind.update(names)


def _decorators(function: ast.FunctionDef) -> set[str]:
    return {node.id for node in function.decorator_list if isinstance(node, ast.Name)}
