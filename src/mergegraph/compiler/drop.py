"""Drop-upcycling: experts that keep most of a dense model, and learn the rest anew.

Nakamura et al. 2025, "Drop-Upcycling: Training Sparse Mixture of Experts with Partial Re-initialization"
(arXiv 2502.19261): of every expert a random share of the neurons is drawn from a normal distribution with
the mean and standard deviation of what they replace, matrix by matrix.
"""

from __future__ import annotations

from typing import Any

from mergegraph.errors import GraphError
from mergegraph.graph.node import Node
from mergegraph.ops import gram, inside, lowest, moments, neurons, redraw


def redrawn(x: Any, ratio: float, which: Node, values: Node, *, down: bool) -> Any:
    """A matrix with the share `ratio` of its neurons drawn anew.

    Args:
        x: ``[I, H]``, or ``[H, I]`` if it is a `down` projection.
        ratio: of the I neurons.
        which: the stream that chooses neurons, the same for all matrices of an expert.
        values: the stream of the new values.
        down: neurons are columns.

    Raises:
        GraphError: x is no matrix.
    """
    shape = x.spec.shape
    if len(shape) != 2:
        raise GraphError(f"neurons of a tensor of shape {list(shape)} cannot be told")
    size = shape[1] if down else shape[0]
    limit = lowest(which, count=size, keep=round(ratio * size))
    chosen = neurons(x, limit, which, width=shape[1], down=down)
    return redraw(x, chosen, moments(gram(inside(x, chosen), chosen)), values)
