"""Nemotron H: Mamba layers, and experts without a gate projection."""

from __future__ import annotations

from mergegraph.architectures.expert_names import ExpertNames, same
from mergegraph.architectures.moe import MoeFamily

MOE = MoeFamily(
    ("nemotron_h",),
    "NemotronHForCausalLM",
    ExpertNames(
        up="mixer.experts.{e}.up_proj.weight",
        down="mixer.experts.{e}.down_proj.weight",
        stacked_up="mixer.experts.up_proj",
        stacked_down="mixer.experts.down_proj",
        router=same("mixer.gate.weight", "mixer.gate.e_score_correction_bias"),
    ),
    buildable=False,
    expert_keys=("n_routed_experts",),
    active_key="num_experts_per_tok",
    size_keys=("moe_intermediate_size",),
)
