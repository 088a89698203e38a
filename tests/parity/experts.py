"""The two layouts that mixture-of-experts checkpoints are stored in, for the Mixtral-shaped parity models.

Per expert: three matrices each, ``block_sparse_moe.experts.N.w1`` (gate), ``w3`` (up) and ``w2`` (down).
Stacked: one ``mlp.experts.gate_up_proj`` of shape [E, 2I, H], in which the gate rows come first, and one
``mlp.experts.down_proj`` of shape [E, H, I]. The router is called ``gate`` below either parent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

_OWN, _STACKED = "block_sparse_moe.", "mlp."
_MATRIX = re.compile(r"(?P<layer>.+\.)block_sparse_moe\.experts\.(?P<expert>\d+)\.(?P<role>w[123])\.weight")
_STACK = re.compile(r"(?P<layer>.+\.)mlp\.experts\.(?P<what>gate_up|down)_proj")
EXPERT = re.compile(r"\.experts\.")


def per_expert(tensors: Mapping[str, F64]) -> dict[str, F64]:
    """`tensors` under their per-expert names, whichever layout they are in; other tensors are left alone.

    Raises:
        ValueError: there are tensors of both layouts, which no loader reads.
    """
    own, of_stack = ([name for name in tensors if form.fullmatch(name)] for form in (_MATRIX, _STACK))
    if own and of_stack:
        raise ValueError(f"two layouts in one checkpoint: {own[0]} and {of_stack[0]}")
    found: dict[str, F64] = {}
    for name, values in tensors.items():
        match = _STACK.fullmatch(name)
        if match is None:
            found[name.replace(f"{_STACKED}gate.weight", f"{_OWN}gate.weight")] = values
            continue
        rows = values.shape[1] // 2
        for index, matrix in enumerate(values):
            expert = f"{match['layer']}{_OWN}experts.{index}"
            if match["what"] == "down":
                found[f"{expert}.w2.weight"] = matrix
            else:
                found[f"{expert}.w1.weight"], found[f"{expert}.w3.weight"] = matrix[:rows], matrix[rows:]
    return found


def stacked(tensors: Mapping[str, F64]) -> dict[str, F64]:
    """`tensors` under their stacked names, whichever layout they are in; other tensors are left alone."""
    found: dict[str, F64] = {}
    experts: dict[str, dict[tuple[str, int], F64]] = {}
    for name, values in tensors.items():
        match = _MATRIX.fullmatch(name)
        if match is None:
            found[name.replace(f"{_OWN}gate.weight", f"{_STACKED}gate.weight")] = values
        else:
            experts.setdefault(match["layer"], {})[match["role"], int(match["expert"])] = values
    for layer, matrices in experts.items():
        count = 1 + max(index for _, index in matrices)
        gate, up, down = (np.stack([matrices[role, i] for i in range(count)]) for role in ("w1", "w3", "w2"))
        found[f"{layer}{_STACKED}experts.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        found[f"{layer}{_STACKED}experts.down_proj"] = down
    return found
