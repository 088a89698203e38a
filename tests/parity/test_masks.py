"""The judge of random results accepts what it should, and notices each way of being wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest

from .masks import Draw, judged, ranked
from .oracle import F64, Mask, Sum

LINEAR, MEAN = Sum(False, False, 1.0), Sum(False, True, 0.8)
VOTE, VOTED_MEAN = Sum(True, False, 1.3), Sum(True, True, 1.0)
SHAPES = [(16,), (32, 16), (32, 16), (8, 16), (16, 32)]


@dataclass(frozen=True)
class Made:
    """A merge of random tensors, with masks drawn as asked for."""

    draws: list[Draw]
    masks: list[list[Mask]]

    def judge(
        self, change: Callable[[Draw, list[Mask]], tuple[Draw, list[Mask]]] | None = None
    ) -> dict[str, list[str]]:
        """What the judge says of the results, or of those that `change` makes of them."""
        tensors = []
        for i, (draw, masks) in enumerate(zip(self.draws, self.masks, strict=True)):
            made, kept = (draw, masks) if change is None else change(draw, masks)
            tensors.append((str(i), draw, made.made(kept), 1e-9))
        return judged(tensors)


def made(how: Sum, weights: tuple[float, ...], chance: Callable[[F64], F64], *, rescale: bool = True) -> Made:
    """Five tensors, of as many models as there are weights."""
    random = np.random.default_rng(5)
    draws, masks = [], []
    for shape in SHAPES[len(weights) > 1 :]:
        deltas = tuple(0.05 * random.normal(size=shape) for _ in weights)
        draw = Draw(
            random.normal(size=shape), deltas, weights, tuple(chance(d) for d in deltas), how, rescale
        )
        draws.append(draw)
        masks.append([random.random(shape) < p for p in draw.chances])
    return Made(draws, masks)


def dare(delta: F64) -> F64:
    return np.full(delta.shape, 0.4)


def della(delta: F64) -> F64:
    return ranked(delta, 0.5, 0.4)


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("chance", [dare, della])
@pytest.mark.parametrize("how", [LINEAR, MEAN, VOTE, VOTED_MEAN])
@pytest.mark.parametrize("weights", [(0.7,), (0.6, 0.9), (0.5, 0.4), (0.8, -0.3, 0.6)])
def test_masks_drawn_as_asked_for_are_accepted(
    how: Sum, weights: tuple[float, ...], chance: Callable[[F64], F64], rescale: bool
) -> None:
    assert made(how, weights, chance, rescale=rescale).judge() == {}


def test_a_wrong_share_of_survivors_is_noticed() -> None:
    lazy = made(LINEAR, (0.7,), lambda delta: np.full(delta.shape, 0.55))
    lazy.draws[:] = [replace(draw, chances=(dare(draw.base),)) for draw in lazy.draws]
    assert "together" in lazy.judge()


def test_elements_that_are_not_proportional_are_noticed() -> None:
    def change(draw: Draw, masks: list[Mask]) -> tuple[Draw, list[Mask]]:
        return replace(draw, deltas=tuple(d * (1 + 0.001 * np.sign(d)) for d in draw.deltas)), masks

    found = made(LINEAR, (0.7, 0.3), dare).judge(change)
    assert "no sum of kept" in found["0"][0]


def test_a_length_restored_by_the_density_instead_of_the_norm_is_noticed() -> None:
    def change(draw: Draw, masks: list[Mask]) -> tuple[Draw, list[Mask]]:
        return replace(draw, rescale=False, deltas=tuple(d / 0.4 for d in draw.deltas)), masks

    for weights in ((0.7,), (0.7, 0.4)):
        found = made(LINEAR, weights, dare).judge(change)
        assert "an L1 norm of" in str(found)


def test_one_mask_for_all_models_is_noticed() -> None:
    def change(draw: Draw, masks: list[Mask]) -> tuple[Draw, list[Mask]]:
        return draw, [masks[0] for _ in masks]

    assert "models 0 and 1 together" in str(made(LINEAR, (0.7, 0.4), dare).judge(change))


def test_one_mask_for_all_tensors_of_a_shape_is_noticed() -> None:
    alike = made(LINEAR, (0.7,), dare)
    alike.masks[2] = alike.masks[1]
    assert "two tensors together" in str(alike.judge())


def test_chances_that_ignore_the_rank_are_noticed() -> None:
    flat = made(LINEAR, (0.7,), lambda delta: np.full(delta.shape, 0.5))
    flat.draws[:] = [replace(draw, chances=(della(draw.deltas[0]),)) for draw in flat.draws]
    assert "large changes" in str(flat.judge())


def test_ranks_are_taken_within_rows() -> None:
    chances = ranked(np.array([[1.0, -3.0, 2.0], [0.1, 0.2, -0.3]]), 0.5, 0.2)
    assert chances == pytest.approx(np.array([[0.3, 0.7, 0.5], [0.3, 0.5, 0.7]]))
    assert ranked(np.array([3.0, -1.0]), 0.5, 0.2) == pytest.approx(np.array([0.7, 0.3]))
