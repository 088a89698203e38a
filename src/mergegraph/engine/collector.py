"""Planning without the garbage collector: it builds millions of values, and none of them is garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Let no cycles be looked for meanwhile: each look would walk all that is built, again and again.

    Nor right afterwards: what was built is then as old to the collector as anything, not new.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            if gc.get_freeze_count() == 0:  # else somebody's frozen objects would thaw with ours
                gc.freeze()
                gc.unfreeze()
            gc.enable()
