from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import shapes


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that holds the tiny checkpoints of quick mode."""
    root = tmp_path_factory.mktemp("models")
    list(shapes.make(root, "quick"))
    return root
