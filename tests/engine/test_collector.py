"""The garbage collector rests while a plan is compiled, and is as it was afterwards."""

from __future__ import annotations

import gc

from mergegraph.engine.collector import collector_paused


def test_what_was_built_meanwhile_is_not_looked_through_afterwards() -> None:
    with collector_paused():
        assert not gc.isenabled()
        built = [[number] for number in range(100_000)]
    assert gc.isenabled()
    assert gc.get_count()[0] < 10_000
    assert gc.get_freeze_count() == 0
    assert gc.is_tracked(built[0])


def test_what_somebody_froze_stays_frozen() -> None:
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        with collector_paused():
            pass
        assert gc.get_freeze_count() == frozen
    finally:
        gc.unfreeze()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
