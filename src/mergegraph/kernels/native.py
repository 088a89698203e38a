"""Compiled functions as machine code: kept by whoever wants to, and loaded without the compiler.

To load numba takes longer than to merge a small model, and four times the memory of everything else. What it
makes of a function is a few kilobytes, which the linker of LLVM loads in a millisecond.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from functools import cache
from hashlib import blake2b
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding as llvm
import numpy as np

_ALLOCATOR = "numba.core.runtime._nrt_python"


class Argument(NamedTuple):
    """What a function takes in one place: an array of `dims` dimensions, or an integer (no `dims`)."""

    dtype: str = "int64"
    dims: int | None = None


class Code(NamedTuple):
    """An object file, and the symbol in it to call."""

    symbol: str
    data: bytes


class Native:
    """A loaded function of integers and contiguous arrays that returns an integer; it lets go of the GIL.

    Args:
        code: made on this machine, by `object_code` of `mergegraph.kernels.lowering.machine`, or of
            `mergegraph.kernels.fused`.
        arguments: what it takes.
    """

    def __init__(self, code: Code, arguments: Sequence[Argument]) -> None:
        _share_allocator()
        target = _target().create_target_machine(jit=True)  # an engine's own from then on
        # An engine for each object: symbols of two may be called the same.
        self._engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
        self._engine.add_object_file(llvm.ObjectFileRef.from_data(code.data))
        self._engine.finalize_object()
        prototype = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p] * 3)
        self.function = prototype(self._engine.get_function_address(code.symbol))
        self.arguments = [None if a.dims is None else (np.dtype(a.dtype), a.dims) for a in arguments]
        widths = [1 if array is None else 1 + array[1] for array in self.arguments]
        self.places = [sum(widths[:i]) for i in range(len(widths))]
        self.width = sum(widths)

    def __call__(self, *values: Any) -> int:
        """Call it once; errors are those of a `Call`."""
        return Call(self, values)()


class Call:
    """A call with its arguments in place, to be made again and again with some of them changed.

    For one thread at a time. Arrays are not copied. Those that it is made with live as long as it does;
    whoever sets another one keeps it alive until the call was made.

    Args:
        native: what to call.
        values: its arguments; None for what is set before the call is made.

    Raises:
        TypeError: an array is not what was compiled for: its memory would be taken for something else.
    """

    def __init__(self, native: Native, values: Sequence[Any]) -> None:
        if len(values) != len(native.arguments):
            raise TypeError(f"{len(values)} arguments instead of {len(native.arguments)}")
        self._native = native
        self._values = values
        self._table = (ctypes.c_int64 * native.width)()
        self._found, self._failure = ctypes.c_int64(), ctypes.c_void_p()
        self._pointers = [ctypes.addressof(x) for x in (self._found, self._failure, self._table)]
        for i, value in enumerate(values):
            if value is not None:
                self.set(i, value)

    def set(self, i: int, value: Any) -> None:
        """Change argument `i`."""
        at, array = self._native.places[i], self._native.arguments[i]
        if array is None:
            self._table[at] = value
            return
        if value.dtype != array[0] or value.ndim != array[1] or not value.flags.c_contiguous:
            given = f"{value.dtype}{list(value.shape)}"
            raise TypeError(f"{given} instead of {array[1]} dimensions of {array[0]}, contiguous")
        try:
            # A quarter of what it takes to ask the array.
            self._table[at] = ctypes.addressof(ctypes.c_char.from_buffer(value))
        except (TypeError, ValueError):  # it is empty, or not for writing
            self._table[at] = value.ctypes.data
        self._table[at + 1 : at + 1 + array[1]] = value.shape

    def __call__(self) -> int:
        """Make it.

        Raises:
            MemoryError: there is none left.
        """
        if self._native.function(*self._pointers) != 0:
            raise MemoryError("compiled code could not allocate its scratch memory")
        return self._found.value


@cache
def kernels_id() -> str:
    """Digest of everything in this package: what compiled functions are made of."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return blake2b(b"".join(file.read_bytes() for file in files), digest_size=8).hexdigest()


@cache
def compiler_id() -> str:
    """What decides, besides a function itself, what machine code it becomes: compiler and processor."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("numba", "llvmlite"))
    features = llvm.get_host_cpu_features().flatten()
    chosen = [os.environ.get(f"NUMBA_{x}", "") for x in ("CPU_NAME", "CPU_FEATURES", "ENABLE_AVX", "OPT")]
    return f"{versions}, {sys.implementation.cache_tag} {llvm.get_host_cpu_name()} {features} {chosen}"


def undefined(names: Sequence[str]) -> list[str]:
    """Those of `names` that `Native` could not resolve: LLVM ends the process over one."""
    shared, process = _share_allocator(), ctypes.CDLL(None)
    # What numba brings along is here while it compiles, and not where its code is loaded.
    brought = ("numba_", "__svml")
    return [x for x in names if x not in shared and (x.startswith(brought) or not hasattr(process, x))]


def target_machine() -> Any:
    """LLVM's description of this processor, for code that is loaded into this process."""
    return _target().create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="default",
        codemodel="jitdefault",
        jit=True,
    )


@cache
def _target() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple()


@cache
def _share_allocator() -> frozenset[str]:
    """Tell LLVM where compiled code finds numba's functions for scratch memory; return what they are called.

    They are in a file of their own, which can be loaded by itself.
    """
    allocator = sys.modules.get(_ALLOCATOR) or _alone(_ALLOCATOR)
    symbols = {f"NRT_{name}": address for name, address in allocator.c_helpers.items()}
    for name, address in symbols.items():
        llvm.add_symbol(name, address)
    return frozenset(symbols)


def _alone(name: str) -> Any:
    """Load an extension module without the packages that it is in."""
    package, *path = name.split(".")
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"{package} is not installed")
    stem = Path(found.submodule_search_locations[0], *path)
    file = next((f for s in EXTENSION_SUFFIXES if (f := stem.with_name(stem.name + s)).exists()), None)
    if file is None:
        raise ImportError(f"{package} {version(package)} has no {'.'.join(path)}")
    spec = spec_from_loader(path[-1], ExtensionFileLoader(path[-1], str(file)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
