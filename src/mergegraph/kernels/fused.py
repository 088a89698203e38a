"""The compiled CPU kernels (numba): float conversions, folds, checksums, and what generated code uses.

Nothing here contracts, reassociates or otherwise relaxes float arithmetic, so the bits are the same
on every machine and equal to those of the torch kernels.
"""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Before numba is imported: with that library, bits would depend on whether a machine has it.
os.environ.setdefault("NUMBA_DISABLE_INTEL_SVML", "1")

import numba
import numpy as np
from numba import types

from mergegraph.kernels.fused_vector import pointer_to
from mergegraph.kernels.native import Argument, Code, kernels_id, undefined

_OPTIONS: dict[str, Any] = {"nogil": True, "fastmath": False, "error_model": "numpy", "boundscheck": False}

u8, u16, u32, u64, i32, i64 = np.uint8, np.uint16, np.uint32, np.uint64, np.int32, np.int64
f32, f64 = np.float32, np.float64

GOLDEN = u64(0x9E3779B97F4A7C15)
"""How far the states of neighbouring random numbers are apart."""


_CACHE = Path(__file__).parent / "__pycache__" / kernels_id()


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function on first call; the machine code is cached beside its source.

    In a folder for these kernels: numba would not notice that a function changed which this one calls.
    """
    settings: Any = numba.config
    before, settings.CACHE_DIR = settings.CACHE_DIR, str(_CACHE)
    try:
        compiled: Callable[..., Any] = numba.njit(cache=True, **_OPTIONS)(function)
    finally:
        settings.CACHE_DIR = before
    return compiled


def helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a scalar helper; LLVM inlines it where it is called."""
    compiled: Callable[..., Any] = numba.njit(**_OPTIONS)(function)
    return compiled


def object_code(source: str, arguments: Sequence[Argument]) -> Code:
    """Compile the function ``run`` of a module's text, of integers and contiguous arrays, for `Native`.

    For what `mergegraph.kernels.lowering` does not know: numba knows more, and takes ten times as long.

    What is compiled takes one table of numbers, so that no compiler is needed to call it: of each integer its
    value, of each array its address and shape.
    """
    module = ast.parse(source)
    run = next(x for x in module.body if isinstance(x, ast.FunctionDef) and x.name == "run")
    at, lines = 0, []
    for name, argument in zip([x.arg for x in run.args.args], arguments, strict=True):
        if argument.dims is None:
            lines.append(f"{name} = _table[{at}]")
            at += 1
        else:
            sizes = "".join(f"_table[{at + 1 + d}], " for d in range(argument.dims))
            lines.append(f"{name} = carray(pointer_to({argument.dtype}, _table[{at}]), ({sizes}))")
            at += 1 + argument.dims
    run.args.args = [ast.arg("_table")]
    run.body = [*ast.parse("\n".join(lines)).body, *run.body]
    found: dict[str, Any] = {name: getattr(types, name) for name in {x.dtype for x in arguments}}
    found |= {"carray": numba.carray, "pointer_to": pointer_to}  # type: ignore[attr-defined]
    exec(compile(ast.fix_missing_locations(module), "<generated>", "exec"), found)
    options = _OPTIONS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    entry = numba.njit(**options)(found["run"])
    entry.compile((types.CPointer(types.int64),))
    (result,) = entry.overloads.values()
    library = result.library
    outside = [f.name for f in library._final_module.functions if f.is_declaration]
    missing = undefined([name for name in outside if not name.startswith("llvm.")])
    if missing:
        raise NotImplementedError(f"compiled code needs {', '.join(missing)}, which only its compiler has")
    return Code(result.fndesc.llvm_func_name, library.serialize_using_object_code()[2][0])


# ---- conversions: numba has no bfloat16 or float16, so both travel as their 16 bits -------------


@helper
def up_bf16(x):  # type: ignore[no-untyped-def]
    """bfloat16 bits → float32."""
    return u32(u32(x) << u32(16)).view(np.float32)


@helper
def down_bf16(x):  # type: ignore[no-untyped-def]
    """float32 → bfloat16 bits, round to nearest even; NaN stays NaN."""
    b = f32(x).view(np.uint32)
    rounded = u32(u32(b + u32(0x7FFF) + u32(u32(b >> u32(16)) & u32(1))) >> u32(16))
    is_nan = u32(b & u32(0x7FFFFFFF)) > u32(0x7F800000)
    return u16(u32(0x7FC0) if is_nan else rounded)


@helper
def up_f16(x):  # type: ignore[no-untyped-def]
    """float16 bits → float32, exactly (subnormals too: the multiplication normalises them)."""
    h = u32(x)
    magnitude = u32(u32(h & u32(0x7FFF)) << u32(13))
    scaled = magnitude.view(np.float32) * f32(5.192296858534828e33)  # 2**112 moves the exponent bias
    special = u32(magnitude | u32(0x7F800000)).view(np.float32)
    value = special if u32(h & u32(0x7C00)) == u32(0x7C00) else scaled
    sign = u32(u32(h & u32(0x8000)) << u32(16))
    return u32(f32(value).view(np.uint32) | sign).view(np.float32)


@helper
def down_f16(x):  # type: ignore[no-untyped-def]
    """float32 → float16 bits, round to nearest even; overflow gives infinity, NaN stays NaN."""
    b = f32(x).view(np.uint32)
    sign = u32(u32(b >> u32(16)) & u32(0x8000))
    a = u32(b & u32(0x7FFFFFFF))
    # Normal range: re-bias the exponent and round away the 13 low bits.
    normal = u32(u32(a - u32(0x38000000) + u32(0xFFF) + u32(u32(a >> u32(13)) & u32(1))) >> u32(13))
    # Below 2**-14 the float32 adder rounds to multiples of 2**-24 when 0.5 is added.
    small = u32(f32(a.view(np.float32) + f32(0.5)).view(np.uint32) - u32(0x3F000000))
    finite = small if a < u32(0x38800000) else normal
    capped = finite if a < u32(0x47800000) else u32(0x7C00)
    return u16(sign | (u32(0x7E00) if a > u32(0x7F800000) else capped))


@helper
def round_bf16(x):  # type: ignore[no-untyped-def]
    """Round a float32 to the nearest bfloat16 value."""
    return up_bf16(down_bf16(x))


@helper
def round_f16(x):  # type: ignore[no-untyped-def]
    """Round a float32 to the nearest float16 value."""
    return up_f16(down_f16(x))


@helper
def round_f32(x):  # type: ignore[no-untyped-def]
    """Round to float32."""
    return f32(x)


@helper
def round_f64(x):  # type: ignore[no-untyped-def]
    """Widen to float64."""
    return f64(x)


# ---- random numbers: see `mergegraph.kernels.random` --------------------------------------------


@helper
def mixed(z):  # type: ignore[no-untyped-def]
    """The SplitMix64 finaliser."""
    z = u64((z ^ (z >> u64(30))) * u64(0xBF58476D1CE4E5B9))
    z = u64((z ^ (z >> u64(27))) * u64(0x94D049BB133111EB))
    return u64(z ^ (z >> u64(31)))


@helper
def state(high, low, e):  # type: ignore[no-untyped-def]
    """What element `e` of the stream ``(high, low)`` is mixed from; for the next one, add `GOLDEN`."""
    start = mixed(u64(u64(u64(high) << u64(24)) | u64(low)) + GOLDEN)
    return u64(start + u64(e + 1) * GOLDEN)


@helper
def bits24(state):  # type: ignore[no-untyped-def]
    """The 24 random bits that an element's state gives, as an int32."""
    return i32(mixed(state) >> u64(40))


@helper
def random24(high, low, e):  # type: ignore[no-untyped-def]
    """Element `e` of the stream ``(high, low)``: 24 random bits as an int32."""
    return bits24(state(high, low, e))


@helper
def uniform(high, low, e):  # type: ignore[no-untyped-def]
    """Element `e` of the stream ``(high, low)``: float32 in [0, 1)."""
    return f32(random24(high, low, e)) * f32(5.9604644775390625e-08)


@jit
def uniforms(high, low, out):  # type: ignore[no-untyped-def]
    """Fill `out` with the first elements of the stream ``(high, low)``."""
    for e in range(out.shape[0]):
        out[e] = uniform(high, low, e)


@helper
def normal(high, low, e):  # type: ignore[no-untyped-def]
    """Element `e` of the standard normal stream ``(high, low)``, in float64 (Box and Muller 1958)."""
    a = f64(uniform(high, low, 2 * e))
    b = f64(uniform(high, low, 2 * e + 1))
    return math.sqrt(-2.0 * math.log(1.0 - a)) * math.cos(2.0 * math.pi * b)


@jit
def checksum_words(words, first):  # type: ignore[no-untyped-def]
    """Sum over 64-bit words of a mix of word and position, modulo 2**64: order does not matter."""
    total = u64(0)
    for i in range(words.shape[0]):
        v = words[i] ^ (u64(i + first + 1) * u64(0x9E3779B97F4A7C15))
        v = (v ^ (v >> u64(32))) * u64(0xD6E8FEB86659FD93)
        total += v ^ (v >> u64(29))
    return total
