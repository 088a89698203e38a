"""Every way that families store their experts is recognised by names and shapes, and nothing else is."""

from __future__ import annotations

import numpy as np
import pytest

from mergegraph.architectures.experts import (
    GATED,
    MAX_EXPERTS,
    Spelling,
    Stack,
    respelled,
    separate_spelling,
    stacked_block,
    stacking,
    stacks_of,
)
from mergegraph.checkpoint.view import View
from mergegraph.tensorspec import DType, TensorSpec
from tests.checkpoint.views import places

E, H, INNER = 3, 5, 4
MIXTRAL = Spelling("block_sparse_moe.", ("w1.weight", "w3.weight", "w2.weight"), "mlp.")
QWEN = Spelling("mlp.", GATED, "mlp.")
ROWS = {"mlp.experts.gate_up_proj": (E, 2 * INNER, H), "mlp.experts.down_proj": (E, H, INNER)}
Shapes = dict[str, tuple[int, ...]]


def specs(shapes: Shapes, dtype: DType = DType.BF16) -> dict[str, TensorSpec]:
    return {name: TensorSpec(shape, dtype) for name, shape in shapes.items()}


def found(shapes: Shapes, spelling: Spelling = QWEN, experts: int | None = None) -> dict[str, Stack]:
    return dict(stacks_of(specs(shapes), spelling, experts))


def matrices(stack: Stack) -> dict[str, np.ndarray]:
    """Each logical matrix as its view picks it out of a stack that holds its own element numbers."""
    numbers = np.arange(int(np.prod(stack.shape)))
    return {slot.name: numbers[places(slot.view)].reshape(slot.shape) for slot in stack.slots}


def numbered(*shape: int) -> np.ndarray:
    return np.arange(int(np.prod(shape))).reshape(shape)


def covers(stack: Stack) -> bool:
    """Whether the slots hold every element of the stack exactly once."""
    every = np.concatenate([places(slot.view) for slot in stack.slots])
    return np.array_equal(np.sort(every), np.arange(int(np.prod(stack.shape))))


# ---- stacked forms ---------------------------------------------------------------------------------


def test_rows_hold_the_gate_and_then_up() -> None:
    stacks = found(ROWS)
    gate_up, down = stacks["mlp.experts.gate_up_proj"], stacks["mlp.experts.down_proj"]
    assert not gate_up.only and not down.only
    whole = numbered(E, 2 * INNER, H)
    held = matrices(gate_up)
    for e in range(E):
        assert np.array_equal(held[f"mlp.experts.{e}.gate_proj.weight"], whole[e, :INNER])
        assert np.array_equal(held[f"mlp.experts.{e}.up_proj.weight"], whole[e, INNER:])
        down_e = matrices(down)[f"mlp.experts.{e}.down_proj.weight"]
        assert np.array_equal(down_e, numbered(E, H, INNER)[e])
    assert all(slot.view.contiguous for slot in (*gate_up.slots, *down.slots))


def test_rows_take_the_names_of_separate_experts() -> None:
    stacks = found(ROWS, MIXTRAL)
    names = [slot.name for slot in stacks["mlp.experts.gate_up_proj"].slots]
    assert names[:2] == ["block_sparse_moe.experts.0.w1.weight", "block_sparse_moe.experts.0.w3.weight"]
    assert stacks["mlp.experts.down_proj"].slots[2].name == "block_sparse_moe.experts.2.w2.weight"


@pytest.mark.parametrize(
    ("gate_up", "down"),
    [
        ("feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"),
        ("mlp.experts.fc1.weight", "mlp.experts.fc2.weight"),
    ],
    ids=["llama4", "aria"],
)
def test_columns_hold_the_gate_and_then_up(gate_up: str, down: str) -> None:
    stacks = found({gate_up: (E, H, 2 * INNER), down: (E, INNER, H)})
    held = list(matrices(stacks[gate_up]).values())
    whole = numbered(E, H, 2 * INNER)
    for e in range(E):
        assert np.array_equal(held[2 * e], whole[e, :, :INNER])
        assert np.array_equal(held[2 * e + 1], whole[e, :, INNER:])
        assert np.array_equal(list(matrices(stacks[down]).values())[e], numbered(E, INNER, H)[e])
    assert stacks[gate_up].only and stacks[down].only


def test_interleaved_halves_stay_together_and_biases_are_the_experts() -> None:
    """gpt_oss: gate and up alternate in the columns, and a bias says so."""
    prefix = "mlp.experts."
    shapes: Shapes = {
        prefix + "gate_up_proj": (E, H, 2 * INNER),
        prefix + "gate_up_proj_bias": (E, 2 * INNER),
        prefix + "down_proj": (E, INNER, H),
        prefix + "down_proj_bias": (E, H),
    }
    stacks = found(shapes)
    assert list(stacks) == [
        prefix + n for n in ("gate_up_proj", "down_proj", "gate_up_proj_bias", "down_proj_bias")
    ]
    for name, stack in stacks.items():
        assert stack.only and covers(stack) and len(stack.slots) == E
        for e, matrix in enumerate(matrices(stack).values()):
            assert np.array_equal(matrix, numbered(*shapes[name])[e])
    assert stacks[prefix + "gate_up_proj"].slots[1].name == "mlp.experts.1.gate_up_proj"
    assert stacks[prefix + "down_proj_bias"].slots[2].shape == (H,)


@pytest.mark.parametrize("block", ["block_sparse_moe.", "mlp."], ids=["granite", "jetmoe"])
def test_linears_of_all_experts_are_rows_that_only_exist_stacked(block: str) -> None:
    shapes: Shapes = {
        block + "input_linear.weight": (E, 2 * INNER, H),
        block + "output_linear.weight": (E, H, INNER),
    }
    stacks = found(shapes, MIXTRAL)
    assert all(stack.only and covers(stack) for stack in stacks.values())
    held = matrices(stacks[block + "input_linear.weight"])
    assert np.array_equal(held[f"{block}experts.1.up_proj.weight"], numbered(E, 2 * INNER, H)[1, INNER:])


def test_attention_experts_are_whole_matrices() -> None:
    """JetMoE: the inputs of attention experts are no pairs of gate and up."""
    block = "self_attention.experts."
    shapes: Shapes = {block + "input_linear.weight": (E, 4, 8), block + "output_linear.weight": (E, 8, 4)}
    stacks = found(shapes)
    assert [slot.shape for slot in stacks[block + "input_linear.weight"].slots] == [(4, 8)] * E
    assert [slot.shape for slot in stacks[block + "output_linear.weight"].slots] == [(8, 4)] * E


def test_experts_may_stand_directly_below_the_layer() -> None:
    shapes: Shapes = {"experts.gate_up_proj": (E, 2 * INNER, H), "experts.down_proj": (E, H, INNER)}
    spelling = Spelling("", GATED, "")
    names = [slot.name for stack in found(shapes, spelling).values() for slot in stack.slots]
    assert names[0] == "experts.0.gate_proj.weight" and names[-1] == f"experts.{E - 1}.down_proj.weight"
    assert stacked_block(shapes) == ""


def test_matrices_below_each_other_need_the_number_of_experts() -> None:
    """DBRX: [E*I, H], and only the config says where one ends."""
    shapes: Shapes = {f"ffn.experts.mlp.{role}": (E * INNER, H) for role in ("w1", "v1", "w2")}
    assert found(shapes) == {}
    stacks = found(shapes, experts=E)
    assert list(stacks) == list(shapes)
    for stack in stacks.values():
        assert stack.only and covers(stack)
        assert [slot.shape for slot in stack.slots] == [(INNER, H)] * E
    assert stacks["ffn.experts.mlp.v1"].slots[2].name == "ffn.experts.2.v1"
    assert found(shapes, experts=E + 2) == {}
    assert found(shapes, experts=MAX_EXPERTS + 1) == {}
    published: Shapes = {"ffn.experts.mlp.w1": (16 * 10752, 6144)}
    assert [slot.shape for slot in found(published, experts=16)["ffn.experts.mlp.w1"].slots] == [
        (10752, 6144)
    ] * 16


@pytest.mark.parametrize(
    ("inner", "hidden"), [(4, 8), (8, 8), (8, 4), (1, 1), (2, 1), (1, 2), (4, 4), (2, 4)]
)
def test_sizes_that_look_alike_are_never_taken_for_the_other_form(inner: int, hidden: int) -> None:
    names = list(ROWS)
    for shapes, wanted in (
        (((E, 2 * inner, hidden), (E, hidden, inner)), (inner, hidden)),
        (((E, hidden, 2 * inner), (E, inner, hidden)), (hidden, inner)),
    ):
        stacks = found(dict(zip(names, shapes, strict=True)))
        assert stacks[names[0]].slots[0].shape == wanted
        assert all(covers(stack) for stack in stacks.values())


# ---- what is no stack ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [DType.U8, DType.I8, DType.F8_E4M3, DType.I32])
def test_packed_stacks_are_left_whole(dtype: DType) -> None:
    assert dict(stacks_of(specs(ROWS, dtype), QWEN)) == {}


def test_a_stack_whose_partner_is_packed_is_left_whole() -> None:
    layer = specs(ROWS)
    layer["mlp.experts.down_proj"] = TensorSpec(ROWS["mlp.experts.down_proj"], DType.U8)
    assert dict(stacks_of(layer, QWEN)) == {}


@pytest.mark.parametrize("count", [0, MAX_EXPERTS + 1, 10**15])
def test_an_absurd_number_of_experts_is_none(count: int) -> None:
    shapes: Shapes = {"mlp.experts.gate_up_proj": (count, 2, 1), "mlp.experts.down_proj": (count, 1, 1)}
    assert found(shapes) == {}


def test_stacks_of_different_numbers_of_experts_are_no_pair() -> None:
    shapes: Shapes = {
        "mlp.experts.gate_up_proj": (E, 2 * INNER, H),
        "mlp.experts.down_proj": (E - 1, H, INNER),
    }
    assert found(shapes) == {}


@pytest.mark.parametrize("shape", [(), (E,), (E, 2, 2), (E + 1, 2 * INNER), (0,)])
def test_what_is_called_a_bias_and_is_none_is_left_alone(shape: tuple[int, ...]) -> None:
    stacks = found(ROWS | {"mlp.experts.gate_up_proj_bias": shape})
    assert list(stacks) == list(ROWS)
    assert len(stacks["mlp.experts.gate_up_proj"].slots) == 2 * E


@pytest.mark.parametrize(
    "name",
    [
        "mlp.shared_experts.gate_up_proj",
        "mlp.shared_expert.gate_up_proj",
        "mlp.experts.gate_up_proj_blocks",
        "mlp.experts.gate_up_proj.weight",
        "mlp.gate_up_proj",
    ],
)
def test_names_that_only_look_like_stacks_are_none(name: str) -> None:
    shapes: Shapes = {
        name: (E, 2 * INNER, H),
        name.replace("gate_up", "down"): (E, H, INNER),
    }
    assert found(shapes) == {}
    assert stacked_block(shapes) is None


def test_a_stack_without_its_partner_or_of_another_rank_is_left_whole() -> None:
    assert found({"mlp.experts.gate_up_proj": (E, 2 * INNER, H)}) == {}
    assert found({"mlp.experts.gate_up_proj": (2 * INNER, H), "mlp.experts.down_proj": (H, INNER)}) == {}
    flat: Shapes = {"shared_mlp.input_linear.weight": (8, H), "shared_mlp.output_linear.weight": (H, 4)}
    assert found(flat) == {}


def test_stacks_of_no_known_proportion_are_whole_matrices() -> None:
    shapes: Shapes = {"mlp.experts.gate_up_proj": (E, 7, 3), "mlp.experts.down_proj": (E, 2, 9)}
    stacks = found(shapes)
    assert all(stack.only and covers(stack) and len(stack.slots) == E for stack in stacks.values())


# ---- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "block", "roles"),
    [
        ("block_sparse_moe.experts.0.w1.weight", "block_sparse_moe.", MIXTRAL.roles),
        ("mlp.experts.11.w2.weight", "mlp.", MIXTRAL.roles),
        ("mlp.experts.0.down_proj.weight", "mlp.", GATED),
        ("feed_forward.experts.5.w3.weight", "feed_forward.", MIXTRAL.roles),
        ("experts.0.up_proj.weight", "", GATED),
    ],
)
def test_the_first_separate_expert_shows_the_spelling(
    suffix: str, block: str, roles: tuple[str, ...]
) -> None:
    gate = f"{block}experts.0.{roles[0]}"
    spelling = separate_spelling(["mlp.gate.weight", suffix, gate], "x.")
    assert spelling == Spelling(block, roles, "x.")  # type: ignore[arg-type]
    assert separate_spelling([suffix, gate]) == Spelling(block, roles, block)  # type: ignore[arg-type]


def test_experts_without_gates_are_seen_to_have_none() -> None:
    found = separate_spelling(["mixer.experts.0.up_proj.weight", "mixer.experts.0.down_proj.weight"])
    assert found is not None
    assert not found.gated
    assert list(found.kinds()) == ["mixer.experts.up_proj", "mixer.experts.down_proj"]


@pytest.mark.parametrize(
    "suffix",
    [
        "mlp.shared_experts.0.gate_proj.weight",
        "mlp.shared_expert.gate_proj.weight",
        "mlp.gate_proj.weight",
        "mlp.experts.0.gate_proj.bias",
        "mlp.experts.0.gate_proj.weight_scale_inv",
        "mlp.experts.0.gate_proj.qweight",
        "mlp.experts.1234567890.w1.weight",
        "mlp.experts.x.w1.weight",
        "mlp.experts.00.w1.weight",
        "mlp.experts.0.w4.weight",
    ],
)
def test_other_names_show_no_spelling(suffix: str) -> None:
    assert separate_spelling([suffix]) is None


@pytest.mark.parametrize(
    ("name", "logical"),
    [
        ("mlp.experts.3.w1.weight", "block_sparse_moe.experts.3.w1.weight"),
        ("mlp.experts.3.down_proj.weight", "block_sparse_moe.experts.3.w2.weight"),
        ("block_sparse_moe.experts.3.w3.weight", "block_sparse_moe.experts.3.w3.weight"),
        ("mlp.gate.weight", "block_sparse_moe.gate.weight"),
        ("mlp.e_score_correction_bias", "block_sparse_moe.e_score_correction_bias"),
        ("mlp.shared_expert.gate_proj.weight", "mlp.shared_expert.gate_proj.weight"),
        ("self_attn.q_proj.weight", "self_attn.q_proj.weight"),
        ("mlp_norm.weight", "mlp_norm.weight"),
    ],
)
def test_other_spellings_of_a_layer_with_experts_are_brought_in_line(name: str, logical: str) -> None:
    assert respelled(name, MIXTRAL, ["mlp."]) == logical
    assert respelled(logical, MIXTRAL, ["block_sparse_moe."]) == logical


@pytest.mark.parametrize(
    ("name", "stacked"),
    [
        ("block_sparse_moe.experts.7.w1.weight", "mlp.experts.gate_up_proj"),
        ("block_sparse_moe.experts.7.w3.weight", "mlp.experts.gate_up_proj"),
        ("block_sparse_moe.experts.7.w2.weight", "mlp.experts.down_proj"),
        ("block_sparse_moe.gate.weight", "mlp.gate.weight"),
        ("self_attn.q_proj.weight", "self_attn.q_proj.weight"),
    ],
)
def test_a_spelling_knows_the_names_beside_stacks(name: str, stacked: str) -> None:
    assert MIXTRAL.in_stack(name) == stacked


def test_experts_of_two_kinds_in_one_layer_keep_apart() -> None:
    """Ernie VL has experts for text and for images in each layer."""
    spelling = Spelling("mlp.text_moe.", GATED, "mlp.text_moe.")
    shapes = {
        name.replace("mlp.", f"mlp.{kind}_moe."): shape
        for kind in ("text", "vision")
        for name, shape in ROWS.items()
    }
    names = [slot.name for stack in found(shapes, spelling).values() for slot in stack.slots]
    assert len(set(names)) == len(names) == 6 * E
    separate = [f"mlp.{kind}_moe.experts.0.up_proj.weight" for kind in ("text", "vision")]
    assert [respelled(n, spelling, ["mlp.text_moe."]) for n in separate] == separate


# ---- stacks to be made -----------------------------------------------------------------------------


def separate(spelling: Spelling, count: int = E) -> Shapes:
    shapes: Shapes = {f"{spelling.block}gate.weight": (count, H), "self_attn.q_proj.weight": (H, H)}
    for e in range(count):
        for role, shape in enumerate(((INNER, H), (INNER, H), (H, INNER))):
            shapes[spelling.name(e, role)] = shape
    return shapes


@pytest.mark.parametrize("spelling", [MIXTRAL, QWEN, Spelling("", GATED, "")])
def test_separate_experts_make_the_stacks_that_loaders_know(spelling: Spelling) -> None:
    layer = separate(spelling)
    stacks = stacking(specs(layer), spelling.kinds())
    renamed = {name: spelling.in_stack(name) for name in layer}
    block = spelling.stacked
    assert {name: stack.shape for name, stack in stacks.items()} == {
        f"{block}experts.gate_up_proj": (E, 2 * INNER, H),
        f"{block}experts.down_proj": (E, H, INNER),
    }
    assert all(covers(stack) for stack in stacks.values())
    assert {slot.name for stack in stacks.values() for slot in stack.slots} == {
        spelling.name(e, role) for e in range(E) for role in range(3)
    }
    assert renamed[f"{spelling.block}gate.weight"] == f"{block}gate.weight"
    assert renamed["self_attn.q_proj.weight"] == "self_attn.q_proj.weight"


def test_experts_of_different_shapes_or_with_a_role_missing_make_no_stack() -> None:
    odd = separate(MIXTRAL) | {MIXTRAL.name(1, 0): (INNER + 1, H)}
    missing = separate(MIXTRAL)
    del missing[MIXTRAL.name(2, 1)]
    first = separate(MIXTRAL)
    del first[MIXTRAL.name(0, 2)]
    flat = {name: (8,) if "experts" in name else shape for name, shape in separate(MIXTRAL).items()}
    for shapes in (odd, missing, first, flat, {"mlp.gate_proj.weight": (4, 4)}):
        assert stacking(specs(shapes), MIXTRAL.kinds()) == {}


def test_experts_that_lack_one_among_them_make_no_stack() -> None:
    """A stack of the first few beside the others is a layout that nothing loads."""
    beyond = separate(QWEN) | {QWEN.name(E + 4, role): (1, 1) for role in range(3)}
    gap = {name: shape for name, shape in separate(QWEN).items() if ".1." not in name}
    for shapes in (beyond, gap):
        assert stacking(specs(shapes), QWEN.kinds()) == {}


def test_a_view_of_a_slot_says_where_it_lies() -> None:
    slots = found(ROWS)["mlp.experts.gate_up_proj"].slots
    assert slots[3].view == View(3 * INNER * H, INNER, H, H)
    assert str(slots[3].view) == f"rows {3 * INNER}:{4 * INNER}"
