"""A model that a plan builds with: a checkpoint, or a merge that is never written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mergegraph.architectures.dense import Dense
from mergegraph.checkpoint.view import View
from mergegraph.compiler.experts import Place
from mergegraph.compiler.inputs import Input
from mergegraph.compiler.merge import Compiled
from mergegraph.errors import GraphError
from mergegraph.graph.graph import Output, Piece, SourceTensor
from mergegraph.ops import load
from mergegraph.tensorspec import TensorSpec


@dataclass(frozen=True)
class Model:
    """What a build needs to know of a model.

    Attributes:
        name: what messages call it.
        config: its ``config.json``.
        outputs: how each of its tensors is computed; each is one piece.
        donor: the checkpoint that its tokenizer and other files come from.
        merged: how it was compiled, if it is a merge.
    """

    name: str
    config: Mapping[str, Any]
    outputs: Mapping[str, Output]
    donor: Input
    merged: Compiled | None = None

    @cached_property
    def dense(self) -> Dense:
        """Config and specs."""
        return Dense(self.config, {name: output.spec for name, output in self.outputs.items()})

    def piece(self, tensor: str, view: View | None = None) -> Piece:
        """The piece that computes `tensor`, or a part of it.

        Raises:
            GraphError: a part is wanted of a tensor that is merged as a whole.
        """
        (whole,) = self.outputs[tensor].parts
        if view is None:
            return whole
        if whole.expression.op.name != "load":
            if not view.contiguous or whole.window is not None:
                raise GraphError(
                    f"{self.name} is merged, and its {tensor} is wanted in another order",
                    hint="merge it to a file first",
                )
            return whole._replace(window=(view.offset, view.numel))
        (source,) = whole.sources
        inner = source.view
        if inner is not None:
            raise GraphError(f"{tensor} of {self.name} is itself a part of {source.tensor}")
        spec = TensorSpec((view.rows, view.columns), whole.expression.spec.dtype)
        return Piece(load(0, spec), (SourceTensor(source.checkpoint, source.tensor, view),))


def checkpoint_model(model: Input, places: Mapping[str, Place] | None = None) -> Model:
    """A checkpoint: every tensor is loaded as it is, from where it lies or from `places`."""
    outputs = {
        name: Output(
            place.spec,
            (Piece(load(0, place.spec), (SourceTensor(model.key, place.tensor, place.view),)),),
        )
        for name, place in (model.tensors if places is None else places).items()
    }
    return Model(model.name, model.index.config, outputs, model)


def merged_model(name: str, compiled: Compiled, donor: Input) -> Model:
    """A merge: every tensor is computed where it is used."""
    return Model(name, compiled.config, compiled.graph.outputs, donor, compiled)
