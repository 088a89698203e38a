"""DeepSeek V3: latent attention, sigmoid routing with a correction bias."""

from __future__ import annotations

from mergegraph.architectures.expert_names import DEEPSEEK
from mergegraph.architectures.moe import EVERYWHERE, Back, DenseLayers, MoeFamily
from mergegraph.architectures.shared_names import CORRECTION_BIAS, shared_experts

MOE = MoeFamily(
    ("deepseek_v3",),
    "DeepseekV3ForCausalLM",
    DEEPSEEK,
    shared=shared_experts("zeros"),
    constants=(CORRECTION_BIAS,),
    min_experts=2,
    must=("mla_yarn",),
    can=EVERYWHERE,
    keys=None,
    interleaved=True,
    rope=False,
    expert_keys=("n_routed_experts",),
    size_keys=("moe_intermediate_size",),
    fixed={"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0},
    dense_layers=DenseLayers("first_k_dense_replace"),
    back=(Back("deepseek_v3", "DeepseekV3ForCausalLM"),),
)
