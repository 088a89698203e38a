"""Hunyuan V1 MoE: norms on query and key heads after the rotary embedding."""

from __future__ import annotations

from mergegraph.architectures.expert_names import projections, same
from mergegraph.architectures.moe import Back, MoeFamily, Shared

MOE = MoeFamily(
    ("hunyuan_v1_moe",),
    "HunYuanMoEV1ForCausalLM",
    projections("mlp.experts", router=same("mlp.gate.wg.weight")),
    shared=Shared(
        "mlp.shared_mlp.gate_proj.weight",
        "mlp.shared_mlp.up_proj.weight",
        "mlp.shared_mlp.down_proj.weight",
        absent="zeros",
    ),
    must=("qk_norm_after_rope",),
    biases=("q", "k", "v", "o"),
    keys=None,
    expert_keys=("num_experts",),
    active_key="moe_topk",
    fixed={"output_router_logits": False},
    defaults={"rms_norm_eps": 1e-5},
    back=(Back("hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM"),),
)
