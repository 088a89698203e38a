"""Help for tests and demonstrations, shipped so that plug-ins can use it too.

`mergegraph.testing.tiny` writes small real checkpoints, `mergegraph.testing.demo` the ones that
``mergegraph demo`` merges.
"""

from __future__ import annotations

from mergegraph.testing.demo import prepare_demo
from mergegraph.testing.tiny import Llama, write_checkpoint, write_llama

__all__ = ["Llama", "prepare_demo", "write_checkpoint", "write_llama"]
