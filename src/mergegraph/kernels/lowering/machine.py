"""From the text of a module to an object file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.binding as llvm

from mergegraph.kernels.lowering import arithmetic
from mergegraph.kernels.lowering.kinds import BYTES, I64, SCALARS, Array, Number, Operand, Unsupported
from mergegraph.kernels.lowering.scopes import Hints, Retry, Scope
from mergegraph.kernels.lowering.sources import Known, parsed
from mergegraph.kernels.lowering.statements import Program, Statements
from mergegraph.kernels.native import Argument, Code, target_machine, undefined

_WORD = I64.llvm
_SYMBOL = "run"


def object_code(source: str, arguments: Sequence[Argument]) -> Code:
    """Compile the function ``run`` of a module's text, of integers and contiguous arrays, for `Native`.

    Raises:
        Unsupported: something in it is not known here. `mergegraph.kernels.fused.object_code` may know it.
    """
    module = parsed(source, "generated")
    hints: Hints = {}
    while True:
        try:
            program = Program(hints)
            _entry(program, Known(module, function=module.functions["run"]), arguments)
            break
        except Retry:
            continue
    return _compiled(str(program.module))


def _entry(program: Program, run: Known, arguments: Sequence[Argument]) -> None:
    """The function that `Native` calls: of where to put the result, a pointer, the table of arguments."""
    pointers = [_WORD.as_pointer(), BYTES, _WORD.as_pointer()]
    frame = program.frame(_SYMBOL, pointers)
    found, _, table = frame.function.args
    operands = _operands(frame.builder, table, arguments)
    scope = Scope(run.module, _SYMBOL, frame, program.hints)
    result = Statements(program, scope).expanded(run, operands)
    if not isinstance(result, Number):
        raise Unsupported("a result that is no number")
    frame.builder.store(arithmetic.convert(frame.builder, result, I64).llvm, found)
    frame.finish()


def _operands(builder: Any, table: Any, arguments: Sequence[Argument]) -> list[Operand]:
    """What the table holds: of each integer its value, of each array its address and shape."""
    words = 0

    def word() -> Any:
        nonlocal words
        words += 1
        return builder.load(builder.gep(table, [_WORD(words - 1)]))

    found: list[Operand] = []
    for argument in arguments:
        if argument.dims is None:
            found.append(Number(I64, word()))
            continue
        kind = SCALARS[argument.dtype]
        data = builder.inttoptr(word(), kind.llvm.as_pointer())
        found.append(Array(kind, data, tuple(word() for _ in range(argument.dims))))
    return found


def _compiled(text: str) -> Code:
    """Optimise a module of LLVM and make machine code of it."""
    machine = target_machine()
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    options.loop_interleaving = True
    options.slp_vectorization = False
    options.loop_unrolling = False  # takes half of the time, and what it gives does not show
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    missing = undefined(
        [f.name for f in module.functions if f.is_declaration and not f.name.startswith("llvm.")]
    )
    if missing:
        raise Unsupported(f"a call of {', '.join(missing)}")
    return Code(_SYMBOL, machine.emit_object(module))
