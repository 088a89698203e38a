"""What operators and functions of numbers do, by numba's rules.

Integers are computed in 64 bits, signed if one of them is; a float32 with an integer gives a float64.
Float arithmetic is never contracted, reassociated or otherwise relaxed.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from mergegraph.kernels.lowering.kinds import BOOL, F32, F64, I64, U64, Number, Scalar, Unsupported, integer

_FLOATS = {ast.Add: "fadd", ast.Sub: "fsub", ast.Mult: "fmul", ast.Div: "fdiv"}
_INTEGERS = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.BitAnd: "and_",
    ast.BitOr: "or_",
    ast.BitXor: "xor",
}
_SIGNS = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_FOLDED: dict[type, Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
}


def convert(builder: Any, value: Number, kind: Scalar) -> Number:
    """`value` as a number of another type, as an assignment or a call of the type makes it."""
    own, x = value.kind, value.llvm
    if own == kind:
        return value
    if value.constant is not None and not kind.real:
        return integer(int(value.constant != 0) if kind == BOOL else value.constant, kind)
    if own.real and kind.real:
        return Number(kind, (builder.fpext if kind.bits > own.bits else builder.fptrunc)(x, kind.llvm))
    if own.real:
        if kind == BOOL:
            return Number(BOOL, builder.fcmp_unordered("!=", x, own.llvm(0.0)))
        return Number(kind, (builder.fptosi if kind.signed else builder.fptoui)(x, kind.llvm))
    if kind.real:
        return Number(kind, (builder.sitofp if own.signed else builder.uitofp)(x, kind.llvm))
    if kind == BOOL:
        return Number(BOOL, builder.icmp_unsigned("!=", x, own.llvm(0)))
    if kind.bits == own.bits:
        return Number(kind, x)
    if kind.bits < own.bits and value.made is not None:
        # Narrow from the start, or LLVM would not see that a loop which does this adds up a reduction.
        name, a, b = value.made
        a, b = convert(builder, a, kind), convert(builder, b, kind)
        return Number(kind, getattr(builder, name)(a.llvm, b.llvm))
    if kind.bits < own.bits:
        return Number(kind, builder.trunc(x, kind.llvm))
    return Number(kind, (builder.sext if own.signed else builder.zext)(x, kind.llvm))


def truth(builder: Any, value: Number) -> Any:
    """Whether a number counts as true."""
    return convert(builder, value, BOOL).llvm


def common(a: Scalar, b: Scalar) -> Scalar:
    """The type of a value that is one of two."""
    if a == b:
        return a
    if F64 in (a, b) and BOOL not in (a, b):
        return F64
    if a.real == b.real and a.signed == b.signed and BOOL not in (a, b):
        return a if a.bits > b.bits else b
    raise Unsupported(f"either {a.name} or {b.name}")


def binary(builder: Any, op: ast.operator, a: Number, b: Number) -> Number:
    """``a op b``."""
    kind = type(op)
    if a.constant is not None and b.constant is not None and kind in _FOLDED and a.kind == b.kind == I64:
        result = _FOLDED[kind](a.constant, b.constant)
        if integer(result).constant != result:
            raise Unsupported("a constant that is too large")
        return integer(result)
    if a.kind == b.kind == BOOL and kind in (ast.BitAnd, ast.BitOr, ast.BitXor):
        return Number(BOOL, getattr(builder, _INTEGERS[kind])(a.llvm, b.llvm))
    if kind is ast.Div and not (a.kind.real or b.kind.real):
        a, b = convert(builder, a, F64), convert(builder, b, F64)
    if a.kind.real or b.kind.real:
        if kind not in _FLOATS:
            raise Unsupported(f"{kind.__name__} of floats")
        wide = _float(a.kind, b.kind)
        a, b = convert(builder, a, wide), convert(builder, b, wide)
        return Number(wide, getattr(builder, _FLOATS[kind])(a.llvm, b.llvm))
    if kind in (ast.LShift, ast.RShift):
        return _shifted(builder, kind, a, b)
    wide = I64 if a.kind.signed or b.kind.signed or BOOL in (a.kind, b.kind) else U64
    x, y = convert(builder, a, wide), convert(builder, b, wide)
    if kind in (ast.FloorDiv, ast.Mod):
        return _divided(builder, kind, x, y)
    if kind not in _INTEGERS:
        raise Unsupported(kind.__name__)
    name = _INTEGERS[kind]
    return Number(wide, getattr(builder, name)(x.llvm, y.llvm), made=(name, a, b))


def _float(a: Scalar, b: Scalar) -> Scalar:
    for kind in (a, b):
        if not kind.real and kind.bits < 32:
            raise Unsupported(f"a float with {kind.name}")
    return F32 if a == b == F32 else F64


def _shifted(builder: Any, kind: type, a: Number, b: Number) -> Number:
    wide = I64 if a.kind.signed else U64
    if a.kind == BOOL or (a.constant is not None and b.constant is not None and b.constant > 62):
        raise Unsupported("a shift of this")
    x, by = convert(builder, a, wide).llvm, convert(builder, b, wide).llvm
    if kind is ast.LShift:
        return Number(wide, builder.shl(x, by))
    return Number(wide, (builder.ashr if wide.signed else builder.lshr)(x, by))


def _divided(builder: Any, kind: type, a: Number, b: Number) -> Number:
    """Rounded down, as Python does; of a divisor that is a constant power of two, without dividing."""
    quotient = kind is ast.FloorDiv
    if b.constant is not None and b.constant > 0 and b.constant & (b.constant - 1) == 0:
        if not quotient:
            return Number(a.kind, builder.and_(a.llvm, a.kind.llvm(b.constant - 1)))
        by = a.kind.llvm(b.constant.bit_length() - 1)
        return Number(a.kind, (builder.ashr if a.kind.signed else builder.lshr)(a.llvm, by))
    # What has no quotient is 0, as numpy has it; the processor would end the process.
    zero, one = a.kind.llvm(0), a.kind.llvm(1)
    none = builder.icmp_signed("==", b.llvm, zero)
    if a.kind.signed:
        least = builder.icmp_signed("==", a.llvm, a.kind.llvm(-(1 << 63)))
        none = builder.or_(none, builder.and_(least, builder.icmp_signed("==", b.llvm, a.kind.llvm(-1))))
    by = builder.select(none, one, b.llvm)
    if not a.kind.signed:
        found = (builder.udiv if quotient else builder.urem)(a.llvm, by)
        return Number(a.kind, builder.select(none, zero, found))
    rest = builder.srem(a.llvm, by)
    apart = builder.icmp_signed("<", builder.xor(rest, by), zero)
    below = builder.and_(builder.icmp_signed("!=", rest, zero), apart)
    if quotient:
        found = builder.sub(builder.sdiv(a.llvm, by), builder.zext(below, a.kind.llvm))
    else:
        found = builder.add(rest, builder.select(below, by, zero))
    return Number(a.kind, builder.select(none, zero, found))


def unary(builder: Any, op: ast.unaryop, value: Number) -> Number:
    """``op value``."""
    if isinstance(op, ast.Not):
        return Number(BOOL, builder.not_(truth(builder, value)))
    if not isinstance(op, ast.USub) or not value.kind.signed:
        raise Unsupported(f"{type(op).__name__} of {value.kind.name}")
    if value.kind.real:
        return Number(value.kind, builder.fneg(value.llvm))
    if value.constant is not None:
        return integer(-value.constant)
    return Number(I64, builder.neg(convert(builder, value, I64).llvm))


def compare(builder: Any, op: ast.cmpop, a: Number, b: Number) -> Any:
    """``a op b`` of two numbers, as LLVM's truth value."""
    sign = _SIGNS.get(type(op))
    if sign is None:
        raise Unsupported(type(op).__name__)
    if a.kind.real or b.kind.real:
        wide = _float(a.kind, b.kind)
        x, y = convert(builder, a, wide).llvm, convert(builder, b, wide).llvm
        return (builder.fcmp_unordered if sign == "!=" else builder.fcmp_ordered)(sign, x, y)
    if a.kind != b.kind:
        # Of a wide unsigned and a signed number, a constant that is not negative is both.
        signed = a.kind.signed or b.kind.signed
        if signed and U64 in (a.kind, b.kind):
            signed = False
            for x in (a, b):
                if x.kind.signed and (x.constant is None or x.constant < 0):
                    raise Unsupported(f"a comparison of {a.kind.name} with {b.kind.name}")
        a, b = (convert(builder, x, I64 if signed else U64) for x in (a, b))
    return (builder.icmp_signed if a.kind.signed else builder.icmp_unsigned)(sign, a.llvm, b.llvm)


def smallest(builder: Any, values: list[Number], op: ast.cmpop) -> Number:
    """``min`` (`op` is <) or ``max`` (>): what is first of several, and not a number only if the first is."""
    found = values[0]
    for value in values[1:]:
        kind = common(found.kind, value.kind)
        found, value = convert(builder, found, kind), convert(builder, value, kind)
        if found.constant is not None and value.constant is not None:
            raise Unsupported("the least of constants")
        found = Number(kind, builder.select(compare(builder, op, value, found), value.llvm, found.llvm))
    return found


def magnitude(builder: Any, value: Number) -> Number:
    """``abs``."""
    if not value.kind.real:
        raise Unsupported(f"abs of {value.kind.name}")
    return intrinsic(builder, "fabs", value)


def intrinsic(builder: Any, name: str, value: Number) -> Number:
    """One of LLVM's own functions of a float; integers are float64 to it."""
    if not value.kind.real and value.kind.bits < 32:
        raise Unsupported(f"{name} of {value.kind.name}")
    x = value if value.kind.real else convert(builder, value, F64)
    function = external(builder, f"llvm.{name}.f{x.kind.bits}", x.kind.llvm, [x.kind.llvm])
    return Number(x.kind, builder.call(function, [x.llvm]))


def is_finite(builder: Any, value: Number) -> Number:
    """``numpy.isfinite`` of a float."""
    if not value.kind.real:
        raise Unsupported(f"isfinite of {value.kind.name}")
    size = intrinsic(builder, "fabs", value)
    return Number(BOOL, builder.fcmp_ordered("<", size.llvm, value.kind.llvm(float("inf"))))


def reinterpreted(builder: Any, value: Number, kind: Scalar) -> Number:
    """The bits of a number as one of another type of the same size."""
    if value.kind.bits != kind.bits:
        raise Unsupported(f"{value.kind.name} seen as {kind.name}")
    if value.kind.real == kind.real:
        return Number(kind, value.llvm)
    return Number(kind, builder.bitcast(value.llvm, kind.llvm))


def external(builder: Any, name: str, result: Any, takes: list[Any]) -> Any:
    """A function from outside of the module."""
    found = builder.module.globals.get(name)
    return found or ir.Function(builder.module, ir.FunctionType(result, takes), name)
