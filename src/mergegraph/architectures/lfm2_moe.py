"""LFM2 MoE: short convolutions between attention layers, sigmoid routing."""

from __future__ import annotations

from typing import Any

from mergegraph.architectures.dense import Body
from mergegraph.architectures.expert_names import numbered, same
from mergegraph.architectures.moe import Back, Constant, DenseLayers, MoeFamily, Options
from mergegraph.tensorspec import DType


def _sizes(base: Body, options: Options) -> dict[str, Any]:
    """The size of MLPs as it is: the dense class may derive it from what its config says."""
    full = base.config.get("full_attn_idxs")
    kinds = ["full_attention" if full is None or i in full else "conv" for i in range(base.layers)]
    mlp = base.mlp(0)
    size = base.number("intermediate_size") if mlp is None else mlp[2].columns
    return {"intermediate_size": size, "layer_types": base.config.get("layer_types") or kinds}


MOE = MoeFamily(
    ("lfm2_moe",),
    "Lfm2MoeForCausalLM",
    numbered(
        "feed_forward.experts",
        "feed_forward.experts",
        router=same("feed_forward.gate.weight", "feed_forward.expert_bias"),
    ),
    constants=(Constant("feed_forward.expert_bias", "E", dtype=DType.F32),),
    block=("feed_forward.w1.weight", "feed_forward.w3.weight", "feed_forward.w2.weight"),
    must=("short_conv",),
    keys=None,
    expert_keys=("num_experts",),
    size_keys=("moe_intermediate_size",),
    fixed={"norm_topk_prob": True, "routed_scaling_factor": 1.0, "use_expert_bias": True},
    extra=_sizes,
    dense_layers=DenseLayers("num_dense_layers"),
    defaults={"tie_word_embeddings": True},
    back=(Back("lfm2", "Lfm2ForCausalLM", fixed={"block_auto_adjust_ff_dim": False}),),
)
