"""Score files in each format, and the experts that they keep."""

from __future__ import annotations

import pytest

from mergegraph.errors import PlanError
from mergegraph.plan.scores import best, read_scores

WANTED = {0: (0.5, 1e-05, 2.0), 3: (-1.0, 0.0, 1.0)}


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("s.json", '{"0": [0.5, 1e-05, 2], "3": [-1, 0.0, 1]}'),
        ("s.json", "[[0.5, 1e-05, 2], null, null, [-1, 0.0, 1]]"),
        ("s.YML", "0: [0.5, 1e-05, 2]\n3:\n- -1\n- 0\n- 1\n"),
        ("s.yaml", "- [0.5, 1e-05, 2]\n-\n-\n- [-1, 0, 1]\n"),
        ("s.csv", "0,0.5,1e-05,2\n3,-1,0,1\n"),
        ("s.csv", "layer, expert 0, expert 1, expert 2\n\n0, 0.5, 1e-05, 2\n3, -1, 0, 1"),
    ],
)
def test_every_format_says_the_same(file: str, text: str) -> None:
    assert read_scores(text, file) == WANTED


@pytest.mark.parametrize(
    ("file", "text", "line", "said"),
    [
        ("s.txt", "0,1", 1, "the format of the scores is not known"),
        ("s.json", "{", 1, "not valid YAML"),
        ("s.json", "{}", 1, "there are no scores"),
        ("s.csv", "layer,score\n", 1, "there are no scores"),
        ("s.json", "3", 1, "scores must be a mapping or a list, not an integer"),
        ("s.yml", "0: [1]\n1: []\n", 2, "the scores of layer 1 must be a list that is not empty"),
        ("s.yml", "0: [1]\n1: 2\n", 2, "the scores of layer 1 must be a list"),
        ("s.json", '{"0": [1], "mlp": [2]}', 1, "the layer 'mlp' is not a number"),
        ("s.json", '{"0": [1,\nNaN]}', 2, "a score must be a finite number, not 'NaN'"),
        ("s.yml", "0: [1, true]\n", 1, "a score must be a finite number, not a boolean"),
        ("s.csv", "0,1\nx,2\n", 2, "the layer 'x' is not a number"),
        ("s.csv", "0,1\n0,2\n", 2, "layer 0 is there twice"),
        ("s.csv", "0,1\n1\n", 2, "there are no scores after the layer '1'"),
        ("s.csv", "0,1\n1,,2\n", 2, "a score must be a finite number, not ''"),
    ],
)
def test_what_is_no_score_is_refused_at_its_line(file: str, text: str, line: int, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        read_scores(text, file)
    (problem,) = caught.value.problems
    assert problem.where == f"{file}:{line}"
    assert said in problem.message
    assert problem.hint


def test_the_best_experts_stay_in_their_old_order() -> None:
    assert best({0: (0.1, 0.9, 0.5, 0.7), 4: (3, 2, 1, 0)}, 2) == {0: (1, 3), 4: (0, 1)}


def test_of_equal_scores_the_earlier_expert_stays() -> None:
    assert best({0: (1.0, 2.0, 1.0, 2.0)}, 3) == {0: (0, 1, 3)}
