"""The parity plans: files in `cases/` with ``{model}`` where a checkpoint path goes.

Those in `cases/refused/` are errors for both programs. On those in `cases/beyond/` mergekit fails, and
mergegraph does what the formula says.
"""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

import yaml

from . import models

CASES = Path(__file__).parent / "cases"
REFUSED = CASES / "refused"
BEYOND = CASES / "beyond"

# Every method that a plan of mergekit 0.1.5 can name: each must exist, have cases and have a reference.
METHODS = (
    *("arcee_fusion", "breadcrumbs", "breadcrumbs_ties", "dare_linear", "dare_ties", "della", "della_linear"),
    *("karcher", "linear", "model_stock", "multislerp", "nearswap", "nuslerp", "passthrough", "ram"),
    *("ramplus_tl", "sce", "slerp", "task_arithmetic", "ties"),
)
_PLACEHOLDER = re.compile(r"\{([a-z0-9_]+)\}")


def names(folder: Path = CASES) -> list[str]:
    """The cases of `folder`, sorted."""
    return sorted(path.stem for path in folder.glob("*.yml"))


def template(case: str, folder: Path = CASES) -> str:
    """The text of `case`, placeholders and all."""
    return (folder / f"{case}.yml").read_text()


def keys(text: str) -> list[str]:
    """The checkpoints that a plan names, in the order of their first mention."""
    return list(dict.fromkeys(_PLACEHOLDER.findall(text)))


def filled(text: str, root: Path) -> str:
    """`text` with every placeholder replaced by the path of that checkpoint, built under `root`."""
    return _PLACEHOLDER.sub(lambda match: str(models.build(match[1], root)), text)


def bare(text: str) -> str:
    """`text` with every placeholder replaced by the name of that checkpoint."""
    return _PLACEHOLDER.sub(lambda match: match[1], text)


@functools.cache
def method(case: str, folder: Path = CASES) -> str:
    """The merge method of `case`."""
    plan: dict[str, str] = yaml.safe_load(bare(template(case, folder)))
    return plan["merge_method"]


def digest(text: str) -> str:
    """A short digest of a plan's text, to notice a plan that changed after it was recorded."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
