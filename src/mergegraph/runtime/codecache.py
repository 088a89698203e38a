"""Generated tile code as machine code, kept between runs.

Object files lie in the user's cache directory, under a name that digests the text, the arguments, the kernels
it calls, the compiler and the processor. They are code, so the directory is private to the user.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from mergegraph.kernels.native import Argument, Code, Native, compiler_id, kernels_id
from mergegraph.storage.files import cache_root

_DIGEST = 16
_loaded: dict[Path, Native] = {}


def load_code(source: str, arguments: Sequence[Argument]) -> Native:
    """Return the function ``run`` that `source` defines, compiled for `arguments` by now or long ago.

    An unusable cache directory costs the compilation (tenths of a second), nothing else.
    """
    digest = blake2b(f"{source}{arguments}".encode(), digest_size=_DIGEST).hexdigest()
    path = cache_dir() / f"tile_{digest}.o"
    if path not in _loaded:
        code = _stored(path)
        if code is None:
            code = _compiled(source, arguments)
            _store(path, code)
        _loaded[path] = Native(code, arguments)
    return _loaded[path]


def cache_dir() -> Path:
    """Where machine code lies: a folder of the user's cache for these kernels, compiler and processor."""
    digest = blake2b(f"{kernels_id()} {compiler_id()}".encode(), digest_size=6).hexdigest()
    return cache_root() / "kernels" / digest


def _compiled(source: str, arguments: Sequence[Argument]) -> Code:
    # Compilers are loaded where they are needed: most runs do without, and nearly all others without numba.
    from mergegraph.kernels.lowering.kinds import Unsupported
    from mergegraph.kernels.lowering.machine import object_code

    try:
        return object_code(source, arguments)
    except Unsupported:
        from mergegraph.kernels import fused

        return fused.object_code(source, arguments)


def _stored(path: Path) -> Code | None:
    """What was stored at `path`; None if there is nothing, or not what was stored."""
    try:
        if not _private(path.parent):
            return None
        data = path.read_bytes()
    except OSError:
        return None
    if blake2b(data[_DIGEST:], digest_size=_DIGEST).digest() != data[:_DIGEST]:
        return None
    symbol, _, rest = data[_DIGEST:].partition(b"\0")
    return Code(symbol.decode(), rest)


def _private(directory: Path) -> bool:
    """Whether nobody else can put files into `directory`, or another in its place."""
    found = [os.lstat(directory), os.lstat(directory.parent)]
    return all(stat.S_ISDIR(x.st_mode) and x.st_uid == os.getuid() and not x.st_mode & 0o022 for x in found)


def _store(path: Path, code: Code) -> None:
    """Write `code` atomically, so that two processes can share the cache; or not at all."""
    content = code.symbol.encode() + b"\0" + code.data
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.parent.mkdir(exist_ok=True, mode=0o700)
        if not _private(path.parent):
            return
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(blake2b(content, digest_size=_DIGEST).digest() + content)
        os.replace(temporary, path)
    except OSError:
        return
