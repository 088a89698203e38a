"""The text of an expression, golden."""

from __future__ import annotations

from mergegraph.graph.graph import Output, Piece, SourceTensor
from mergegraph.graph.node import constant, node
from mergegraph.graph.text import explain_text, expression
from mergegraph.tensorspec import DType, TensorSpec
from tests.graph.graphs import CAST, LABELS, SUM, TRIM, line, linear, load, output, slerp

NAME = "model.layers.0.mlp.up_proj.weight"


def text_of(*lines: str) -> str:
    return "\n".join(lines)


def test_a_linear_merge_reads_from_loads_to_result() -> None:
    found = explain_text(NAME, output(linear((8, 4)), ("key-a", NAME), ("key-b", NAME)), LABELS)
    assert found == text_of(
        "model.layers.0.mlp.up_proj.weight = bfloat16[8, 4], merged",
        "%0 = load llama_a:model.layers.0.mlp.up_proj.weight    bfloat16[8, 4]",
        "%1 = load llama_b:model.layers.0.mlp.up_proj.weight    bfloat16[8, 4]",
        "%2 = weighted_sum(%0, %1; 0.4, 0.6)                    float32[8, 4]    # plan.yml:7",
        "%3 = cast(%2)                                          bfloat16[8, 4]",
        "return %3",
    )


def test_statistics_are_values_like_any_other() -> None:
    found = explain_text("w", output(slerp((8,), 1 / 3), ("key-a", "w"), ("key-b", "w")), LABELS)
    assert found == text_of(
        "w = bfloat16[8], merged",
        "%0 = load llama_a:w                   bfloat16[8]",
        "%1 = load llama_b:w                   bfloat16[8]",
        "%2 = gram(%0, %1)                     float64[2, 2] stat",
        "%3 = slerp(%2; 0.3333333333333333)    float64[2] stat      # plan.yml:9",
        "%4 = weighted_sum(%0, %1, %3)         float32[8]",
        "%5 = cast(%4)                         bfloat16[8]",
        "return %5",
    )


def test_parameters_from_several_lines_each_name_theirs() -> None:
    expression = node(TRIM, load(0, (4,)), constant(0.5, line(4)), constant((1.0, 2.0), line(6)), keep=True)
    found = explain_text("w", output(expression, ("key-a", "w")), LABELS)
    assert "trim(%0; 0.5, [1.0, 2.0], keep=True)" in found
    assert found.splitlines()[2].endswith("# 0.5 from plan.yml:4, [1.0, 2.0] from plan.yml:6")


def test_a_repeated_value_has_one_line() -> None:
    a = load(0, (4,))
    twice = node(SUM, node(CAST, a, dtype="F32"), node(CAST, a, dtype="F32"), constant((0.5, 0.5)))
    found = expression(output(twice, ("key-a", "w")))
    assert [line.op for line in found.lines] == ["load", "cast", "weighted_sum"]
    assert found.lines[2].call == "weighted_sum(%1, %1; 0.5, 0.5)"


def test_a_copied_tensor_is_its_load() -> None:
    found = explain_text("w", output(load(0, (4,)), ("key-a", "old.w")), LABELS)
    assert found == text_of("w = bfloat16[4], copied", "%0 = load llama_a:old.w    bfloat16[4]", "return %0")


def test_pieces_are_returned_in_order_and_ranges_are_shown() -> None:
    """Two rows, each from another checkpoint, the second a part of its tensor."""
    pieces = (
        Piece(load(0, (1, 4)), (SourceTensor("key-a", "w"),)),
        Piece(load(0, (1, 4), start=4, stop=8), (SourceTensor("key-b", "v"),)),
    )
    found = explain_text("rows", Output(TensorSpec((2, 4), DType.BF16), pieces), LABELS)
    assert found == text_of(
        "rows = bfloat16[2, 4], copied",
        "%0 = load llama_a:w         bfloat16[1, 4]",
        "%1 = load llama_b:v[4:8]    bfloat16[1, 4]",
        "return pieces(%0, %1)",
    )


def test_a_source_without_a_label_keeps_its_key() -> None:
    assert "load key-z:w" in explain_text("w", output(load(0, (4,)), ("key-z", "w")), LABELS)
