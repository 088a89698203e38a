"""What a family calls the experts of a layer, in each of the layouts it is stored in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from mergegraph.architectures import moe_family

Form = Literal["rows", "columns", "interleaved", "flat"]
"""How stacked tensors hold their experts; I is the size of an expert, H of the model.

===========  =========================================  ========================================
form         gate and up                                down
===========  =========================================  ========================================
rows         ``[E, 2I, H]``: I rows gate, I rows up     ``[E, H, I]``
columns      ``[E, H, 2I]``: I columns gate, I up       ``[E, I, H]``, transposed
interleaved  ``[E, H, 2I]``: gate, up, gate, up …       ``[E, I, H]``, transposed
flat         ``[E*I, H]`` each, apart                   ``[E*I, H]``, transposed
===========  =========================================  ========================================
"""


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """Names of expert and router tensors, relative to their layer.

    Attributes:
        gate: per-expert name with ``{e}`` for the expert's number; None where experts have no gate.
        up: per-expert name of the other input projection; None in families that only stack.
        down: per-expert name of the output projection; None in families that only stack.
        stacked_gate_up: the tensor that holds gate and up of all experts; None where they are apart.
        stacked_down: the tensor that holds down of all experts; None in families that never stack.
        stacked_gate: the gates of all experts, where they are a tensor of their own.
        stacked_up: up of all experts, where it is a tensor of its own.
        gate_up_bias: stacked bias ``[E, 2I]``, in the order of the stacked columns.
        down_bias: stacked bias ``[E, H]``.
        form: how the stacked tensors lie.
        router: tensors with an entry for each expert: spelling beside per-expert tensors → spelling
            beside stacked ones. The first is the router's matrix ``[E, H]``.
        aliases: other stored spellings → the spelling used here.
    """

    gate: str | None = None
    up: str | None = None
    down: str | None = None
    stacked_gate_up: str | None = None
    stacked_down: str | None = None
    stacked_gate: str | None = None
    stacked_up: str | None = None
    gate_up_bias: str | None = None
    down_bias: str | None = None
    form: Form = "rows"
    router: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def per_expert(self) -> bool:
        """Whether the family has a layout with a tensor for each expert."""
        return self.down is not None

    def stacked(self) -> Iterator[str]:
        """Yield every stacked tensor, biases last."""
        yield from (n for n in (self.stacked_gate_up, self.stacked_gate, self.stacked_up) if n is not None)
        yield from (n for n in (self.stacked_down, self.gate_up_bias, self.down_bias) if n is not None)


def same(*names: str) -> dict[str, str]:
    """Names that are spelt the same beside either layout."""
    return dict(zip(names, names, strict=True))


def projections(prefix: str, *, stacked: bool = True, router: Mapping[str, str]) -> ExpertNames:
    """The commonest names: ``PREFIX.{e}.gate_proj.weight`` and ``PREFIX.gate_up_proj``."""
    each = prefix + ".{e}."
    return ExpertNames(
        each + "gate_proj.weight",
        each + "up_proj.weight",
        each + "down_proj.weight",
        prefix + ".gate_up_proj" if stacked else None,
        prefix + ".down_proj" if stacked else None,
        router=router,
    )


def numbered(
    prefix: str, stacked: str, *, router: Mapping[str, str], aliases: Mapping[str, str] | None = None
) -> ExpertNames:
    """Names of the first mixtures: ``w1`` is the gate, ``w3`` up, ``w2`` down."""
    each = prefix + ".{e}."
    return ExpertNames(
        each + "w1.weight",
        each + "w3.weight",
        each + "w2.weight",
        stacked + ".gate_up_proj",
        stacked + ".down_proj",
        router=router,
        aliases=aliases or {},
    )


QWEN = projections("mlp.experts", router=same("mlp.gate.weight"))
QWEN_SEPARATE = projections("mlp.experts", stacked=False, router=same("mlp.gate.weight"))
DEEPSEEK = projections("mlp.experts", router=same("mlp.gate.weight", "mlp.gate.e_score_correction_bias"))
MIXTRAL = numbered(
    "block_sparse_moe.experts", "mlp.experts", router={"block_sparse_moe.gate.weight": "mlp.gate.weight"}
)
GRANITE = ExpertNames(
    stacked_gate_up="block_sparse_moe.input_linear.weight",
    stacked_down="block_sparse_moe.output_linear.weight",
    router=same("block_sparse_moe.router.layer.weight"),
    aliases={
        "block_sparse_moe.experts.gate_up_proj": "block_sparse_moe.input_linear.weight",
        "block_sparse_moe.experts.down_proj": "block_sparse_moe.output_linear.weight",
        "block_sparse_moe.router.weight": "block_sparse_moe.router.layer.weight",
    },
)


def expert_names(model_type: str | None) -> ExpertNames | None:
    """How the family of `model_type` names its experts, or None if it is not known to have any."""
    found = moe_family(model_type)
    return found.names if found is not None else None
