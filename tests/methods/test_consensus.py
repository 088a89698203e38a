"""Masks that models agree on, with numbers that can be worked by hand."""

from __future__ import annotations

import torch

from tests.methods.test_formulas import merge, vector


class TestConsensus:
    """Changes 4 and 4, 4 and 1, 4 and -1, 3 and -3, 0 and 0: the sum is 8, 5, 3, 0, 0."""

    a, b = vector(4, 4, 4, 3, 0), vector(4, 1, -1, -3, 0)

    def merge(self, k: int, threshold: float) -> list[float]:
        base, each = torch.zeros_like(self.a), [{"threshold": threshold}] * 2
        found: list[float] = merge("consensus", base, [self.a, self.b], {"k": k}, each).tolist()
        return found

    def test_a_change_counts_if_it_is_large_beside_what_others_add(self) -> None:
        assert self.merge(2, 1.0) == [8.0, 0.0, 0.0, 0.0, 0.0]
        assert self.merge(2, 0.25) == [8.0, 5.0, 3.0, 0.0, 0.0]

    def test_one_model_may_be_enough(self) -> None:
        assert self.merge(1, 1.0) == [8.0, 5.0, 3.0, 0.0, 0.0]

    def test_without_a_quorum_it_is_task_arithmetic(self) -> None:
        assert self.merge(0, 100.0) == [8.0, 5.0, 3.0, 0.0, 0.0]

    def test_more_models_than_there_are_means_all(self) -> None:
        assert self.merge(7, 1.0) == self.merge(2, 1.0)
