"""Generated modules are kept in the user's cache, and any trouble with it costs only time."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mergegraph.runtime.codecache import cache_dir, load_source


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MERGEGRAPH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = dict(sys.modules)
    yield tmp_path / "cache"
    forget(before)


def forget(kept: dict[str, object]) -> None:
    for name in [n for n in sys.modules if n.startswith("mergegraph_generated.") and n not in kept]:
        del sys.modules[name]


def source(value: int) -> str:
    return f"def run():\n    return {value}\n"


def files(cache: Path) -> list[Path]:
    return sorted(p for p in cache.rglob("*") if p.is_file() and "__pycache__" not in p.parts)


def test_code_is_loaded_and_kept(cache: Path) -> None:
    assert load_source(source(1))() == 1
    (file,) = files(cache)
    assert file.read_text() == source(1)
    assert file.parent == cache_dir()


def test_equal_code_is_one_function_and_other_code_another(cache: Path) -> None:
    assert load_source(source(1)) is load_source(source(1))
    assert load_source(source(2))() == 2
    assert len(files(cache)) == 2


def test_another_process_finds_it(cache: Path) -> None:
    before = dict(sys.modules)
    load_source(source(3))
    (file,) = files(cache)
    written = file.stat().st_mtime_ns
    forget(before)
    assert load_source(source(3))() == 3
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    "content",
    [b"", b"def run():\n    return 666\n", b"\xff\xfe\x00 not text"],
    ids=["empty", "other", "binary"],
)
def test_a_damaged_file_is_written_again(cache: Path, content: bytes) -> None:
    before = dict(sys.modules)
    load_source(source(4))
    (file,) = files(cache)
    file.write_bytes(content)
    forget(before)
    assert load_source(source(4))() == 4
    assert file.read_text() == source(4)


def test_the_directory_is_the_users_alone(cache: Path) -> None:
    load_source(source(5))
    assert stat.S_IMODE(cache_dir().stat().st_mode) == 0o700


def test_without_a_usable_cache_it_works_all_the_same(cache: Path) -> None:
    cache.write_text("a file, not a directory")
    assert load_source(source(6))() == 6
    assert cache.read_text() == "a file, not a directory"


def test_a_directory_of_another_user_is_not_trusted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = iter([54_321])  # whoever made the cache directory; the temporary one is our own
    real = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: next(users, real))
    assert load_source(source(7))() == 7
    assert files(cache) == []


def test_no_temporary_files_are_left(cache: Path) -> None:
    load_source(source(8))
    assert [p.suffix for p in files(cache)] == [".py"]


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir().is_relative_to(tmp_path / "cache")
    monkeypatch.delenv("MERGEGRAPH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir().is_relative_to(tmp_path / "xdg" / "mergegraph")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir().is_relative_to(tmp_path / "home" / ".cache" / "mergegraph")


def test_other_kernels_or_another_compiler_use_another_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    from mergegraph.kernels import fused

    before = cache_dir()
    assert cache_dir() == before
    monkeypatch.setattr(fused, "VERSION", "numba-0.0.0")
    assert cache_dir() != before
