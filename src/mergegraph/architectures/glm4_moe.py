"""GLM 4 MoE: DeepSeek's routing on plain attention, with whatever part of a head rotated."""

from __future__ import annotations

from typing import Any

from mergegraph.architectures.dense import Body
from mergegraph.architectures.expert_names import DEEPSEEK
from mergegraph.architectures.moe import EVERYWHERE, Back, DenseLayers, MoeFamily, Options
from mergegraph.architectures.shared_names import CORRECTION_BIAS, shared_experts


def _norms(base: Body, options: Options) -> dict[str, Any]:
    return {"use_qk_norm": "qk_norm" in base.traits}


MOE = MoeFamily(
    ("glm4_moe",),
    "Glm4MoeForCausalLM",
    DEEPSEEK,
    shared=shared_experts("zeros"),
    constants=(CORRECTION_BIAS,),
    can=(*EVERYWHERE, "qk_norm", "partial_rotary"),
    biases=("q", "k", "v"),
    bias_key="attention_bias",
    expert_keys=("n_routed_experts",),
    size_keys=("moe_intermediate_size",),
    fixed={"n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.0},
    extra=_norms,
    dense_layers=DenseLayers("first_k_dense_replace"),
    min_experts=2,
    defaults={"rms_norm_eps": 1e-5, "bos_token_id": None, "eos_token_id": None, "partial_rotary_factor": 0.5},
    back=(
        Back(
            "qwen3",
            "Qwen3ForCausalLM",
            {"use_qk_norm": (True,), "attention_bias": (False,), "partial_rotary_factor": (1.0,)},
            {"use_qk_norm": False, "attention_bias": False},
        ),
        Back(
            "qwen2",
            "Qwen2ForCausalLM",
            {"use_qk_norm": (False,), "attention_bias": (True,), "partial_rotary_factor": (1.0,)},
            {"use_qk_norm": False, "attention_bias": False},
        ),
        Back(
            "llama",
            "LlamaForCausalLM",
            {"use_qk_norm": (False,), "attention_bias": (False,), "partial_rotary_factor": (1.0,)},
            {"use_qk_norm": False, "attention_bias": False},
        ),
    ),
)
