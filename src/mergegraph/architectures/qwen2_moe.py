"""Qwen 2 MoE: biased queries, keys and values, and one shared expert behind a sigmoid."""

from __future__ import annotations

from mergegraph.architectures.expert_names import QWEN
from mergegraph.architectures.moe import EVERYWHERE, Back, DenseLayers, MoeFamily
from mergegraph.architectures.shared_names import shared_expert
from mergegraph.architectures.windows import listed_windows

MOE = MoeFamily(
    ("qwen2_moe",),
    "Qwen2MoeForCausalLM",
    QWEN,
    shared=shared_expert("refused"),
    can=(*EVERYWHERE, "window", "mixed_window"),
    biases=("q", "k", "v"),
    bias_key="qkv_bias",
    # Older loaders know no qkv_bias and expect biases always: zeros are right for all of them.
    always_biased=True,
    expert_keys=("num_experts",),
    size_keys=("moe_intermediate_size",),
    fixed={"norm_topk_prob": True, "decoder_sparse_step": 1, "output_router_logits": False},
    extra=listed_windows,
    dense_layers=DenseLayers("mlp_only_layers", "dense"),
    old_names=("Qwen MoE", "Qwen2 MoE"),
    defaults={"bos_token_id": None, "eos_token_id": None, "use_sliding_window": False},
    back=(
        Back("qwen2", "Qwen2ForCausalLM", {"qkv_bias": (True,)}, {"qkv_bias": True}),
        Back(
            "llama",
            "LlamaForCausalLM",
            {"qkv_bias": (False,), "use_sliding_window": (False,)},
            {"qkv_bias": True, "use_sliding_window": False},
        ),
    ),
)
