"""Rules of the code base that no other tool checks."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src" / "mergegraph"
MODULES = sorted(SOURCE.rglob("*.py"))

MODULE_LIMIT = 350
FUNCTION_LIMIT = 50


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def name_of(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_no_module_is_longer_than_350_lines() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: length for name, length in lengths.items() if length > MODULE_LIMIT} == {}


def test_no_function_is_longer_than_50_lines() -> None:
    found = {
        f"{name_of(path)}:{node.lineno} {node.name}": length
        for path in MODULES
        for node in functions(ast.parse(path.read_text()))
        if (length := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LIMIT
    }
    assert found == {}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not tree.body or ast.get_docstring(tree), f"{name_of(path)} has no docstring"


def test_nothing_is_left_to_do() -> None:
    """Unfinished work is named in the documentation, not hidden in the code."""
    marks = ("TO" + "DO", "FIX" + "ME", "X" + "XX")
    found = [
        f"{name_of(path)}:{number}"
        for path in MODULES
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if any(mark in line for mark in marks)
    ]
    assert found == []


def test_no_exception_is_swallowed_without_a_word() -> None:
    """A bare ``except`` or an ``except Exception: pass`` turns a failure into another result."""
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        and (
            node.type is None
            or (
                isinstance(node.type, ast.Name)
                and node.type.id in ("Exception", "BaseException")
                and all(isinstance(line, ast.Pass | ast.Continue) for line in node.body)
            )
        )
    ]
    assert found == []


def test_print_is_for_the_command_line_only() -> None:
    found = [
        f"{name_of(path)}:{node.lineno}"
        for path in MODULES
        if "cli" not in path.relative_to(SOURCE).parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []
