"""The plans that both programs build, and the logical parts of what they write.

Experts are compared by layer, number and role, whichever layout they are stored in: mergekit writes some
families stacked, and here the default is one tensor per expert.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mergegraph.testing.tokenizer import write_tokenizer

from .. import models, plans
from ..models import Stored

CASES = Path(__file__).parent / "cases"
GOLDEN = Path(__file__).parent / "golden"
RECORDED = GOLDEN / "recorded.json"
ROWS = GOLDEN / "rows.npz"
VOCAB = 32
ALPHABET = "0123456789+-*/=()[]{}<>!?,.;:"
"""What the tokenizer of the models knows beside its three special tokens."""

_LAYER = r"model\.layers\.(?P<layer>\d+)\."
_APART = re.compile(
    _LAYER + r"(?:mlp|block_sparse_moe)\.experts\.(?P<expert>\d+)\."
    r"(?P<role>gate_proj|up_proj|down_proj|w[123])\.weight"
)
_STACK = re.compile(_LAYER + r"mlp\.experts\.(?P<what>gate_up|down)_proj")
_ROLES = {"w1": "gate", "w2": "down", "w3": "up", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def prepared(case: str, root: Path) -> str:
    """The text of a plan whose models are there, with a tokenizer each."""
    text = plans.filled(plans.template(case, CASES), root)
    for key in plans.keys(plans.template(case, CASES)):
        _write_tokenizer(root / key)
    return text


def _write_tokenizer(folder: Path) -> None:
    write_tokenizer(folder, VOCAB)
    path = folder / "tokenizer.json"
    held = json.loads(path.read_text())
    known = held["model"]["vocab"]
    held["model"]["vocab"] = {token: i for i, token in enumerate([*list(known)[:3], *ALPHABET])}
    path.write_text(json.dumps(held))


def logical(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Tensors by logical names: experts as ``layer/expert/role``, routers under one name."""
    found: dict[str, Stored] = {}
    for name, stored in tensors.items():
        apart, stack = _APART.fullmatch(name), _STACK.fullmatch(name)
        if apart is not None:
            found[f"{apart['layer']}/{apart['expert']}/{_ROLES[apart['role']]}"] = stored
        elif stack is None:
            found[name.replace("block_sparse_moe.gate.", "mlp.gate.")] = stored
        else:
            for e, matrix in enumerate(stored.values):
                parts = {"down": matrix}
                if stack["what"] == "gate_up":
                    parts = dict(zip(("gate", "up"), np.split(matrix, 2), strict=True))
                for role, values in parts.items():
                    found[f"{stack['layer']}/{e}/{role}"] = Stored(stored.dtype, values)
    return found


def is_router(name: str) -> bool:
    """Whether these are router rows: of experts, or of a shared expert."""
    return name.endswith(("mlp.gate.weight", "shared_expert_gate.weight"))


def is_expert(name: str) -> bool:
    """Whether this is a matrix of an expert."""
    return name.count("/") == 2


def digest(stored: Stored) -> str:
    """A short digest of a tensor's dtype, shape and bits."""
    data = models.encode(stored.values, stored.dtype)
    text = f"{stored.dtype}{list(stored.values.shape)}".encode()
    return hashlib.sha256(text + data).hexdigest()[:12]
