"""Rows are kept in a cache of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.routing.scenario import write_base


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("MERGEGRAPH_CACHE", str(directory))
    return directory


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small float32 base model."""
    return write_base(tmp_path / "base")
