"""What is wrong with a plan, as tests look at it."""

from __future__ import annotations

import pytest

from mergegraph.errors import PlanError
from mergegraph.plan.kinds import parse_any


def refusal(text: str) -> list[tuple[int, str]]:
    """Return (line, text) of each problem; each must have a place and a hint."""
    with pytest.raises(PlanError) as caught:
        parse_any(text, "p.yml")
    problems = caught.value.problems
    assert all(p.where and p.hint for p in problems)
    return [(int((p.where or "").removeprefix("p.yml:")), str(p)) for p in problems]
