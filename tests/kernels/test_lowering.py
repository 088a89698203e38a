"""Lowered code does what numba's does, bit by bit; what is not known is refused, and numba compiles it."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pytest

from mergegraph.kernels import fused
from mergegraph.kernels.lowering.kinds import Unsupported
from mergegraph.kernels.lowering.machine import object_code
from mergegraph.kernels.native import Argument, Native

TAKES = (Argument(), Argument("float64", 1), Argument("float64", 1))
NASTY = [0.0, -0.0, 1.5, -2.5, 3.0, -7.0, 1e-310, 5e300, np.inf, -np.inf, np.nan]


def text(body: str, *, before: str = "") -> str:
    header = (
        "import math\nimport numpy as np\n"
        "from mergegraph.kernels.fused import f32, f64, helper, i32, i64, jit, u8, u16, u32, u64\n"
    )
    run = "def run(n, x, out):\n" + textwrap.indent(textwrap.dedent(body).strip(), "    ") + "\n"
    return header + textwrap.dedent(before) + "\n" + run


def both(source: str, x: list[float] | None = None, n: int | None = None) -> tuple[Any, Any]:
    """What lowered code returns and writes, and what numba's does."""
    found = []
    for compiled in (object_code, fused.object_code):
        numbers, out = np.array(NASTY if x is None else x, dtype=np.float64), np.full(32, -1.0)
        # Numba cannot keep what it made of a text, and helpers are not kept.
        code = compiled(source if compiled is object_code else source.replace("@jit", "@helper"), TAKES)
        result = Native(code, TAKES)(n or len(numbers), numbers, out)
        found.append((result, out.tobytes(), numbers.tobytes()))
    return found[0], found[1]


EXPRESSIONS = {
    "rounding down": "(i - 5) // 3 + 10 * ((i - 5) % 3) + 100 * ((i - 5) // (2 - i * 2 + 1))",
    "division of integers by zero": "5 // (i - 3) + 10 * (7 % (i - 3)) + 100 * (5 // u64(i))",
    "the least integer": "(i64(-9223372036854775807) - i) // -1",
    "truth of constants": "(1 if 2 else 0) + (3 if not 4 else 5)",
    "arithmetic of comparisons": "(x[i] > 5.0) - (x[i] < 1.0) + ((x[i] > 1.0) + u8(3) - u8(5))",
    "powers of two": "(i - 5) // 4 + 100 * ((i - 5) % 4) + 1000 * (-(-i // 8) * 8)",
    "division": "(i - 5) / 4 + x[i] / (i + 1)",
    "division by zero": "x[i] / (x[i] - x[i])",
    "widths": "i32(i32(2147483647) + i32(i)) + u32(u32(4294967290) + u32(i)) + i64(u8(250 + i))",
    "unsigned": "f64(u64(u64(i) * u64(0x9E3779B97F4A7C15)) >> u64(40)) + (u16(i) << u16(3))",
    "arithmetic shift": "(i - 5) >> 1",
    "bits": "(i & 6) | (u8(i) ^ u8(3)) * 16",
    "float32": "f64(f32(x[i]) * f32(1.1) + f32(0.3))",
    "float32 and float64": "f32(x[i]) * 1.1 + 0.3",
    "integers and floats": "f32(0.1) * i + x[i] * i32(3)",
    "least and most": "min(1.0, max(-1.0, x[i])) + max(x[i], 2.0) + min(i, 4) + max(i, 3, 5)",
    "comparisons": "(x[i] < 1.5) + 2 * (x[i] != x[i]) + 4 * (x[i] == 0.0) + 8 * (i >= 3) + 16 * (u8(i) > 2)",
    "chains": "1 if 2 < i <= 5 != 4 else 0",
    "and, or": "1 if (i > 2 and x[i - 3] > 0.0) or not i else 2",
    "choice": "x[i] if i % 2 else -x[i]",
    "choice of elements": "x[i - 1] if i > 0 else x[len(x) - 1]",
    "choice of widths": "(i32(i) if i > 3 else i * 3) + (f32(x[i]) if i > 4 else x[i])",
    "functions": "math.sqrt(abs(x[i])) + np.ceil(x[i]) + math.cos(min(i, 3)) + math.sin(0.5 * i)",
    "logarithm": "math.log(abs(x[i]) + 1.0) + math.acos(1.0 / (i + 1)) + math.pi",
    "finite": "1 if np.isfinite(x[i]) else np.nan",
    "views": "f64(x[i]).view(np.int64) & 0xFFFF",
    "views of arrays": "x.view(np.uint8)[8 * i + 7] + len(x.view(np.uint16)) + x.view(np.uint16).itemsize",
    "types": "f64(x.dtype.type(i)) + x.shape[0]",
    "tuples": "(i, x[i], 3)[1] + len((1, 2))",
    "slices": "len(x[2:i]) + 100 * len(x[i:]) + 10000 * len(x[: 2 * i])",
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_expressions_follow_the_rules_of_numba(name: str) -> None:
    mine, theirs = both(text(f"for i in range(n):\n    out[i] = {EXPRESSIONS[name]}\nreturn n"))
    assert mine == theirs


STATEMENTS = {
    "loops": """
        total = 0
        for i in range(3, n, 2):
            if i == 7:
                continue
            for j in range(i):
                if j > 4:
                    break
                total += i * j
        while total > 100:
            total -= 30
        return total
    """,
    "elements of an array": """
        total = 0.0
        for value in x:
            if value == value:
                total = max(total, min(value, 100.0))
        return i64(total)
    """,
    "filling": """
        out[:] = 0
        out[2:5] = 3
        out[4:], k = 7.5, 2
        out[k] += 1
        return k
    """,
    "scratch": """
        held, numbers = np.empty(n, np.int64), np.arange(n)
        few = np.zeros(5, np.uint8)
        for i in range(n):
            held[i] = numbers[n - 1 - i] * 2
        held, numbers = numbers, held
        square = np.zeros((n, 3))
        square[n - 1, 2] = 5
        row = square[n - 1]
        square[0] = row
        for i in range(n):
            out[i] = held[i] + 100 * numbers[i] + few[i % 5] + square[0, 2] + square[n - 1][0]
        return len(few) + square.shape[0]
    """,
    "a variable that becomes wider": """
        top = u32(0)
        for i in range(n):
            b = u32(i) & u32(0x7FFFFFFF)
            top = b if b > top else top
        return i64(top)
    """,
    "a name used for two types one after the other": """
        line = x.view(np.uint16)
        total = i64(line[3])
        line = x[1:]
        out[0] = line[1]
        return total
    """,
    "early return": """
        for i in range(n):
            if x[i] > 2.0:
                return i
        return -1
    """,
    "functions": """
        out[0], out[1] = both_of((f32(1.5), x[1]), n)
        fill(out[2:], n)
        fill(out[2:], n)
        change(out, (3, 4))
        return clipped(n) + clipped(-n) + nothing(n)
    """,
}
STATEMENTS["a place that is computed once"] = """
    out[i64(change(out, (3, 4)))] += 5
    return 0
"""
BEFORE = """
@helper
def both_of(pair, n):
    first, second = pair
    n += 1
    return first * n, second

@jit
def fill(target, n):
    held = np.zeros(n)
    for i in range(min(n, len(target))):
        held[i] = i
        target[i] += held[i]

@helper
def change(target, numbers):
    for i in range(len(numbers)):
        target[20 + i] += numbers[i]
    return 7

@jit
def clipped(n):
    if n < 0:
        return 0
    return n

@jit
def nothing(n):
    while True:
        n -= 1
        if n < 0:
            return n
"""


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements_do_what_numba_makes_of_them(name: str) -> None:
    source = text(STATEMENTS[name], before=BEFORE)
    for n in (11, 5):
        mine, theirs = both(source, n=n)
        assert mine == theirs


def test_an_empty_array_is_no_loop_at_all() -> None:
    mine, theirs = both(text(STATEMENTS["elements of an array"]), x=[])
    assert mine == theirs


@pytest.mark.parametrize("statement", ["total = used(x, n)", "total = 0\nuses(x, n)"])
def test_memory_that_is_not_there_is_an_error(statement: str) -> None:
    before = """
        @helper
        def used(x, n):
            held = np.zeros(n)
            for i in range(min(n, 99)):
                held[i64(x[i % 3])] += i
            return held[1]

        @jit
        def uses(x, n):
            x[0] += used(x, n)
    """
    function = Native(object_code(text(f"{statement}\nreturn i64(total)", before=before), TAKES), TAKES)
    x = np.array([0.0, 1.0, 2.0])
    function(7, x.copy(), x)
    with pytest.raises(MemoryError):
        function(1 << 58, x, x)


REFUSED = {
    "an unknown function": "return len(sorted((2, 1)))",
    "an unknown statement": "with n:\n    pass\nreturn 0",
    "an unknown expression": "return len([i for i in range(n)])",
    "what is not compiled": "return compiler_id()",
    "a sum of strings": "return 'a'",
    "an integer compared across signs": "return 1 if u64(n) < n else 0",
    "a variable of two types": "k = 1\nfor i in range(n):\n    k = 2.5\nreturn i64(k)",
    "a type that depends on the way": "if n > 3:\n    v = 1.5\nelse:\n    v = f32(2.5)\nreturn i64(v)",
    "an index from the end": "return i64(x[-1])",
    "a step backwards": "total = 0\nfor i in range(n, 0, -1):\n    total += i\nreturn total",
    "an allocation in a loop": "for i in range(n):\n    held = np.zeros(n)\nreturn 0",
    "an argument by name": "return i64(x=n)",
    "one of several values": "out[0] = n and 5\nreturn 0",
    "integers of both kinds": "k = u8(n)\nfor i in range(n):\n    k = u32(i)\nk = -1\nreturn k",
    "an integer that becomes a float": "k = i32(n)\nk = i64(n)\nk = 2.75\nreturn i64(k)",
    "an array kept over rounds": "for i in range(2):\n    a = np.zeros(3)\n    b = a\nreturn i64(b[0])",
    "a counter that had a value": "p, i = (1.0, 2.0), 5\nfor i in range(2):\n    out[i] = p[i]\nreturn n",
    "a counter that is used later": "p = (1.0, 2.0)\nfor i in range(2):\n    out[i] = p[i]\nreturn i",
    "a counter of another type": "i = 2.5\nfor i in range(n):\n    pass\nreturn i64(i)",
    "else after while": "while n < 0:\n    n += 1\nelse:\n    n = 100\nreturn n",
    "a range of unsigned integers": "t = 0\nfor i in range(u64(3)):\n    t += 1\nreturn t",
    "a constant that is too large": "return 9223372036854775807 + 1",
    "a shift out of the word": "return (1 << 63) + n",
    "a number of no size": "return i64(f64(99999999999999999999999))",
    "a root of a small integer": "out[0] = np.sqrt(u8(n))\nreturn 0",
    "calls in a row of comparisons": "return 1 if 50 < n < abs(x[n + 9]) else 0",
    "arithmetic of a module": "out[0] = TENTH\nreturn 0",
    "a name with two meanings": "return TWICE",
    "a name of module and function": "if n > 9:\n    LATE = 1.5\nelse:\n    LATE = f32(2)\nreturn i64(LATE)",
    "a function that calls itself": "return i64(down(n))",
    "a function that may return nothing": "return i64(maybe(n))",
    "a type that is chosen": "k = f32\nif n > 3:\n    k = f64\nreturn i64(k(0.1) * 1e9)",
    "which of a tuple": "return (1, 2)[n]",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_or_would_be_different_is_refused(name: str) -> None:
    before = """
        from mergegraph.kernels.native import compiler_id
        TENTH = f32(0.1) * 3
        TWICE, LATE = 1, 9
        TWICE += 1

        @helper
        def down(n):
            return n if n < 1 else down(n - 1)

        @helper
        def maybe(n):
            if n > 3:
                return n
    """
    source = text(REFUSED[name], before=before)
    with pytest.raises(Unsupported):
        object_code(source, TAKES)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("fused_folds", "fold_gram(block, n, out)"),
        ("fused_folds", "fold_l1(block, n, out)"),
        ("fused_folds", "fold_squares(block, n, out)"),
        ("fused_folds", "fold_nonzero(block, n, out)"),
        ("fused_folds", "fold_overlap(block, n, out, 0.25)"),
        ("fused_folds", "fold_columns(block, n, out, 37, 11)"),
        ("fused_rows", "row_arc(block, n, out, 0.3)"),
        ("fused_rows", "row_divergence(block, n, out)"),
        ("fused_rows", "row_stock(block, n, out)"),
        ("fused_ranks", "row_drop{bits}(block, n, line, 5, 0.2, 0.6, 3, 9)"),
        ("fused_select", "fold_select{bits}(block, n, out, 0, {bits} - 9, {most}, 1)"),
        ("fused_select", "fold_magnitudes{bits}(block, n, words, 2)"),
    ],
)
@pytest.mark.parametrize("n", [1, 15, 64, 1003])
def test_kernels_give_the_same_bits(module: str, call: str, kind: str, n: int) -> None:
    """Rows of numbers, some of them equal, zero, huge or not finite."""
    bits = kind[-2:]
    call = call.format(bits=bits, most=0x7FFFFFFF if bits == "32" else 0x7FFFFFFFFFFFFFFF)
    source = f"from mergegraph.kernels.{module} import {call.partition('(')[0]}\n"
    source += f"def run(n, block, out, line, words):\n    {call}\n    return n\n"
    takes = (
        Argument(),
        Argument(kind, 2),
        Argument("float64", 1),
        Argument(kind, 1),
        Argument(f"int{bits}", 1),
    )
    numbers = np.random.default_rng(n).standard_normal((2 if "arc" in call else 5, n)).astype(kind)
    numbers[:, ::7] = numbers[0, 0]
    numbers[:, 3::11] = 0
    numbers[:, 500:501] = np.inf
    before = [numbers, np.full(1100, 0.5), np.full(n, -1, kind), np.full(n + 2, -1, f"int{bits}")]
    found = []
    for compiled in (object_code, fused.object_code):
        after = [array.copy() for array in before]
        Native(compiled(source, takes), takes)(n, *after)
        found.append([array.tobytes() for array in after])
    assert found[0] == found[1]
    assert found[0] != [array.tobytes() for array in before]
