"""Llama 4: every fourth layer has no rotary embedding, and every n-th is a mixture of experts."""

from __future__ import annotations

from typing import Any

from mergegraph.architectures.base import Family, every_nth
from mergegraph.architectures.dense import Body
from mergegraph.architectures.expert_names import ExpertNames, same
from mergegraph.architectures.moe import EVERYWHERE, DenseLayers, MoeFamily, Options, Shared

FAMILY = Family(
    ("llama4_text", "llama4"),
    {
        "no_rope_layers": every_nth(4, "no_rope_layer_interval", 0, 1),
        "moe_layers": every_nth(1, "interleave_moe_layer_step", True, False),
    },
)


def _plain_attention(base: Body, options: Options) -> dict[str, Any]:
    return {
        "intermediate_size_mlp": base.number("intermediate_size"),
        "no_rope_layers": list(base.rope_layers or (1,) * base.layers),
        "layer_types": ["full_attention"] * base.layers,
        "interleave_moe_layer_step": 1,
    }


MOE = MoeFamily(
    ("llama4_text", "llama4"),
    "Llama4ForCausalLM",
    ExpertNames(
        stacked_gate_up="feed_forward.experts.gate_up_proj",
        stacked_down="feed_forward.experts.down_proj",
        form="columns",
        router=same("feed_forward.router.weight"),
    ),
    shared=Shared(
        "feed_forward.shared_expert.gate_proj.weight",
        "feed_forward.shared_expert.up_proj.weight",
        "feed_forward.shared_expert.down_proj.weight",
        absent="zeros",
    ),
    block=("feed_forward.gate_proj.weight", "feed_forward.up_proj.weight", "feed_forward.down_proj.weight"),
    can=(*EVERYWHERE, "no_rope_layers"),
    biases=("q", "k", "v", "o"),
    bias_key="attention_bias",
    interleaved=True,
    expert_keys=("num_local_experts",),
    fixed={"use_qk_norm": False, "attn_temperature_tuning": False, "output_router_logits": False},
    extra=_plain_attention,
    dense_layers=DenseLayers("moe_layers", "sparse"),
    exact="zero router",
    scale_in=2.0,
    notes=("llama4_text is the dense model only while its routers are zero: sigmoid(0) is one half",),
)
