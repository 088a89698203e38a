"""Families of models that need more than names: one file each, found by being here.

Most families need none: layers are recognised by tensor names, layer counts by config keys. A file
``<family>.py`` defines ``FAMILY = Family(...)`` with what names cannot tell, ``MOE = MoeFamily(...)`` for
a mixture of experts, or both. Modules that define neither only help.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING

from mergegraph.architectures.base import Family

if TYPE_CHECKING:  # the modules of this package import it
    from mergegraph.architectures.moe import MoeFamily


@cache
def _modules() -> tuple[ModuleType, ...]:
    return tuple(
        import_module(f"{__name__}.{name}") for name in sorted(m.name for m in iter_modules(__path__))
    )


@cache
def all_families() -> tuple[Family, ...]:
    """Every family of this package, by file name."""
    return tuple(m.FAMILY for m in _modules() if hasattr(m, "FAMILY"))


def family_of(model_type: str | None) -> Family:
    """The family that claims `model_type`, or the one that needs nothing special."""
    return next((f for f in all_families() if model_type in f.model_types), Family(()))


@cache
def all_moe_families() -> tuple[MoeFamily, ...]:
    """Every family of mixtures of experts, by file name."""
    return tuple(m.MOE for m in _modules() if hasattr(m, "MOE"))


def moe_family(model_type: str | None) -> MoeFamily | None:
    """The family of mixtures of experts that `model_type` names, if it is known."""
    return next((f for f in all_moe_families() if model_type in f.model_types), None)
