"""Families of models that need more than names: one file each, found by being here.

Most families need none: layers are recognised by tensor names, layer counts by config keys. A file
``<family>.py`` defines ``FAMILY = Family(...)`` with what names cannot tell.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from mergegraph.architectures.base import Family

_NOT_FAMILIES = ("base", "roles")


@cache
def all_families() -> tuple[Family, ...]:
    """Every family of this package, by file name."""
    names = sorted(m.name for m in iter_modules(__path__) if m.name not in _NOT_FAMILIES)
    return tuple(import_module(f"{__name__}.{name}").FAMILY for name in names)


def family_of(model_type: str | None) -> Family:
    """The family that claims `model_type`, or the one that needs nothing special."""
    return next((f for f in all_families() if model_type in f.model_types), Family(()))
