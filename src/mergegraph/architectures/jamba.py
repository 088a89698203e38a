"""Jamba: Mamba and attention layers; the weights of the chosen experts are not made to sum to one."""

from __future__ import annotations

from mergegraph.architectures.expert_names import projections, same
from mergegraph.architectures.moe import EVERYWHERE, Back, MoeFamily

MOE = MoeFamily(
    ("jamba",),
    "JambaForCausalLM",
    projections("feed_forward.experts", router=same("feed_forward.router.weight")),
    must=("mamba",),
    can=EVERYWHERE,
    keys=None,
    rope=False,
    expert_keys=("num_experts",),
    fixed={"expert_layer_period": 1, "expert_layer_offset": 0, "output_router_logits": False},
    exact="all active",
    min_experts=2,
    back=(Back("jamba", "JambaForCausalLM", fixed={"num_experts": 1, "num_experts_per_tok": 1}),),
)
