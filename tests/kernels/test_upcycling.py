"""Choosing neurons and drawing them anew: the pieces, against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mergegraph.compiler.drop import redrawn
from mergegraph.compiler.seeds import stream_of
from mergegraph.errors import GraphError
from mergegraph.kernels import upcycling
from mergegraph.kernels.random import uniform
from mergegraph.kernels.upcycling import lowest, moments, numbers
from mergegraph.ops import stream
from mergegraph.tensorspec import DType
from tests.runtime.harness import Mode, assert_same_bits, loads, normal, schedule_run
from tests.runtime.harness import stream as bound

STREAMS = [
    (0.0, 0.0),
    (2.0**24 - 1, 2.0**24 - 1),
    *(stream_of(seed, "layer", "neurons") for seed in range(4)),
]
CPU = torch.device("cpu")


@pytest.mark.parametrize("key", STREAMS, ids=str)
def test_numbers_are_those_of_the_random_generator(key: tuple[float, float]) -> None:
    at = np.array(key)
    assert numbers(at, 1000).tolist() == uniform(at, 0, 1000, CPU).double().tolist()


@pytest.mark.parametrize("key", STREAMS, ids=str)
@pytest.mark.parametrize("keep", [1, 2, 50, 99, 100])
def test_as_many_numbers_as_wanted_are_at_most_the_lowest(key: tuple[float, float], keep: int) -> None:
    drawn = numbers(np.array(key), 100)
    value, place = lowest(np.array(key), count=100, keep=keep)
    assert value == np.sort(drawn)[keep - 1] == drawn[int(place)]


def test_nothing_is_below_the_lowest_of_none() -> None:
    value, place = lowest(np.array(STREAMS[0]), count=100, keep=0)
    assert value < 0 and place < 0


def test_of_equal_numbers_the_first_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers have 24 bits, so among the neurons of a large model some are equal."""
    drawn = np.array([0.5, 0.25, 0.5, 0.0, 0.5, 0.75])
    monkeypatch.setattr(upcycling, "numbers", lambda *_: drawn)
    monkeypatch.setattr(
        "mergegraph.kernels.random.uniform",
        lambda _, first, count, __: torch.from_numpy(drawn)[first:][:count],
    )
    for keep, expected in ((2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]), (5, [0, 1, 2, 3, 4])):
        limit = lowest(np.zeros(2), count=6, keep=keep)
        chosen = upcycling.neurons(torch.ones(6, 2), limit, np.zeros(2), width=2, down=False)
        assert chosen[:, 0].nonzero().flatten().tolist() == expected


def test_moments_are_mean_and_deviation() -> None:
    x = np.random.default_rng(1).normal(3.0, 0.5, 1000)
    gram = np.array([[(x * x).sum(), x.sum()], [x.sum(), len(x)]])
    mean, deviation = moments(gram)
    assert mean == pytest.approx(x.mean(), rel=1e-12)
    assert deviation == pytest.approx(x.std(), rel=1e-9)


def test_moments_of_nothing_and_of_equal_values_are_finite() -> None:
    assert moments(np.zeros((2, 2))).tolist() == [0.0, 0.0]
    x = np.full(7, 0.1)
    gram = np.array([[(x * x).sum(), x.sum()], [x.sum(), 7.0]])
    assert np.allclose(moments(gram), [0.1, 0.0], atol=1e-8)


@pytest.mark.parametrize("mode", ["generated", "interpreted"])
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize(
    ("shape", "ratio"), [((7, 5), 0.5), ((300, 700), 0.5), ((700, 300), 0.1), ((9, 4), 1.0)]
)
def test_a_matrix_is_redrawn_alike_wherever_it_is_computed(
    mode: Mode, down: bool, shape: tuple[int, int], ratio: float
) -> None:
    x = normal(*shape, spread=0.1) + 0.3
    (load,) = loads([x])
    expression = redrawn(load, ratio, stream(0), stream(1), down=down)
    found = schedule_run(expression, [x, x], mode=mode).tensor
    assert_same_bits(found, schedule_run(expression, [x, x], tile=65536, backwards=True).tensor)
    size = shape[1] if down else shape[0]
    changed = (found != x).double().T if down else (found != x).double()
    rows = changed.mean(dim=1)
    assert int(rows.sum()) == round(ratio * size) and bool(((rows == 0) | (rows == 1)).all())
    wanted = np.argsort(numbers(np.array(bound(0)), size), kind="stable")[: round(ratio * size)]
    assert sorted(wanted.tolist()) == rows.nonzero().flatten().tolist()


def test_what_is_no_matrix_has_no_neurons() -> None:
    (load,) = loads([normal(2, 3, 4, dtype=DType.BF16)])
    with pytest.raises(GraphError, match=r"shape \[2, 3, 4\]"):
        redrawn(load, 0.5, stream(0), stream(1), down=False)
