"""DeepSeek's first MoE, whose class is not part of transformers: its code comes from the model hub."""

from __future__ import annotations

from typing import Any

from mergegraph.architectures.dense import Body
from mergegraph.architectures.expert_names import QWEN_SEPARATE
from mergegraph.architectures.moe import Back, DenseLayers, MoeFamily, Options
from mergegraph.architectures.shared_names import shared_experts

_CODE = "deepseek-ai/deepseek-moe-16b-base"


def _read_by_remote_code(base: Body, options: Options) -> dict[str, Any]:
    """Keys that the remote code takes in another form than transformers does."""
    rope = {
        k: v for k, v in base.rope.items() if k not in ("rope_theta", "rope_type", "partial_rotary_factor")
    }
    kind = base.rope["rope_type"]
    return {
        "rope_theta": base.rope["rope_theta"],
        "rope_scaling": None if kind == "default" else {"type": kind, **rope},
        "n_shared_experts": options.shared or None,
    }


MOE = MoeFamily(
    ("deepseek",),
    "DeepseekForCausalLM",
    QWEN_SEPARATE,
    shared=shared_experts("none"),
    can=(),
    biases=("q", "k", "v", "o"),
    bias_key="attention_bias",
    rope=False,
    expert_keys=("n_routed_experts",),
    size_keys=("moe_intermediate_size",),
    fixed={
        "norm_topk_prob": True,
        "scoring_func": "softmax",
        "moe_layer_freq": 1,
        "auto_map": {
            "AutoConfig": f"{_CODE}--configuration_deepseek.DeepseekConfig",
            "AutoModel": f"{_CODE}--modeling_deepseek.DeepseekModel",
            "AutoModelForCausalLM": f"{_CODE}--modeling_deepseek.DeepseekForCausalLM",
        },
    },
    extra=_read_by_remote_code,
    dense_layers=DenseLayers("first_k_dense_replace"),
    remote=True,
    back=(Back("llama", "LlamaForCausalLM"),),
    old_names=("DeepSeek MoE",),
    notes=(
        "deepseek needs trust_remote_code to load: its code comes from the model hub; "
        "glm4_moe routes alike and is part of transformers",
    ),
)
