"""Names sort as people count, and spell out their layer stacks."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergegraph.checkpoint.names import LayerStack, layer_stacks, natural_key, split_layer, with_layer


def test_layer_2_comes_before_layer_10() -> None:
    names = ["h.10.w", "h.2.w", "h.2.b", "a", "h.1.w2", "h.1.w10", "10", "9"]
    assert sorted(names, key=natural_key) == ["9", "10", "a", "h.1.w2", "h.1.w10", "h.2.b", "h.2.w", "h.10.w"]


@given(st.lists(st.text(alphabet="a.0129²٣", max_size=30), unique=True), st.randoms())
def test_the_order_is_total_and_does_not_depend_on_the_input_order(names: list[str], random: Random) -> None:
    shuffled = list(names)
    random.shuffle(shuffled)
    assert sorted(names, key=natural_key) == sorted(shuffled, key=natural_key)


def test_absurdly_long_numbers_have_an_order_too() -> None:
    assert natural_key("a" + "9" * 10_000) < natural_key("b")


def test_stacks_are_found_by_names_alone() -> None:
    names = [
        "model.embed.weight",
        *(f"model.layers.{i}.mlp.experts.{j}.w" for i in range(3) for j in range(5)),
        *(f"vision.blocks.{i}.w" for i in range(2)),
        "lm_head.weight",
    ]
    assert layer_stacks(names) == (LayerStack("model.layers", 3), LayerStack("vision.blocks", 2))


@pytest.mark.parametrize(
    "names",
    [
        ["h.1.w", "h.2.w"],
        ["h.0.w", "h.2.w"],
        ["h.01.w", "h.00.w"],
        ["0.w", "1.w"],
        ["h.0", "h.1"],
        ["h.a0.w"],
    ],
)
def test_numbers_that_do_not_count_layers_from_zero_are_no_stack(names: list[str]) -> None:
    assert layer_stacks(names) == ()


def test_a_name_is_taken_apart_and_put_together_again() -> None:
    name = "model.layers.11.mlp.experts.3.w"
    assert split_layer(name, "model.layers") == (11, "mlp.experts.3.w")
    assert with_layer("model.layers", 11, "mlp.experts.3.w") == name


@pytest.mark.parametrize("name", ["model.layersX.1.w", "model.layers.w", "model.layers.01.w", "other"])
def test_names_outside_a_stack_are_left_alone(name: str) -> None:
    assert split_layer(name, "model.layers") is None
