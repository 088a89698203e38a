"""The keys of every kind of plan, as data: readers accept exactly these, and the documentation lists them."""

from __future__ import annotations

from dataclasses import dataclass

REQUIRED = "required"


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a mapping: what its value looks like, what holds without it, and what it means."""

    name: str
    value: str
    default: str
    doc: str


@dataclass(frozen=True, slots=True)
class Section:
    """One mapping of a plan: its keys in the order to list them.

    Attributes:
        title: what the mapping is.
        intro: a few sentences of Markdown.
        keys: all that it may hold.
    """

    title: str
    intro: str
    keys: tuple[Key, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all keys."""
        return tuple(key.name for key in self.keys)


_DTYPE = "`bfloat16`, `float16`, `float32` or `float64`"
_OUT_DTYPE = Key("out_dtype", _DTYPE, "`dtype`", "The dtype that is written.")
_SEED = Key("seed", "whole number", "0", "Fixes everything random; `--seed` takes precedence.")
_LAYOUT = Key(
    "expert_layout",
    "`per-expert` or `stacked`",
    "`per-expert`",
    "One tensor per expert, which every loader reads, or one per layer.",
)
_COPIED = Key(
    "dtype", _DTYPE, "that of the tensors", "The dtype that is written, unless `out_dtype` says it."
)
_ARCHITECTURE = Key(
    "architecture", "name", "the first that fits", "The family to write, `mixtral` for example."
)
_MOE = Key("model", "model", REQUIRED, "A mixture of experts.")

MERGE = Section(
    "Merge plan",
    "One model from several. Exactly one of `models` and `slices`.",
    (
        Key("merge_method", "name", REQUIRED, "One of the [methods](methods.md)."),
        Key("models", "list", "–", "The models to merge, whole."),
        Key("slices", "list", "–", "The runs of layers that the result consists of, from first to last."),
        Key("base_model", "model", "none", "What task vectors are differences from; `config.json` is its."),
        Key("parameters", "mapping", "none", "Values for all models and slices, by name."),
        Key(
            "dtype", _DTYPE, "that of the models", "`float64` is computed in; others only name the output's."
        ),
        _OUT_DTYPE,
        Key("tokenizer_source", "`base` or model", "`base`", "Whose tokenizer the result has."),
        Key("tokenizer", "mapping", "none", "The same, with tokens by name."),
        Key("chat_template", "name or text", "the base model's", "The chat template of the result."),
        _SEED,
        Key(
            "unmatched",
            "`error`, `copy` or `drop`",
            "`error`",
            "What becomes of a tensor that some models lack.",
        ),
    ),
)

SOURCE = Section(
    "Entry of `models:`",
    "",
    (
        Key("model", "model", REQUIRED, "The model."),
        Key("parameters", "mapping", "none", "Values for this model alone."),
    ),
)

SLICE = Section(
    "Entry of `slices:`",
    "",
    (
        Key("sources", "list", REQUIRED, "Equally many layers of each model."),
        Key("base_model", "model", "the plan's", "The base model of this slice."),
        Key("parameters", "mapping", "none", "Values for this slice."),
        Key("residual_weight", "number", "–", "Accepted without effect."),
    ),
)

SLICE_SOURCE = Section(
    "Entry of `sources:`",
    "",
    (
        Key("model", "model", REQUIRED, "The model."),
        Key("layer_range", "`[start, end]`", REQUIRED, "Its layers, counted from 0, without `end`."),
        Key("parameters", "mapping", "none", "Values for these layers of this model."),
    ),
)

MOE = Section(
    "MoE plan",
    "Dense models become the experts of a mixture. The keys are those of `mergekit-moe`, and a few more. A "
    "model here is a reference, an inline merge plan (a mapping with `merge_method`) or the name of a stage: "
    "documents before the last one, separated by `---`, are merge plans with a `name:`. Neither writes a "
    "checkpoint of its own.",
    (
        Key("base_model", "model", REQUIRED, "Gives every tensor outside the experts, config and tokenizer."),
        Key("experts", "list", REQUIRED, "The experts, in the order of the router's rows."),
        Key("shared_experts", "list", "none", "Experts that every token uses; same keys."),
        Key(
            "gate_mode",
            "name",
            "`hidden`",
            "Where router rows come from. `hidden` (or `hidden_last`), `hidden_avg`: the base model's hidden "
            "states on the prompts; `router_input`, `router_input_avg`: what the router itself sees; "
            "`cheap_embed`: the prompts' embeddings; `random`, `uniform_random`, `zero`: no prompts.",
        ),
        Key("router", "mapping", "none", "How rows are scaled; see below."),
        Key(
            "experts_per_token",
            "whole number",
            "2",
            "How many experts a token uses (1 if there is one only).",
        ),
        _ARCHITECTURE,
        _LAYOUT,
        Key("backbone", "mapping", "none", "Merges the tensors outside the experts; see below."),
        Key("dtype", _DTYPE, "the base model's", "The dtype that is written, unless `out_dtype` says it."),
        _OUT_DTYPE,
        _SEED,
    ),
)

EXPERT = Section(
    "Entry of `experts:` and `shared_experts:`",
    "A list of prompts may be a single string.",
    (
        Key("source_model", "model", REQUIRED, "Whose feed-forward layers become this expert."),
        Key("positive_prompts", "list of strings", "none", "Text for this expert; most gate modes need it."),
        Key("negative_prompts", "list of strings", "none", "Text that is not for this expert."),
        Key("noise_scale", "number ≥ 0", "none", "Adds this much normal noise to the expert's weights."),
        Key("residual_scale", "number", "none", "Multiplies what the expert adds (its down projection)."),
    ),
)

ROUTER = Section(
    "`router:`",
    "",
    (
        Key(
            "centre",
            "`true` or `false`",
            "`false`",
            "Subtracts what the prompts of all experts have in common.",
        ),
        Key("temperature", "number > 0", "1.0", "Divides rows from prompts: above 1 routing is more even."),
        Key("std", "number > 0", "1.0", "Standard deviation of the rows of `gate_mode: random`."),
    ),
)

BACKBONE = Section(
    "`backbone:`",
    "A merge plan for the tensors outside the experts, instead of the base model's (branch-train-mix). "
    "Without `models` and `slices` it merges the experts' models, each once, and a method that requires a "
    "base model gets that of the MoE plan. With them it is a merge plan like any other, and it may be the "
    "name of a stage. In the short form:",
    (
        Key("merge_method", "name", REQUIRED, MERGE.keys[0].doc),
        Key("parameters", "mapping", "none", "Values for all models, by name."),
        Key("base_model", "model", "see above", "The base model of the merge."),
        Key("dtype", _DTYPE, "that of the models", "What the merge is computed in, if `float64`."),
        Key("seed", "whole number", "the plan's", "Fixes everything random in the merge."),
        Key("unmatched", "`error`, `copy` or `drop`", "`error`", MERGE.keys[-1].doc),
    ),
)

_SURGERY = Key("surgery", "`upcycle`, `extract`, `prune` or `align`", REQUIRED, "The kind of plan.")

UPCYCLE = Section(
    "Surgery: upcycle",
    "A mixture whose experts all start from one dense model. The model may be an inline merge or a stage.",
    (
        _SURGERY,
        Key("model", "model", REQUIRED, "A dense model."),
        Key("experts", "whole number", REQUIRED, "How many experts the result has."),
        Key("experts_per_token", "whole number", "2 × `granularity`", "How many experts a token uses."),
        _ARCHITECTURE,
        Key(
            "method",
            "`sparse` or `drop`",
            "`sparse`",
            "Plain copies, or copies with some neurons drawn anew.",
        ),
        Key("ratio", "number in (0, 1]", "0.5", "`drop`: the share of neurons that each expert draws anew."),
        Key("noise_scale", "number ≥ 0", "none", EXPERT.keys[3].doc),
        Key(
            "granularity",
            "whole number",
            "1",
            "Splits each copy into so many experts, that share its neurons; `experts` and "
            "`experts_per_token` are multiples of it.",
        ),
        Key("gate_mode", "`random`, `uniform_random` or `zero`", "`random`", "Where router rows come from."),
        Key(
            "router", "mapping", "none", "`std`, the rows' standard deviation with `random`: 0.02 by default."
        ),
        _LAYOUT,
        _COPIED,
        _OUT_DTYPE,
        _SEED,
    ),
)

EXTRACT = Section(
    "Surgery: extract",
    "A dense model from experts of a mixture. Exactly one of `expert` and `experts`.",
    (
        _SURGERY,
        _MOE,
        Key("expert", "whole number", "–", "The expert to take, in every layer, counted from 0."),
        Key("experts", "list of whole numbers", "–", "The experts to combine."),
        Key(
            "mode",
            "`pick`, `mean` or `concatenate`",
            "`pick` or `mean`",
            "`pick` takes one expert as it is, `mean` averages, `concatenate` keeps all neurons.",
        ),
        Key("weights", "list of numbers", "equal", "One for each of `experts`; divided by their sum."),
        Key("architecture", "name", "the family's own", "The dense family to write, `llama` for example."),
        _COPIED,
        _OUT_DTYPE,
    ),
)

PRUNE = Section(
    "Surgery: prune",
    "A mixture with fewer experts. Exactly one of `keep` and `scores`. Every layer keeps equally many.",
    (
        _SURGERY,
        _MOE,
        Key(
            "keep",
            "list, or mapping of layers to lists",
            "–",
            "The experts that stay, in the new order: the same in every layer, or by layer.",
        ),
        Key(
            "scores",
            "file",
            "–",
            "Scores of all experts by layer (`.json`, `.yml` or `.csv`); high ones stay.",
        ),
        Key("count", "whole number", "–", "With `scores`: how many experts stay."),
        Key(
            "experts_per_token", "whole number", "as before, if enough stay", "How many experts a token uses."
        ),
        _LAYOUT,
        _COPIED,
        _OUT_DTYPE,
    ),
)

ALIGN = Section(
    "Surgery: align",
    "Mixtures are merged expert by expert, after matching the experts of each with those of one of them.",
    (
        _SURGERY,
        Key("merge_method", "name", REQUIRED, MERGE.keys[0].doc),
        Key(
            "models", "list", REQUIRED, "The mixtures, as models or as entries with `model` and `parameters`."
        ),
        Key("base_model", "model", "none", MERGE.keys[3].doc),
        Key("reference", "model", "the base model, else the first", "Whose order of experts the result has."),
        Key("by", "`router` or `weights`", "`router`", "What is compared to match experts."),
        Key("parameters", "mapping", "none", "Values for all models, by name."),
        _LAYOUT,
        Key("dtype", _DTYPE, "that of the models", MERGE.keys[5].doc),
        _OUT_DTYPE,
        _SEED,
    ),
)

SECTIONS = (
    *(MERGE, SOURCE, SLICE, SLICE_SOURCE, MOE, EXPERT, ROUTER, BACKBONE),
    *(UPCYCLE, EXTRACT, PRUNE, ALIGN),
)
