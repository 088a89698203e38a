"""DeepSeek V2: latent attention; the weights of the chosen experts are not made to sum to one."""

from __future__ import annotations

from mergegraph.architectures.expert_names import QWEN
from mergegraph.architectures.moe import EVERYWHERE, Back, DenseLayers, MoeFamily
from mergegraph.architectures.shared_names import shared_experts

MOE = MoeFamily(
    ("deepseek_v2",),
    "DeepseekV2ForCausalLM",
    QWEN,
    shared=shared_experts("zeros"),
    must=("mla",),
    can=EVERYWHERE,
    keys=None,
    interleaved=True,
    rope=False,
    expert_keys=("n_routed_experts",),
    size_keys=("moe_intermediate_size",),
    fixed={
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    },
    dense_layers=DenseLayers("first_k_dense_replace"),
    exact="all active",
    back=(Back("deepseek_v2", "DeepseekV2ForCausalLM"),),
)
