"""cheap_embed reads the embedding rows that the prompts use, and no model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mergegraph.errors import CheckpointError
from mergegraph.routing.embeddings import prompt_sums
from mergegraph.routing.prompts import PromptGroup, PromptTable
from mergegraph.routing.weights import widen
from mergegraph.testing import write_checkpoint
from tests.routing.scenario import weights_of, write_base

TABLE = PromptTable(((1, 5, 5, 6), (1, 200)), (PromptGroup((0,), (1,)),))
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_a_prompt_is_the_sum_of_its_tokens_rows(tmp_path: Path, dtype: str) -> None:
    directory = write_base(tmp_path / dtype, dtype)
    with weights_of(directory) as weights:
        rows = widen(weights.read(EMBEDDING), weights.specs[EMBEDDING].dtype).astype(np.float64)
        expected = [rows[1] + 2 * rows[5] + rows[6], rows[1] + rows[200]]
        np.testing.assert_allclose(prompt_sums(weights, TABLE, ""), expected, rtol=1e-12)


def test_only_the_rows_of_tokens_that_occur_are_read_each_once(base: Path) -> None:
    with weights_of(base) as weights:
        prompt_sums(weights, TABLE, "")
    assert weights.reads == [(EMBEDDING, 1, 1), (EMBEDDING, 5, 2), (EMBEDDING, 200, 1)]


def test_a_token_beyond_the_table_is_an_error(base: Path) -> None:
    table = PromptTable(((1, 260),), ())
    with weights_of(base) as weights, pytest.raises(CheckpointError, match=r"token 260.*only 260 rows"):
        prompt_sums(weights, table, "base")


@pytest.mark.parametrize("names", [["a.weight"], ["x.embed_tokens.weight", "y.embed_tokens.weight"]])
def test_a_model_without_one_token_embedding_is_refused(tmp_path: Path, names: list[str]) -> None:
    write_checkpoint(tmp_path / "odd", {name: np.zeros((4, 2), np.float32) for name in names})
    with weights_of(tmp_path / "odd") as weights, pytest.raises(CheckpointError, match="token embedding"):
        prompt_sums(weights, TABLE, "base")


def test_an_embedding_that_is_not_stored_as_floats_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "odd", {EMBEDDING: np.zeros((300, 2), np.uint8)})
    with weights_of(tmp_path / "odd") as weights, pytest.raises(CheckpointError, match="dequantise"):
        prompt_sums(weights, TABLE, "base")


RUN = """
import json, sys
from pathlib import Path
from tests.routing.scenario import request_for, weights_of
from mergegraph.routing.gates import gate_rows
directory = Path(sys.argv[1])
with weights_of(directory) as weights:
    gate_rows(request_for(directory, "cheap_embed"), weights)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""


def test_cheap_embed_loads_no_torch(base: Path, repository: Path) -> None:
    out = subprocess.run(
        [sys.executable, "-c", RUN, str(base)], capture_output=True, text=True, cwd=repository, check=False
    )
    assert out.returncode == 0, out.stderr
    modules = json.loads(out.stdout)
    assert [name for name in ("torch", "numba", "transformers", "accelerate") if name in modules] == []
