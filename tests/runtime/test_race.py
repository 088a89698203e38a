"""The trial: real merges through real workers, on both sides."""

from __future__ import annotations

from typing import Any

import pytest

from mergegraph.errors import DeviceError
from mergegraph.runtime import race
from mergegraph.runtime.streams import Host


def test_both_sides_get_through_the_same_work() -> None:
    there, here = race.device_rate([Host(), Host()]), race.processor_rate(1)
    assert there > 0
    assert here > 0


def test_a_device_that_fails_says_so() -> None:
    class Full(Host):
        def on(self, queue: Any, after: Any = None) -> Any:
            raise DeviceError("cuda:0 has no memory left")

    with pytest.raises(DeviceError, match="no memory left"):
        race.device_rate([Full()])


def test_a_trial_is_held_once(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    monkeypatch.setattr(race, "Cuda", lambda name: name)
    monkeypatch.setattr(race, "device_rate", lambda devices: held.append(devices) or 1.0)
    monkeypatch.setattr(race, "processor_rate", lambda threads: held.append(threads) or 2.0)
    race.race.cache_clear()
    assert [race.race(("cuda:0", "cuda:1"), 7) for _ in range(3)] == [(1.0, 2.0)] * 3
    assert held == [["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"], 7]
    race.race.cache_clear()
