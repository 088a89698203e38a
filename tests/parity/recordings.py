"""What was recorded, and the few places where mergegraph means to differ from it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import models
from .models import Stored


@functools.cache
def recording() -> dict[str, Any]:
    """Everything recorded besides the tensors."""
    loaded: dict[str, Any] = json.loads((models.GOLDEN / "recorded.json").read_text())
    return loaded


def recorded(case: str) -> dict[str, Stored]:
    """The tensors that mergekit wrote for `case`."""
    return models.read_safetensors(models.GOLDEN / f"{case}.safetensors")


@dataclass(frozen=True)
class Deviation:
    """A deliberate difference: why, the config fields and the tensors concerned.

    The tensors are judged by the float64 reference instead of the recording; `extra` ones are not recorded.
    """

    reason: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()


_FULL, _SLIDING = "full_attention", "sliding_attention"
_STALE_TIE = "the donor's tie flag would make loaders ignore the head that was written"
_STALE_DTYPE = "the config names the dtype that was written, instead of the donor's"
_STALE_LAYERS = "per-layer config lists follow the layers that were taken, instead of staying the donor's"

DEVIATIONS: Mapping[str, Deviation] = {
    "linear_slices_more_sources": Deviation(
        "all sources of the last slice make the weights after the stack; mergekit drops those beyond the "
        "number of sources of the first slice",
        tensors=("model.norm.weight", "lm_head.weight"),
    ),
    "linear_float64_input": Deviation(_STALE_DTYPE, config={"dtype": "float64"}),
    "linear_halves_of_two_kinds": Deviation(_STALE_DTYPE, config={"dtype": "float32"}),
    "linear_mixed_dtypes": Deviation(_STALE_DTYPE, config={"dtype": "float32"}),
    "slerp_mixed_dtypes": Deviation(_STALE_DTYPE, config={"dtype": "float32"}),
    "linear_tied_with_untied": Deviation(_STALE_TIE, config={"tie_word_embeddings": False}),
    "slerp_tied_base": Deviation(_STALE_TIE, config={"tie_word_embeddings": False}),
    "passthrough_tied_then_untied": Deviation(_STALE_TIE, config={"tie_word_embeddings": False}),
    "passthrough_untied_then_tied": Deviation(
        "the head of a tied model is its embedding, and no longer that of the result: it has to be written; "
        "mergekit looks for heads in the last slice only and leaves the result without one",
        config={"tie_word_embeddings": False},
        extra=("lm_head.weight",),
    ),
    "passthrough_gemma2": Deviation(
        _STALE_LAYERS, config={"layer_types": [_FULL, _SLIDING, _SLIDING, _FULL]}
    ),
    "passthrough_qwen2": Deviation(
        _STALE_LAYERS + " (with which mergekit fails to write this config at all)",
        config={"layer_types": [_FULL] * 6, "num_hidden_layers": 6, "tie_word_embeddings": True},
    ),
}


def deviation(case: str) -> Deviation:
    """The deliberate differences of `case`, none for most."""
    return DEVIATIONS.get(case, Deviation("none"))
