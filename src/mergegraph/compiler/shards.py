"""A dense model in parts: each with a share of the neurons of every MLP."""

from __future__ import annotations

from dataclasses import replace

from mergegraph.architectures.dense import body_of
from mergegraph.checkpoint.view import View
from mergegraph.compiler.models import Model
from mergegraph.errors import GraphError
from mergegraph.graph.graph import Output

_SIZE = "intermediate_size"


def shards(model: Model, count: int) -> list[Model]:
    """`count` models whose MLPs together are the model's; the other tensors are the model's in each.

    Raises:
        GraphError: the MLPs cannot be split.
    """
    if count == 1:
        return [model]
    body = body_of(model.dense)
    if body is None:
        raise GraphError(f"the family of {model.name} is not known, so its MLPs cannot be split")
    return [_shard(model, count, index) for index in range(count)]


def _shard(model: Model, count: int, index: int) -> Model:
    body = body_of(model.dense)
    assert body is not None
    outputs = dict(model.outputs)
    size = 0
    for layer in range(body.layers):
        for role, matrix in enumerate(body.mlp(layer) or ()):
            neurons = matrix.columns if role == 2 else matrix.rows
            if matrix.view is not None:
                raise GraphError(f"{model.name} stores gate and up projections in one tensor")
            if neurons % count:
                raise GraphError(f"{neurons} neurons cannot be split into {count} equal parts")
            size = neurons // count
            view = _part(matrix.rows, matrix.columns, size, index, down=role == 2)
            piece = model.piece(matrix.tensor, view)
            outputs[matrix.tensor] = Output(piece.expression.spec, (piece,))
    config = {**model.config, _SIZE: size}
    return replace(model, name=f"{model.name} (part {index + 1} of {count})", config=config, outputs=outputs)


def _part(rows: int, columns: int, size: int, index: int, *, down: bool) -> View:
    if down:
        return View(index * size, rows, size, columns)
    return View(index * size * columns, size, columns, columns)
