"""FlexOlmo: norms after attention and MLP, and over whole queries and keys."""

from __future__ import annotations

from mergegraph.architectures.expert_names import QWEN
from mergegraph.architectures.moe import EVERYWHERE, Back, MoeFamily

MOE = MoeFamily(
    ("flex_olmo",),
    "FlexOlmoForCausalLM",
    QWEN,
    must=("post_norm", "qk_norm_full"),
    can=EVERYWHERE,
    biases=("q", "k", "v", "o"),
    bias_key="attention_bias",
    expert_keys=("num_experts",),
    fixed={"norm_topk_prob": True, "output_router_logits": False},
    defaults={"rope_theta": 500000.0, "rms_norm_eps": 1e-6, "pad_token_id": 100277, "eos_token_id": 100257},
    back=(Back("olmo2", "Olmo2ForCausalLM"),),
)
