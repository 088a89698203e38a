"""Models for runs that fail, and code compiled once for them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.engine.scenario import Scenario, make


@pytest.fixture(scope="package", autouse=True)
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEGRAPH_CACHE", str(tmp_path_factory.mktemp("code")))
        yield


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """Models that no test changes."""
    return make(tmp_path_factory.mktemp("models"))
