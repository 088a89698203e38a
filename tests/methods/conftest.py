"""Generated code is compiled into a directory of the test run's own, and never by numba."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mergegraph.kernels import fused


def _too_slow(source: str, _: Any) -> None:
    pytest.fail(f"to compile this by numba takes seconds, where lowering takes a tenth of one:\n{source}")


@pytest.fixture(scope="package", autouse=True)
def code_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MERGEGRAPH_CACHE", str(tmp_path_factory.mktemp("code")))
        patch.setattr(fused, "object_code", _too_slow)
        yield
