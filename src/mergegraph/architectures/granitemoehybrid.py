"""Granite 4: Granite MoE whose layers may also be Mamba layers; here all of them are attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mergegraph.architectures.dense import Body
from mergegraph.architectures.expert_names import GRANITE
from mergegraph.architectures.granite_config import SHARED_MLP, granite_values
from mergegraph.architectures.moe import EVERYWHERE, Back, MoeFamily, Options


def _attention_only(base: Body, options: Options) -> dict[str, Any]:
    heads = next(n for n in range(min(128, 2 * base.hidden), 0, -1) if 2 * base.hidden % n == 0)
    return {
        **granite_values(base, options),
        "layer_types": ["full_attention"] * base.layers,
        "position_embedding_type": "rope",
        # Checked by loaders although no layer uses them.
        "mamba_expand": 2,
        "mamba_n_heads": heads,
        "mamba_d_head": 2 * base.hidden // heads,
    }


MOE = MoeFamily(
    ("granitemoehybrid",),
    "GraniteMoeHybridForCausalLM",
    GRANITE,
    shared=replace(SHARED_MLP, absent="zeros"),
    can=(*EVERYWHERE, "multipliers"),
    biases=("q", "k", "v", "o"),
    bias_key="attention_bias",
    expert_keys=("num_local_experts",),
    fixed={"output_router_logits": False},
    extra=_attention_only,
    defaults={"attention_multiplier": 1.0},
    back=(Back("granite", "GraniteForCausalLM", {"position_embedding_type": ("rope",)}),),
)
