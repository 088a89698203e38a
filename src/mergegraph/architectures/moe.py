"""What a mixture of experts is made of: families as data, and the recipe that a build follows.

A `MoeFamily` says what the family calls its tensors, which config keys it reads, and what of a dense
model it can express. `recipe.recipe` resolves a family and the headers of dense models to a `Recipe`:
the config and every tensor of the output, with the parts that each is put together from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mergegraph.architectures.dense import Body
from mergegraph.architectures.expert_names import ExpertNames
from mergegraph.checkpoint.view import View
from mergegraph.tensorspec import DType

Layout = Literal["per-expert", "stacked"]
Extra = Callable[[Body, "Options"], Mapping[str, Any]]
"""(the base model, what is asked for) → config keys that follow from both."""

EVERYWHERE = ("head_dim", "rope_scaling")
"""What every family can express unless it says otherwise."""
BASIC_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "attention_dropout",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
    "torch_dtype",
    "dtype",
)
"""Config keys that mean the same in a dense family and in every mixture that can hold its weights."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a plan asks for.

    Attributes:
        experts: number of routed experts.
        active: experts that a token passes through.
        shared: number of shared experts that the plan lists.
        layout: how experts are stored; None: one tensor per expert where the family has that.
        zero_router: routers are zero, so that all experts are chosen with equal weight.
        keep_dense_layers: leading layers that keep the base model's MLP.
        shared_prompts: the shared experts have prompts, which give the rows of their gates.
    """

    experts: int
    active: int
    shared: int = 0
    layout: Layout | None = None
    zero_router: bool = False
    keep_dense_layers: int = 0
    shared_prompts: bool = False


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor of every mixture layer that is filled with one value.

    `axes` names its dimensions: ``E`` experts, ``H`` hidden size, ``1``.
    """

    name: str
    axes: str
    value: float = 0.0
    dtype: DType | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """The expert that every token passes through.

    Attributes:
        gate: name of the gate projection, or of the fused one (gate rows first).
        up: name of the up projection; None where `gate` holds both.
        down: name of the down projection.
        router: ``[1, H]`` weights of the sigmoid that scales its output; None: it is always on.
        size_key: config key of its size; None: it has that of the experts.
        count_key: config key of the number of shared experts, side by side in one MLP.
        absent: what an output without one has: ``refused``; ``zeros`` of the size loaders demand;
            ``none``; or the MLP of the ``base``.
    """

    gate: str
    up: str | None
    down: str
    router: str | None = None
    size_key: str | None = None
    count_key: str | None = None
    absent: Literal["refused", "zeros", "none", "base"] = "none"


@dataclass(frozen=True, slots=True)
class DenseLayers:
    """How a family's config says that the first k layers have a plain MLP.

    The value of `key` is k itself (``count``), or lists those layers (``dense``) or the others (``sparse``).
    """

    key: str
    value: Literal["count", "dense", "sparse"] = "count"


@dataclass(frozen=True, slots=True)
class Back:
    """A dense family that a mixture's body fits into, once its experts are one MLP.

    Attributes:
        model_type: the dense family.
        architecture: the class that loads it.
        when: config values of the mixture that it takes, beside `otherwise`.
        otherwise: what the mixture's class assumes for those keys.
        fixed: config values that the dense class needs beside the mixture's own.
        size_key: config key of the MLP's size.
    """

    model_type: str
    architecture: str
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    otherwise: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    size_key: str = "intermediate_size"


@dataclass(frozen=True, slots=True)
class MoeFamily:
    """A family of mixtures of experts, as data.

    Attributes:
        model_types: the config's ``model_type`` values it covers; the first is the one written.
        architecture: the class that loads it, for the config's ``architectures``.
        names: what experts and routers are called.
        buildable: whether mixtures of this family can be built; otherwise they can only be read.
        shared: its shared expert, if it can have one.
        constants: tensors of a mixture layer that are filled with one value.
        copies: tensors of a mixture layer that repeat one of the base model's: new name → its name.
        router_f32: the router's matrix is stored as float32 whatever the rest is.
        block: where a dense layer's MLP stands, for layers that stay dense: gate, up, down.
        expert_keys: config keys of the number of experts, all of which are written; a dot leads into a
            nested config.
        active_key: config key of the number of experts a token passes through.
        size_keys: config keys of the size of an expert.
        fixed: config values that are always written, since defaults of the class differ.
        extra: config values that follow from the base model.
        keys: config keys taken from the base model beside the basic ones; None: all of them, for a
            mixture whose config extends that of its dense relative.
        can: what of a dense model it can express, beside plain rotary attention before a gated MLP.
        must: what it always has, and a dense model therefore needs.
        biases: projections of the attention that have a bias, if the config asks for it.
        bias_key: the config key that asks for it; None: there are never any.
        always_biased: they are there whatever the config says.
        interleaved: its rotary dimensions lie pairwise next to each other.
        rope: the rotary embedding is written in the config's general form.
        dense_layers: how some layers stay dense; None: all layers are mixtures.
        exact: when equal experts compute what the dense model does.
        scale_in: factor on gate and up projections that makes it so.
        min_experts: the fewest experts that loaders take.
        remote: its class is not part of transformers, so it is only the default where mergekit's is.
        old_names: what mergekit calls it.
        nested: model types of multimodal models that hold the dense one → (model type, class) of the
            output.
        notes: what a user should know.
        defaults: values of its class for config keys, for reading configs that leave them out.
        back: dense families its body fits into, the first that takes its config.
    """

    model_types: tuple[str, ...]
    architecture: str
    names: ExpertNames
    buildable: bool = True
    shared: Shared | None = None
    constants: tuple[Constant, ...] = ()
    copies: Mapping[str, str] = field(default_factory=dict)
    router_f32: bool = False
    block: tuple[str, str, str] = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
    expert_keys: tuple[str, ...] = ("num_experts", "num_local_experts")
    active_key: str = "num_experts_per_tok"
    size_keys: tuple[str, ...] = ("intermediate_size",)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    extra: Extra | None = None
    keys: tuple[str, ...] | None = ()
    can: tuple[str, ...] = EVERYWHERE
    must: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    bias_key: str | None = None
    always_biased: bool = False
    interleaved: bool = False
    rope: bool = True
    dense_layers: DenseLayers | None = None
    exact: Literal["always", "all active", "zero router"] = "always"
    scale_in: float = 1.0
    min_experts: int = 1
    remote: bool = False
    old_names: tuple[str, ...] = ()
    nested: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    back: tuple[Back, ...] = ()

    @property
    def name(self) -> str:
        """What users call it."""
        return self.model_types[0]


@dataclass(frozen=True, slots=True)
class Source:
    """A dense model that a part is read from: the base, or one of the experts or shared experts."""

    kind: Literal["base", "expert", "shared"]
    index: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """Elements of a tensor of a dense model: ``scale * x + shift``.

    `view` says which ones, None all; `place` where in the output they go, None everywhere.
    """

    source: Source
    tensor: str
    view: View | None = None
    place: View | None = None
    scale: float = 1.0
    shift: float = 0.0


@dataclass(frozen=True, slots=True)
class Fill:
    """One value, everywhere or at `place`."""

    value: float
    place: View | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """Router rows of a layer, from prompts or a random stream: of the experts, or of the shared ones."""

    layer: int
    kind: Literal["router", "shared"] = "router"


@dataclass(frozen=True, slots=True)
class OutTensor:
    """A tensor of the output and what fills it; together the parts cover every element once.

    `dtype` is forced, where loaders expect one; None: what the plan says.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[Part | Fill | Gate, ...]
    dtype: DType | None = None


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why a mixture cannot be built: what is wrong, what to do, and which key of the plan is about it.

    `index` is the expert's place in the list, where `key` is ``experts`` or ``shared_experts``.
    """

    message: str
    key: str
    hint: str | None = None
    index: int | None = None

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} — {self.hint}"


@dataclass(frozen=True, slots=True)
class Recipe:
    """A mixture of experts before it is built: its config, its tensors in natural order, and remarks."""

    config: Mapping[str, Any]
    tensors: tuple[OutTensor, ...]
    notes: tuple[str, ...] = ()
