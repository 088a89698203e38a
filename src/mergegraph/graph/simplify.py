"""Rewriting an expression into an equal, cheaper one. Only exact identities: the bits stay the same."""

from __future__ import annotations

from mergegraph.graph.node import CONSTANT, Node, node, walk


def simplify(root: Node) -> Node:
    """Remove ops that change nothing: a sum of one tensor with weight 1, a scale by 1, a cast to itself.

    What remains of a tensor that is only passed on is its ``load``, which the runtime copies.
    """
    rewritten: dict[bytes, Node] = {}
    for n in walk([root]):
        inputs = tuple(rewritten[x.key] for x in n.inputs)
        same = all(a is b for a, b in zip(inputs, n.inputs, strict=True))
        current = n if same else node(n.op, *inputs, origin=n.origin, **n.attributes)
        rewritten[n.key] = inputs[0] if _is_identity(current) else current
    return rewritten[root.key]


def _is_identity(n: Node) -> bool:
    match n.op.name:
        case "weighted_sum":
            return len(n.inputs) == 2 and _is_one(n.inputs[1])
        case "scale":
            return _is_one(n.inputs[1])
        case "cast":
            return n.spec.dtype is n.inputs[0].spec.dtype
        case "identical":
            return len(n.inputs) == 1
    return False


def _is_one(n: Node) -> bool:
    return n.op is CONSTANT and n.attributes["values"] == (1.0,)
