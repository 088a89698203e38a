"""dots.llm1: norms on query and key heads, sigmoid routing, shared experts."""

from __future__ import annotations

from mergegraph.architectures.expert_names import DEEPSEEK
from mergegraph.architectures.moe import EVERYWHERE, Back, DenseLayers, MoeFamily
from mergegraph.architectures.shared_names import CORRECTION_BIAS, shared_experts
from mergegraph.architectures.windows import listed_windows

MOE = MoeFamily(
    ("dots1",),
    "Dots1ForCausalLM",
    DEEPSEEK,
    shared=shared_experts("zeros"),
    constants=(CORRECTION_BIAS,),
    must=("qk_norm",),
    can=(*EVERYWHERE, "window", "mixed_window"),
    biases=("q", "k", "v", "o"),
    bias_key="attention_bias",
    expert_keys=("n_routed_experts",),
    size_keys=("moe_intermediate_size",),
    fixed={"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0},
    extra=listed_windows,
    dense_layers=DenseLayers("first_k_dense_replace"),
    min_experts=2,
    defaults={"sliding_window": 4096, "max_window_layers": 62, "bos_token_id": None, "eos_token_id": None},
    back=(Back("qwen3", "Qwen3ForCausalLM", fixed={"use_sliding_window": True}),),
)
