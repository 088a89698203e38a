"""What every test shares: no network, no randomness from outside, small checkpoints."""

from __future__ import annotations

import os
from pathlib import Path

# Before anything imports them: tests never reach for the network, nor draw progress bars.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
from hypothesis import settings

from mergegraph.testing import Llama, prepare_demo

settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the demo's models in ``demo/``, shrunk to a few kilobytes.

    They keep the 8 layers that the example plans count on.
    """
    shape = Llama(layers=8, hidden=16, intermediate=24, heads=2, kv_heads=1, vocab=300)
    prepare_demo(tmp_path / "demo", shape=shape, shard_size=20_000)
    monkeypatch.chdir(tmp_path)
    return tmp_path
