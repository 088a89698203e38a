"""Machine code is kept in the user's cache, and any trouble with it costs only time."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mergegraph.kernels import native
from mergegraph.kernels.lowering.kinds import Unsupported
from mergegraph.kernels.lowering.machine import object_code
from mergegraph.kernels.native import Argument
from mergegraph.runtime import codecache
from mergegraph.runtime.codecache import cache_dir, load_code

INTEGER = (Argument(),)
COMPILED = codecache._compiled


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MERGEGRAPH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    forget(monkeypatch)
    yield tmp_path / "cache"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in another process: what was loaded is not there any more."""
    monkeypatch.setattr(codecache, "_loaded", {})


def must_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codecache, "_compiled", None)


def source(value: int) -> str:
    return f"def run(x):\n    return x + {value}\n"


def files(cache: Path) -> list[Path]:
    return sorted(p for p in cache.rglob("*") if p.is_file())


def test_code_is_loaded_and_kept(cache: Path) -> None:
    assert load_code(source(1), INTEGER)(41) == 42
    (file,) = files(cache)
    assert file.suffix == ".o"
    assert file.parent == cache_dir()


def test_equal_code_is_one_function_and_other_code_or_arguments_another(cache: Path) -> None:
    assert load_code(source(1), INTEGER) is load_code(source(1), INTEGER)
    assert load_code(source(2), INTEGER)(1) == 3
    sizes = "def run(x):\n    return len(x)\n"
    assert load_code(sizes, [Argument("float32", 1)]) is not load_code(sizes, [Argument("float64", 1)])
    assert len(files(cache)) == 4


def test_functions_that_were_compiled_apart_do_not_get_mixed_up(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes number their symbols alike."""
    script = (
        "import sys; from mergegraph.kernels.native import Argument;"
        "from mergegraph.runtime.codecache import load_code; load_code(sys.argv[1], (Argument(),))"
    )
    for value in (10, 20):
        subprocess.run([sys.executable, "-c", script, source(value)], check=True, env=dict(os.environ))
    must_not_compile(monkeypatch)
    assert [load_code(source(value), INTEGER)(1) for value in (10, 20)] == [11, 21]


def test_another_process_finds_it_and_needs_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_code(source(3), INTEGER)
    (file,) = files(cache)
    written = file.stat().st_mtime_ns
    forget(monkeypatch)
    must_not_compile(monkeypatch)
    assert load_code(source(3), INTEGER)(1) == 4
    assert file.stat().st_mtime_ns == written


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other"])
def test_a_damaged_file_is_written_again(cache: Path, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load_code(source(4), INTEGER)
    (file,) = files(cache)
    good = file.read_bytes()
    flipped = good[:100] + bytes([good[100] ^ 1]) + good[101:]
    file.write_bytes({"empty": b"", "cut": good[:-9], "flipped": flipped, "other": b"\xff" * 999}[damage])
    forget(monkeypatch)
    assert load_code(source(4), INTEGER)(1) == 5
    forget(monkeypatch)
    must_not_compile(monkeypatch)
    assert load_code(source(4), INTEGER)(1) == 5


def test_what_only_numba_can_compile_works_too(cache: Path) -> None:
    text = "def run(x):\n    return len([i for i in range(x)])\n"
    with pytest.raises(Unsupported):
        object_code(text, INTEGER)
    assert load_code(text, INTEGER)(5) == 5
    assert len(files(cache)) == 1


def test_the_directory_is_the_users_alone(cache: Path) -> None:
    load_code(source(5), INTEGER)
    assert stat.S_IMODE(cache_dir().stat().st_mode) == 0o700


def test_without_a_usable_cache_it_works_all_the_same(cache: Path) -> None:
    cache.write_text("a file, not a directory")
    assert load_code(source(6), INTEGER)(1) == 7
    assert cache.read_text() == "a file, not a directory"


def test_a_directory_of_another_user_is_neither_read_nor_written(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_code(source(7), INTEGER)
    (file,) = files(cache)
    file.write_bytes(b"not for us")
    forget(monkeypatch)
    monkeypatch.setattr(os, "getuid", lambda: 54_321)
    assert load_code(source(7), INTEGER)(1) == 8
    assert file.read_bytes() == b"not for us"
    assert files(cache) == [file]


@pytest.mark.parametrize("which", ["folder", "its parent", "link"])
def test_a_folder_that_others_can_write_to_or_replace_is_not_used(
    cache: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    load_code(source(9), INTEGER)
    (file,) = files(cache)
    file.write_bytes(b"not for us")
    if which == "link":
        file.parent.rename(cache / "elsewhere")
        file.parent.symlink_to(cache / "elsewhere")
    else:
        (file.parent if which == "folder" else file.parent.parent).chmod(0o770)
    forget(monkeypatch)
    assert load_code(source(9), INTEGER)(1) == 10
    assert file.read_bytes() == b"not for us"


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_dir().is_relative_to(tmp_path / "cache")
    monkeypatch.delenv("MERGEGRAPH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir().is_relative_to(tmp_path / "xdg" / "mergegraph")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_dir().is_relative_to(tmp_path / "home" / ".cache" / "mergegraph")


@pytest.mark.parametrize("name", ["kernels_id", "compiler_id"])
def test_other_kernels_another_compiler_or_processor_use_another_directory(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    before = cache_dir()
    assert cache_dir() == before
    monkeypatch.setattr(codecache, name, lambda: "another")
    assert cache_dir() != before


def test_the_compiler_is_named_with_the_processor_it_compiles_for() -> None:
    found = native.compiler_id()
    assert "numba 0." in found
    assert native.llvm.get_host_cpu_name() in found
