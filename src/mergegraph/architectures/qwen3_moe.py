"""Qwen 3 MoE: norms on query and key heads, no shared expert."""

from __future__ import annotations

from mergegraph.architectures.expert_names import QWEN
from mergegraph.architectures.moe import EVERYWHERE, Back, DenseLayers, MoeFamily
from mergegraph.architectures.windows import switched_window

MOE = MoeFamily(
    ("qwen3_moe",),
    "Qwen3MoeForCausalLM",
    QWEN,
    must=("qk_norm",),
    can=(*EVERYWHERE, "window"),
    biases=("q", "k", "v", "o"),
    bias_key="attention_bias",
    size_keys=("moe_intermediate_size",),
    fixed={"norm_topk_prob": True, "decoder_sparse_step": 1, "output_router_logits": False},
    extra=switched_window,
    dense_layers=DenseLayers("mlp_only_layers", "dense"),
    old_names=("Qwen3 MoE",),
    defaults={"bos_token_id": None, "eos_token_id": None, "use_sliding_window": False},
    back=(Back("qwen3", "Qwen3ForCausalLM", fixed={"max_window_layers": 0}),),
)
