"""Loading generated tile code, and keeping its machine code between runs.

Generated modules live in the user's cache directory, under a name that digests their text, the
kernels they call and the compiler's version; numba caches machine code beside them. They are code,
so the directory is private to the user.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mergegraph.kernels import fused
from mergegraph.storage.files import cache_root


def cache_dir() -> Path:
    """Where generated code lies: a folder of the user's cache for this version of the kernels."""
    files = sorted(Path(fused.__file__).parent.glob("fused*.py"))
    kernels = b"".join(file.read_bytes() for file in files) + fused.VERSION.encode()
    return cache_root() / "kernels" / blake2b(kernels, digest_size=6).hexdigest()


def load_source(source: str) -> Callable[..., Any]:
    """Return the function ``run`` that `source` defines, with its machine code cached if possible.

    An unusable cache directory costs the compilation (about half a second), nothing else.
    """
    digest = blake2b(source.encode(), digest_size=10).hexdigest()
    name = f"mergegraph_generated.tile_{digest}"
    if name not in sys.modules:
        try:
            path = _store(cache_dir(), f"tile_{digest}.py", source)
        except OSError:
            path = _store(Path(tempfile.mkdtemp(prefix="mergegraph-")), f"tile_{digest}.py", source)
        _import(name, path)
    run: Callable[..., Any] = sys.modules[name].run
    return run


def _import(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load generated code from {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module


def _store(directory: Path, name: str, source: str) -> Path:
    """Write `source` once, atomically, so that two processes can share the cache."""
    path = directory / name
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if directory.stat().st_uid != os.getuid():
        raise PermissionError(f"{directory} belongs to another user")
    if not (path.exists() and path.read_bytes() == source.encode()):
        handle, temporary = tempfile.mkstemp(dir=directory, suffix=".tmp")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(source)
        os.replace(temporary, path)
    return path
