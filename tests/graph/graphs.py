"""Small graphs built by hand: nothing here depends on the instruction set or on the compiler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mergegraph.graph.graph import Graph, Output, Piece, SourceTensor
from mergegraph.graph.node import Locality, Node, Op, Origin, constant, node
from mergegraph.tensorspec import DType, Space, TensorSpec


def _load(_: Sequence[TensorSpec], attrs: dict[str, Any]) -> TensorSpec:
    return TensorSpec(attrs["shape"], DType[attrs["dtype"]])


def _wide(specs: Sequence[TensorSpec], _: dict[str, Any]) -> TensorSpec:
    return TensorSpec(specs[0].shape, DType.F32, specs[0].space)


def _cast(specs: Sequence[TensorSpec], attrs: dict[str, Any]) -> TensorSpec:
    return TensorSpec(specs[0].shape, DType[attrs["dtype"]])


def _gram(specs: Sequence[TensorSpec], _: dict[str, Any]) -> TensorSpec:
    return TensorSpec((len(specs), len(specs)), DType.F64, Space.STAT)


def _pair(_: Sequence[TensorSpec], __: dict[str, Any]) -> TensorSpec:
    return TensorSpec((2,), DType.F64, Space.STAT)


LOAD = Op("load", Locality.SOURCE, _load)
SUM = Op("weighted_sum", Locality.ELEMENTWISE, _wide)
CAST = Op("cast", Locality.ELEMENTWISE, _cast)
GRAM = Op("gram", Locality.REDUCE, _gram)
SLERP = Op("slerp", Locality.SMALL, _pair)
TRIM = Op("trim", Locality.ELEMENTWISE, _wide)


def line(number: int) -> Origin:
    return Origin("plan.yml", number)


def load(slot: int, shape: tuple[int, ...], **attrs: Any) -> Node:
    return node(LOAD, slot=slot, dtype="BF16", shape=shape, **attrs)


def linear(shape: tuple[int, ...], weights: tuple[float, ...] = (0.4, 0.6), at: int = 7) -> Node:
    """cast(weighted_sum(load 0, load 1, …; weights))"""
    loads = [load(i, shape) for i in range(len(weights))]
    return node(CAST, node(SUM, *loads, constant(weights, line(at))), dtype="BF16")


def slerp(shape: tuple[int, ...], t: float, at: int = 9) -> Node:
    """weighted_sum(a, b; slerp(gram(a, b); t)) rounded to bfloat16"""
    a, b = load(0, shape), load(1, shape)
    weights = node(SLERP, node(GRAM, a, b), constant(t, line(at)))
    return node(CAST, node(SUM, a, b, weights), dtype="BF16")


def output(expression: Node, *sources: tuple[str, str]) -> Output:
    bound = tuple(SourceTensor(*source) for source in sources)
    return Output(expression.spec, (Piece(expression, bound),))


SHAPES: dict[str, tuple[int, ...]] = {
    "input_layernorm.weight": (64,),
    "mlp.down_proj.weight": (64, 128),
    "mlp.gate_proj.weight": (128, 64),
    "mlp.up_proj.weight": (128, 64),
    "self_attn.k_proj.weight": (16, 64),
    "self_attn.o_proj.weight": (64, 64),
    "self_attn.q_proj.weight": (64, 64),
    "self_attn.v_proj.weight": (16, 64),
}
LABELS = {"key-a": "llama_a", "key-b": "llama_b"}


def llama(layers: int = 4, *, gradient: bool = False, vocabulary: int = 256) -> Graph:
    """embed, `layers` like layers, norm, head: two models, slerp in the layers, a copied embedding."""
    outputs: dict[str, Output] = {}

    def both(name: str, expression: Node) -> None:
        outputs[name] = output(expression, ("key-a", name), ("key-b", name))

    both("lm_head.weight", linear((vocabulary, 64)))
    outputs["model.embed_tokens.weight"] = output(
        load(0, (vocabulary, 64)), ("key-a", "model.embed_tokens.weight")
    )
    for i in range(layers):
        t = i / max(layers - 1, 1) if gradient else 0.5
        for suffix, shape in SHAPES.items():
            both(f"model.layers.{i}.{suffix}", slerp(shape, t))
    both("model.norm.weight", linear((64,)))
    return Graph(outputs)


def stacked(blocks: Sequence[tuple[str, int, int]]) -> Graph:
    """Layer slices one above the other, each ``(model key, first, end)``, copied."""
    outputs: dict[str, Output] = {}
    position = 0
    for key, first, end in blocks:
        for index in range(first, end):
            for suffix, shape in SHAPES.items():
                source = (key, f"model.layers.{index}.{suffix}")
                outputs[f"model.layers.{position}.{suffix}"] = output(load(0, shape), source)
            position += 1
    return Graph(outputs)
