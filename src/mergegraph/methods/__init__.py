"""Merge methods: one file each, found by being here.

A file ``<name>.py`` defines ``METHOD = MergeMethod(name="<name>", ...)``. Adding a method is adding a
file; there is no list to extend. Names that start with an underscore are helpers, not methods.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import MappingProxyType, ModuleType

from mergegraph.errors import MergeGraphError, PlanError, Problem, did_you_mean
from mergegraph.methods.base import MergeMethod

_NOT_METHODS = ("base",)


def discover(paths: Iterable[str | Path]) -> dict[str, MergeMethod]:
    """Return the methods defined by the files directly below `paths`, by name, sorted.

    Raises:
        MergeGraphError: a file defines no method, one of another name, or cannot be imported, or
            two files have the same name.
    """
    return _load_all(_method_files(paths))


def all_methods() -> dict[str, MergeMethod]:
    """Return every method of this package, by name, sorted.

    Files are imported once; a file added to the package's path later is found on the next call.
    """
    return dict(_load_cached(_method_files(__path__)))


def get_method(name: str, where: str | None = None) -> MergeMethod:
    """Return the method called `name`; `where` is the plan line that asks for it.

    Raises:
        PlanError: there is no such method.
    """
    methods = all_methods()
    if name not in methods:
        known = f"the methods are {', '.join(methods)}"
        hint = did_you_mean(name, methods)
        problem = Problem(f"unknown merge method {name!r}", where, hint=f"{hint} {known}" if hint else known)
        raise PlanError([problem])
    return methods[name]


def _method_files(paths: Iterable[str | Path]) -> tuple[str, ...]:
    files = [file for path in paths for file in Path(path).glob("*.py")]
    chosen = [f for f in files if not f.name.startswith("_") and f.stem not in _NOT_METHODS]
    return tuple(str(f) for f in sorted(chosen, key=lambda f: (f.stem, str(f))))


def _load_all(files: tuple[str, ...]) -> dict[str, MergeMethod]:
    methods: dict[str, MergeMethod] = {}
    for file in files:
        stem = Path(file).stem
        if stem in methods:
            raise MergeGraphError(f"{file}: there is already a merge method {stem!r}", hint="rename one file")
        method = getattr(_load_module(f"{__name__}.{stem}", file), "METHOD", None)
        if not isinstance(method, MergeMethod):
            raise MergeGraphError(
                f"{file} defines no merge method",
                hint="define METHOD = MergeMethod(...), or start the file name with an underscore",
            )
        if method.name != stem:
            raise MergeGraphError(
                f"{file} defines the merge method {method.name!r}", hint=f"call the file {method.name}.py"
            )
        methods[stem] = method
    return methods


@cache
def _load_cached(files: tuple[str, ...]) -> MappingProxyType[str, MergeMethod]:
    return MappingProxyType(_load_all(files))


def _load_module(name: str, file: str) -> ModuleType:
    """Import `file` as `name`, once. Files outside the package's own folder work the same way."""
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == file:
        return loaded
    spec = spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise MergeGraphError(f"{file} is not a Python module")
    module = module_from_spec(spec)
    # Registered first, as the import system does: code that looks up its own module then works.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise MergeGraphError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    return module
