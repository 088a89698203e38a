"""Mixtral: the first mixture that loaders knew; softmax over the chosen experts, no biases."""

from __future__ import annotations

from mergegraph.architectures.expert_names import MIXTRAL
from mergegraph.architectures.moe import EVERYWHERE, Back, MoeFamily
from mergegraph.architectures.windows import uniform_window

MOE = MoeFamily(
    ("mixtral",),
    "MixtralForCausalLM",
    MIXTRAL,
    can=(*EVERYWHERE, "window", "scaled_embedding"),
    fixed={"output_router_logits": False, "router_jitter_noise": 0.0},
    extra=uniform_window,
    old_names=("Mixtral",),
    defaults={"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 131072},
    back=(
        Back("llama", "LlamaForCausalLM", {"sliding_window": (None, 0)}),
        Back("mistral", "MistralForCausalLM"),
    ),
)
