"""ERNIE 4.5 MoE: rotary dimensions side by side, softmax routing with a correction bias."""

from __future__ import annotations

from typing import Any

from mergegraph.architectures.dense import Body
from mergegraph.architectures.expert_names import projections, same
from mergegraph.architectures.moe import EVERYWHERE, Back, Constant, DenseLayers, MoeFamily, Options
from mergegraph.architectures.shared_names import shared_experts
from mergegraph.tensorspec import DType

_BIAS = "mlp.moe_statics.e_score_correction_bias"


def _last_layer(base: Body, options: Options) -> dict[str, Any]:
    return {"moe_layer_end_index": base.layers - 1}


MOE = MoeFamily(
    ("ernie4_5_moe",),
    "Ernie4_5_MoeForCausalLM",
    projections(
        "mlp.experts",
        router={**same("mlp.gate.weight"), _BIAS: "mlp.gate.moe_statics.e_score_correction_bias"},
    ),
    shared=shared_experts("none", count_key="moe_num_shared_experts"),
    constants=(Constant(_BIAS, "1E", dtype=DType.F32),),
    router_f32=True,
    can=EVERYWHERE,
    interleaved=True,
    expert_keys=("moe_num_experts",),
    active_key="moe_k",
    size_keys=("moe_intermediate_size",),
    fixed={"use_bias": False, "moe_layer_interval": 1, "moe_norm_min": 1e-12, "output_router_logits": False},
    extra=_last_layer,
    dense_layers=DenseLayers("moe_layer_start_index"),
    defaults={"rope_theta": 500000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    back=(Back("ernie4_5", "Ernie4_5ForCausalLM", {"use_bias": (False,)}, {"use_bias": False}),),
)
