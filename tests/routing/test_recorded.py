"""Rows agree with recorded rows of mergekit-moe 0.1.5, wherever those are right.

Embeddings agree to the last bits of float32. mergekit computes hidden states and their norms in bfloat16,
whose steps are 2⁻⁹ near the largest elements; nothing here is rounded after the model itself.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mergegraph.routing.artefact import read_rows
from mergegraph.routing.gates import gate_rows
from mergegraph.routing.weights import Array
from tests.routing.scenario import CASES, GOLDEN, LAYERS, request_for, weights_of, write_base

TOLERANCE = {"cheap_embed": 2e-7, "hidden": 5e-3, "hidden_avg": 5e-3}


def stacked(path: Path, name: str) -> Array:
    return np.stack([read_rows(path, f"{name}.{layer}") for layer in range(LAYERS)])


@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_that_mergekit_makes(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    recorded = np.load(GOLDEN)
    directory = write_base(tmp_path / "model", case.dtype)
    request = replace(request_for(directory, case.mode, case.experts), shared=case.shared)
    with weights_of(directory) as weights:
        found = gate_rows(request, weights)
    tolerance = TOLERANCE[case.mode]
    np.testing.assert_allclose(stacked(found.path, "layers"), recorded[name], atol=tolerance, rtol=0)
    if case.shared:
        expected = recorded[f"{name}.shared"]
        np.testing.assert_allclose(stacked(found.path, "shared"), expected, atol=tolerance, rtol=0)
