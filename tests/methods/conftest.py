"""Generated code is compiled into a directory of the test run's own, and never by numba."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mergegraph.kernels import fused


@pytest.fixture(scope="package", autouse=True)
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEGRAPH_CACHE", str(tmp_path_factory.mktemp("code")))
        yield


@pytest.fixture(autouse=True)
def lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_slow(source: str, _: Any) -> None:
        pytest.fail(f"to compile this by numba takes seconds, where lowering takes a tenth of one:\n{source}")

    monkeypatch.setattr(fused, "object_code", too_slow)
