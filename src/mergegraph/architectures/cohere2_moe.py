"""Command A MoE: attention beside the MLP behind one layer norm."""

from __future__ import annotations

from typing import Any

from mergegraph.architectures.dense import Body
from mergegraph.architectures.expert_names import QWEN
from mergegraph.architectures.moe import EVERYWHERE, Back, MoeFamily, Options
from mergegraph.architectures.shared_names import shared_experts


def _layers(base: Body, options: Options) -> dict[str, Any]:
    kinds = ["sliding_attention" if slides else "full_attention" for slides in base.windows]
    return {"layer_types": kinds, "mlp_layer_types": ["sparse"] * base.layers}


MOE = MoeFamily(
    ("cohere2_moe",),
    "Cohere2MoeForCausalLM",
    QWEN,
    shared=shared_experts("none", count_key="num_shared_experts"),
    must=("cohere2_block",),
    can=(*EVERYWHERE, "window", "mixed_window"),
    biases=("q", "k", "v", "o"),
    keys=None,
    interleaved=True,
    expert_keys=("num_experts",),
    fixed={
        "norm_topk_prob": True,
        "expert_selection_fn": "softmax",
        "shared_expert_combination_strategy": "sum",
        "rms_norm_eps": None,  # a value turns its layer norms into RMS norms
        "output_router_logits": False,
    },
    extra=_layers,
    defaults={"sliding_window": 4096, "tie_word_embeddings": True},
    back=(Back("cohere2", "Cohere2ForCausalLM", {"rms_norm_eps": (None,)}),),
)
