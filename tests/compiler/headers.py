"""Checkpoints that consist of headers alone: all that compiling needs, without a disk."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import prod
from typing import Any

from mergegraph.checkpoint.index import CheckpointIndex, TensorEntry
from mergegraph.checkpoint.names import natural_key
from mergegraph.compiler.inputs import Input, align_prefix
from mergegraph.compiler.merge import Compiled, compile_merge
from mergegraph.errors import PlanError, Problem
from mergegraph.methods import get_method
from mergegraph.plan.merge import parse_plan
from mergegraph.plan.values import ModelRef
from mergegraph.tensorspec import DType, TensorSpec
from mergegraph.testing import Llama

Shape = tuple[int, ...]
Tensors = Mapping[str, Shape | tuple[Shape, DType]]

LLAMA = Llama(layers=4, hidden=8, intermediate=12, heads=2, kv_heads=1, vocab=10)
TIED = Llama(layers=4, hidden=8, intermediate=12, heads=2, kv_heads=1, vocab=10, tied=True)
CONFIG = LLAMA.config("F32")


def index(name: str, tensors: Tensors, config: Mapping[str, Any] | None = None) -> CheckpointIndex:
    """A checkpoint of the given shapes (float32, or ``(shape, dtype)``)."""
    entries = {}
    begin = 0
    for key in sorted(tensors, key=natural_key):
        value = tensors[key]
        shape, dtype = value if len(value) == 2 and isinstance(value[1], DType) else (value, DType.F32)
        size = prod(shape) * dtype.bits // 8
        entries[key] = TensorEntry(_spec(shape, dtype), "model.safetensors", begin, begin + size)
        begin += size
    return CheckpointIndex(name, f"/{name}", entries, {}, CONFIG if config is None else config)


@lru_cache(maxsize=1024)
def _spec(shape: Shape, dtype: DType) -> TensorSpec:
    """Equal specs are one object, as those of real headers are."""
    return TensorSpec(shape, dtype)


def llama(name: str, shape: Llama = LLAMA, **changes: Any) -> CheckpointIndex:
    """A Llama-shaped checkpoint; `changes` are to its config, None removes a key."""
    config = {**shape.config("F32"), **changes}
    return index(name, shape.shapes(), {k: v for k, v in config.items() if v is not None})


def changed(model: CheckpointIndex, **edits: Shape | tuple[Shape, DType] | None) -> CheckpointIndex:
    """The same checkpoint with tensors added, altered or (None) removed; ``__`` in a name is a dot."""
    tensors: dict[str, Any] = {n: (e.spec.shape, e.spec.dtype) for n, e in model.tensors.items()}
    for spelled, value in edits.items():
        name = spelled.replace("__", ".")
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    return index(model.name, tensors, model.config)


def renamed(model: CheckpointIndex, old: str, new: str) -> CheckpointIndex:
    """The same checkpoint with the leading `old` of its tensor names replaced."""
    names = {n: new + n.removeprefix(old) if n.startswith(old) else n for n in model.tensors}
    return index(
        model.name, {names[n]: (e.spec.shape, e.spec.dtype) for n, e in model.tensors.items()}, model.config
    )


def compiled(text: str, *models: CheckpointIndex) -> Compiled:
    """Compile plan `text` over checkpoints that it names by their names."""
    plan = parse_plan(text, "p.yml")
    known = {model.name: model for model in models}
    opened: dict[ModelRef, CheckpointIndex] = {ref: known[str(ref)] for ref in plan.referenced_models()}
    donor = opened[plan.base_model or plan.referenced_models()[0]]
    inputs = {
        ref: Input(ref, model.name, model, align_prefix(model.tensors, donor.tensors))
        for ref, model in opened.items()
    }
    return compile_merge(plan, get_method(plan.method), inputs)


def problems(text: str, *models: CheckpointIndex) -> tuple[Problem, ...]:
    """What is wrong with plan `text`; nothing if it compiles."""
    try:
        compiled(text, *models)
    except PlanError as error:
        return error.problems
    return ()


def sources(result: Compiled, tensor: str) -> list[tuple[str, str]]:
    """(model, its tensor) of everything that output `tensor` reads."""
    return [(s.checkpoint, s.tensor) for part in result.graph.outputs[tensor].parts for s in part.sources]


def models_of(result: Compiled, tensor: str) -> list[str]:
    """The models that output `tensor` is made from."""
    return [model for model, _ in sources(result, tensor)]


def linear(*names: str, head: str = "", tail: str = "") -> str:
    """A plan that averages the named models."""
    listed = "".join(f"  - model: {name}\n    parameters: {{weight: 1}}\n" for name in names)
    return f"merge_method: linear\n{head}models:\n{listed}{tail}"


def based(method: str, base: str, *names: str, tail: str = "") -> str:
    """A plan of a method with a base model; the parameters are those that any of them needs."""
    at = method in ("slerp", "nearswap")
    shared = "parameters: {t: 0.5}\n" if at else "parameters: {weight: 1, density: 0.5}\n"
    listed = "".join(f"  - model: {name}\n" for name in names)
    return f"merge_method: {method}\nbase_model: {base}\nmodels:\n{listed}{shared}{tail}"


def stacked(*parts: tuple[str, int, int]) -> str:
    """A passthrough plan of layer ranges laid end to end."""
    slices = "".join(f"  - sources: [{{model: {m}, layer_range: [{a}, {b}]}}]\n" for m, a, b in parts)
    return f"merge_method: passthrough\nslices:\n{slices}"
