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
    """The tensors that mergekit wrote for `case`; none if it failed."""
    file = models.GOLDEN / f"{case}.safetensors"
    return models.read_safetensors(file) if file.exists() else {}


@dataclass(frozen=True)
class Deviation:
    """A deliberate difference: why, the config fields and the tensors concerned.

    The tensors are judged by the float64 reference instead of the recording; `extra` ones are not recorded.
    So are experts if `per_expert`: mergekit measures all experts of a layer as one tensor, gate and up
    projections together. `recorded_dtype` is the dtype that mergekit wrote where it is not the right one.
    """

    reason: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    per_expert: bool = False
    recorded_dtype: str | None = None


_FULL, _SLIDING = "full_attention", "sliding_attention"
_STALE_TIE = "the donor's tie flag would make loaders ignore the head that was written"
_STALE_DTYPE = "the config names the dtype that was written, instead of the donor's"
_STALE_LAYERS = "per-layer config lists follow the layers that were taken, instead of staying the donor's"
_EVERY_LLAMA_TENSOR = tuple(models.blueprints()["llama"]["tensors"])
_NO_ARC = (
    "between opposite vectors there is no arc: they are mixed in a straight line. mergekit means to do that "
    "too, but tests the cosine after rounding, and divides noise by noise where it is not exactly -1"
)
_WIDENED = "the result has the dtype of the inputs; mergekit writes float32, and a config that says bfloat16"
_PER_EXPERT = (
    "angles, thresholds, variances and ratios are those of one matrix of one expert, in either layout; "
    "mergekit takes all experts of a layer, their gate and up projections together, for one tensor"
)
# Cases with such a measure; row by row and element by element the two agree.
_MEASURED_PER_EXPERT = (
    *("arcee_fusion_mixtral", "breadcrumbs_mixtral", "breadcrumbs_ties_mixtral", "karcher_mixtral"),
    *("arcee_fusion_stacked", "karcher_stacked", "model_stock_stacked", "nuslerp_stacked", "sce_stacked"),
    *(
        "model_stock_mixtral",
        "multislerp_stacked",
        "nuslerp_mixtral_flat",
        "ramplus_tl_mixtral",
        "sce_mixtral",
    ),
    *("slerp_mixtral", "slerp_stacked", "ties_mixtral", "ties_mixtral_bf16"),
)

DEVIATIONS: Mapping[str, Deviation] = {
    **{case: Deviation(_PER_EXPERT, per_expert=True) for case in _MEASURED_PER_EXPERT},
    "arcee_fusion_bf16": Deviation(_WIDENED, recorded_dtype="float32"),
    "ramplus_tl_bf16": Deviation(_WIDENED, recorded_dtype="float32"),
    "nuslerp_opposite": Deviation(_NO_ARC, tensors=_EVERY_LLAMA_TENSOR),
    "nuslerp_opposite_rows": Deviation(_NO_ARC, tensors=_EVERY_LLAMA_TENSOR),
    "karcher_opposite": Deviation(
        "from a model that is opposite to the mean no direction leads back: it is left out of the step. "
        "mergekit leaves it out where its rounded cosine is exactly -1, and takes a step of noise elsewhere",
        tensors=_EVERY_LLAMA_TENSOR,
    ),
    "karcher_nearly_cancelling": Deviation(
        "steps from models almost opposite to the mean magnify the rounding of their cosine; with dot "
        "products in 64 bits the result is that of the formula, to the last digits that float32 has",
        tensors=_EVERY_LLAMA_TENSOR,
    ),
    "multislerp_three_still_tensors": Deviation(
        "vectors without a mean direction are summed with their weights, as mergekit does for two; for three "
        "it fails, even if all are zero, so that models which leave a tensor alone cannot be merged",
    ),
    "multislerp_three_copies": Deviation("likewise: the result is the base"),
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
