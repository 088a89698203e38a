"""The public names: sorted, complete, typed, and free of charge until used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mergegraph
from mergegraph import errors

ROOT = Path(mergegraph.__file__).parent


def test_all_is_sorted() -> None:
    assert mergegraph.__all__ == sorted(mergegraph.__all__)


@pytest.mark.parametrize("name", mergegraph.__all__)
def test_every_public_name_can_be_had_and_is_documented(name: str) -> None:
    assert inspect.getdoc(getattr(mergegraph, name))


def test_the_whole_exception_tree_is_public() -> None:
    tree = [n for n, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)]
    assert set(tree) <= set(mergegraph.__all__)


def test_type_checkers_see_exactly_the_public_names() -> None:
    tree = ast.parse((ROOT / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    declared = [alias.name for node in imports for alias in node.names]
    assert sorted([*declared, "__version__"]) == mergegraph.__all__
    for node in imports:
        home = import_module(str(node.module))
        for alias in node.names:
            assert getattr(mergegraph, alias.name) is getattr(home, alias.name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'merge_everything'"):
        mergegraph.merge_everything  # noqa: B018


def test_dir_lists_the_public_names() -> None:
    assert set(mergegraph.__all__) <= set(dir(mergegraph))


def test_the_package_is_typed() -> None:
    assert (ROOT / "py.typed").exists()


def test_every_all_in_the_package_is_sorted_and_true() -> None:
    for path in sorted(ROOT.rglob("__init__.py")):
        module = import_module(".".join(path.relative_to(ROOT.parent).parent.parts))
        listed = getattr(module, "__all__", [])
        assert list(listed) == sorted(listed), path
        assert [name for name in listed if not hasattr(module, name)] == [], path


def test_importing_the_package_imports_only_its_version() -> None:
    code = "import sys, mergegraph; print(*sorted(m for m in sys.modules if m.startswith('mergegraph.')))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["mergegraph.version"]
