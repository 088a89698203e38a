"""MoE plans: everything they may say, and every way to be refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergegraph.graph.node import Origin
from mergegraph.plan.kinds import AnyPlan, parse_any, read_any
from mergegraph.plan.merge import MergePlan
from mergegraph.plan.models import name_of
from mergegraph.plan.moe import MoePlan
from mergegraph.plan.router import GATE_MODES, RouterOptions
from mergegraph.plan.source import Problems
from mergegraph.plan.surgery import AlignPlan, ExtractPlan, PrunePlan, UpcyclePlan
from mergegraph.plan.values import ModelRef
from mergegraph.tensorspec import DType
from tests.plan.refusals import refusal

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "moe").glob("*.yml"))

FULL = """\
base_model: org/base@main
gate_mode: router_input
router: {centre: true, temperature: 2}
dtype: float32
out_dtype: bfloat16
seed: 3
experts_per_token: 1
architecture: Qwen MoE
expert_layout: stacked
experts:
  - source_model: org/a
    positive_prompts: [one, two]
    negative_prompts: three
    noise_scale: 1e-3
    residual_scale: -0.5
  - source_model: {model: org/b, override_architecture: X}
    positive_prompts: four
shared_experts:
  - source_model: org/base@main
    positive_prompts:
      - five
"""

STAGED = """\
# the stages
name: chat
merge_method: slerp
base_model: s1
models: [{model: s1}, {model: s2}]
parameters: {t: 0.5}
---
name: code
merge_method: linear
models:
  - model: s3
---
base_model: chat
gate_mode: zero
experts:
  - source_model: chat
  - source_model: code
  - source_model:
      merge_method: ties
      models: [{model: i1}]
      base_model: i2
  - source_model: plain
"""


def moe(text: str) -> MoePlan:
    plan = parse_any(text, "p.yml")
    assert isinstance(plan, MoePlan)
    return plan


def plan_with(*lines: str, mode: str = "random") -> str:
    """A plan of two experts on lines 4 and 5; `lines` start on line 6, and belong to the second expert."""
    head = ["base_model: b", f"gate_mode: {mode}", "experts:", "- source_model: x", "- source_model: y"]
    return "\n".join([*head, *lines, ""])


def prompted(first: str, second: str, *lines: str) -> str:
    return "\n".join(
        [
            "base_model: b",
            "experts:",
            f"- {{source_model: x, {first}}}",
            f"- {{source_model: y, {second}}}",
            *lines,
        ]
    )


def names(plan: AnyPlan) -> list[str]:
    return [str(model) for model in plan.referenced_models()]


def test_a_plan_is_read_completely() -> None:
    plan = moe(FULL)
    assert (plan.base, plan.base_origin) == (ModelRef("org/base", "main"), Origin("p.yml", 1))
    assert (plan.gate_mode, plan.gate_origin.line) == ("router_input", 2)
    assert plan.router == RouterOptions(centre=True, temperature=2.0, std=1.0)
    assert (plan.dtype, plan.out_dtype, plan.seed) == (DType.F32, DType.BF16, 3)
    assert (plan.experts_per_token, plan.experts_per_token_origin.line) == (1, 7)
    assert (plan.architecture, plan.architecture_origin.line) == ("Qwen MoE", 8)
    assert (plan.expert_layout, plan.backbone) == ("stacked", None)
    first, second = plan.experts
    assert (first.model, first.origin.line) == (ModelRef("org/a"), 11)
    assert (first.positive, first.negative) == (("one", "two"), ("three",))
    assert (first.noise_scale, first.residual_scale) == (0.001, -0.5)
    assert second.model == ModelRef("org/b", override_architecture="X")
    assert (second.positive, second.negative, second.noise_scale) == (("four",), (), None)
    assert [(e.model, e.positive) for e in plan.shared] == [(ModelRef("org/base", "main"), ("five",))]
    assert (plan.text, plan.file, plan.notes) == (FULL, "p.yml", ())


def test_what_is_not_given_has_its_default() -> None:
    plan = moe("base_model: b\nexperts: [{source_model: x, positive_prompts: [p]}]\n")
    assert (plan.gate_mode, plan.gate_origin.line, plan.experts_per_token) == ("hidden", 1, 1)
    assert (plan.router, plan.shared, plan.backbone) == (RouterOptions(), (), None)
    assert (plan.dtype, plan.out_dtype, plan.seed, plan.architecture, plan.expert_layout) == (None,) * 5
    assert moe(plan_with()).experts_per_token == 2


def test_null_means_not_given() -> None:
    keys = ("dtype", "out_dtype", "seed", "experts_per_token", "architecture", "shared_experts", "router")
    inner = ("  positive_prompts:", "  negative_prompts:", "  noise_scale:", "  residual_scale:")
    plan = moe(plan_with(*inner, *(f"{key}:" for key in (*keys, "backbone", "expert_layout"))))
    assert plan.experts == moe(plan_with()).experts
    assert (plan.experts_per_token, plan.router, plan.backbone) == (2, RouterOptions(), None)


def test_every_model_is_named_once_in_file_order() -> None:
    plan = moe(FULL)
    assert names(plan) == ["org/base@main", "org/a", "org/b"]
    assert [str(model) for model in plan.models()] == ["org/base@main", "org/a", "org/b"]
    assert plan.origin_of(ModelRef("org/base", "main")).line == 1
    assert plan.origin_of(ModelRef("org/b", override_architecture="X")).line == 16


def test_models_may_be_stages_and_inline_merges() -> None:
    """The base and the first expert are one merge, which `models` says once."""
    plan = moe(STAGED)
    assert isinstance(plan.base, MergePlan)
    assert plan.base is plan.experts[0].model
    assert [name_of(model) for model in plan.models()] == ["chat", "code", "merge on line 19", "plain"]
    assert (plan.base.method, plan.base.name, plan.base.text) == ("slerp", "chat", STAGED)
    assert names(plan) == ["s1", "s2", "s3", "i1", "i2", "plain"]
    assert plan.origin_of(ModelRef("s2")).line == 5


def test_an_inline_merge_behind_an_alias_is_one_model() -> None:
    text = (
        "base_model: &m\n  merge_method: linear\n  models: [{model: a}]\ngate_mode: zero\n"
        "experts: [{source_model: *m}]"
    )
    assert len(moe(text).models()) == 1


def test_anchors_end_with_their_document() -> None:
    text = "name: s\nmerge_method: x\nmodels: &l [{model: a}]\n---\nbase_model: s\nexperts: *l\n"
    assert refusal(text)[0] == (
        6,
        "p.yml:6: the alias *l stands for nothing — define it (&l) above its use, outside of itself",
    )


def test_a_backbone_without_models_merges_those_of_the_experts() -> None:
    text = plan_with("- source_model: x", "backbone:", "  merge_method: ties", "  parameters: {weight: 0.5}")
    backbone = moe(text).backbone
    assert backbone is not None
    assert [str(source.model) for source in backbone.plan.models] == ["x", "y"]
    assert [source.origin.line for source in backbone.plan.models] == [4, 5]
    assert (backbone.plan.method, backbone.plan.method_origin.line) == ("ties", 8)
    assert backbone.plan.parameters["weight"].conditions[0].value == 0.5
    assert backbone.merge(base_required=False).base_model is None
    assert backbone.merge(base_required=True).base_model == ModelRef("b")


def test_a_backbone_may_name_its_own_base() -> None:
    backbone = moe(plan_with("backbone: {merge_method: ties, base_model: c}")).backbone
    assert backbone is not None
    assert backbone.merge(base_required=True).base_model == ModelRef("c")
    assert names(moe(plan_with("backbone: {merge_method: ties, base_model: c}"))) == ["b", "x", "y", "c"]


def test_a_backbone_with_models_is_a_merge_plan_of_its_own() -> None:
    plan = moe(plan_with("backbone:", "  merge_method: linear", "  models: [{model: p}, {model: q}]"))
    assert plan.backbone is not None
    assert plan.backbone.merge(base_required=True).base_model is None
    assert names(plan) == ["b", "x", "y", "p", "q"]


def test_a_backbone_may_be_a_stage() -> None:
    text = "name: s\nmerge_method: linear\nmodels: [{model: p}]\n---\n" + plan_with("backbone: s")
    plan = moe(text)
    assert plan.backbone is not None
    assert plan.backbone.plan.name == "s"
    assert names(plan) == ["p", "b", "x", "y"]


@pytest.mark.parametrize("mode", GATE_MODES)
def test_prompts_are_needed_by_the_modes_that_read_them(mode: str) -> None:
    prompts = "  positive_prompts: [{}]"
    text = plan_with(mode=mode)
    if GATE_MODES[mode]:
        assert [line for line, _ in refusal(text)] == [4, 5]
        text = text.replace("x\n", f"x\n{prompts.format('p')}\n").replace(
            "y\n", f"y\n{prompts.format('q')}\n"
        )
    assert moe(text).gate_mode == mode


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (plan_with("  positive_prompts: [p]"), 5, "prompts have no effect with gate_mode random"),
        (plan_with("- source_model: z"), 3, "3 experts is not a power of two"),
        (plan_with().replace("y", "x"), 3, "all experts are the same model"),
        (
            prompted(
                "positive_prompts: p", "positive_prompts: q", "- {source_model: z, positive_prompts: q}"
            ),
            5,
            "the prompts are those of the expert on line 4: their router rows are equal",
        ),
    ],
)
def test_what_is_odd_but_allowed_is_noted(text: str, line: int, said: str) -> None:
    notes = moe(text).notes
    assert any(note.startswith(f"p.yml:{line}: ") and said in note for note in notes), notes


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("  sorce_model: z", "did you mean 'source_model'?"),
        ("  positive_promts: [a]", "did you mean 'positive_prompts'?"),
        ("  weight: 1", "an expert has no key 'weight'"),
        ("  positive_prompts: {a: b}", "quote prompts that contain ': '"),
        ("  positive_prompts: [{a: b}]", "quote prompts that contain ': '"),
        ("  positive_prompts: [1]", "a prompt must be a string, not an integer — quote it"),
        ("  negative_prompts: [yes]", "a prompt must be a string, not a boolean"),
        ("  noise_scale: -1", "noise_scale is -1, less than 0"),
        ("  noise_scale: much", "noise_scale must be a finite number, not 'much'"),
        ("  noise_scale: .inf", "must be a finite number"),
        ("  residual_scale: true", "must be a finite number, not a boolean"),
        ("- y", "an expert must be a mapping, not a string"),
        ("- positive_prompts: []", "an expert needs source_model"),
        ("- source_model:", "an expert needs source_model"),
        ("- source_model: 3", "a model must be named by a string"),
        ("- source_model: {experts: []}", "this is a plan for a mixture of experts"),
        ("- source_model: {surgery: prune}", "this is a plan for surgery"),
        ("- source_model: {merge_method: x}", "the plan merges nothing"),
        ("- source_model: {merge_method: x, models: [{model: a}], modles: 1}", "did you mean 'models'?"),
        ("expert_per_token: 1", "did you mean 'experts_per_token'?"),
        ("experts_per_token: 0", "must be a whole number of at least 1, not 0"),
        ("experts_per_token: 2.0", "must be a whole number of at least 1, not a number"),
        (
            "experts_per_token: 3",
            "experts_per_token is 3, but there are 2 experts — write a number from 1 to 2",
        ),
        ("shared_experts: []", "shared_experts is empty"),
        ("shared_experts: [{}]", "a shared expert needs source_model"),
        ("shared_experts: {source_model: a}", "shared_experts must be a list"),
        ("architecture: 3", "architecture must be a string"),
        ("architecture: ' '", "not an empty string"),
        ("dtype: bf16", "did you mean 'bfloat16'?"),
        ("out_dtype: int64", "cannot be merged in"),
        ("seed: -1", "seed must be an integer"),
        ("expert_layout: fused", "expert_layout must be one of per-expert, stacked"),
        ("expert_layout: stack", "did you mean 'stacked'?"),
        ("router: {center: true}", "did you mean 'centre'?"),
        ("router: {std: 0}", "std must be greater than 0, not 0"),
        ("router: {temperature: 2}", "temperature has no effect with gate_mode random"),
        ("router: {centre: true}", "centre has no effect with gate_mode random"),
        ("router: 2", "router must be a mapping"),
        ("backbone: linear", "backbone must be a merge plan or the name of a stage, not a string"),
        ("backbone: {parameters: {weight: 1}}", "merge_method is missing"),
        ("backbone: {merge_method: x, weight: 1}", "write it below 'parameters:'"),
        ("backbone: {merge_method: x, out_dtype: bfloat16}", "without models has no key 'out_dtype'"),
        ("backbone: {merge_method: x, experts: []}", "this is a plan for a mixture of experts"),
        ("backbone: {merge_method: x, models: []}", "models is empty"),
        ("parameters: {}", "a MoE plan has no key 'parameters' — parameters belong to a merge"),
        ("tokenizer_source: base", "the tokenizer is the base model's"),
        ("name: x", "only stages"),
        ("bogus: 1", "the keys are base_model, experts"),
    ],
)
def test_a_wrong_key_is_a_problem_at_its_line(line: str, said: str) -> None:
    ((at, problem),) = refusal(plan_with(line))
    assert at == 6
    assert said in problem


def test_std_is_for_random_rows_only() -> None:
    ((line, problem),) = refusal(plan_with("router: {std: 2}", mode="uniform_random"))
    assert (line, "std has no effect with gate_mode uniform_random" in problem) == (6, True)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("gate_mode: zero\nexperts: [{source_model: a}]", 1, "a MoE plan needs base_model"),
        ("base_model: a\ngate_mode: zero", 1, "a MoE plan needs experts"),
        ("base_model: a\ngate_mode: zero\nexperts:", 3, "a MoE plan needs experts"),
        ("base_model: a\ngate_mode: zero\nexperts: []", 3, "experts is empty"),
        ("base_model: a\ngate_mode: zero\nexperts: x", 3, "experts must be a list"),
        ("base_model: [a]\ngate_mode: zero\nexperts: [{source_model: a}]", 1, "not a list"),
        (plan_with(mode="cheap_embedding"), 2, "did you mean 'cheap_embed'?"),
        (plan_with(mode="sometimes"), 2, "gate_mode must be one of hidden, hidden_last"),
        (
            prompted("positive_prompts: p", "positive_prompts: q", "router: {centre: 1}"),
            5,
            "centre must be true or false, not an integer",
        ),
        (prompted("positive_prompts: p", "positive_prompts: p"), 4, "all experts have the same prompts"),
        (prompted("positive_prompts: p", "positive_prompts: ' '"), 4, "a prompt is empty"),
        (
            prompted("positive_prompts: p", "negative_prompts: q"),
            4,
            "needs positive_prompts for every expert",
        ),
        (
            prompted("positive_prompts: p", "positive_prompts: []"),
            4,
            "needs positive_prompts for every expert",
        ),
        (
            prompted(
                *("positive_prompts: p", "positive_prompts: q", "shared_experts:"),
                *("- {source_model: s, positive_prompts: r}", "- source_model: t"),
            ),
            7,
            "some shared experts have positive_prompts, and this one has none",
        ),
        (
            prompted("positive_prompts: p", "positive_prompts: q", "experts_per_token: 3"),
            5,
            "there are 2 experts",
        ),
        (
            "base_model: a\ngate_mode: zero\nexperts: [{source_model: a}]\nexperts_per_token: 2",
            4,
            "there is one expert only",
        ),
        (
            "base_model: a\ngate_mode: zero\nbackbone: {merge_method: x}\nexperts:\n- source_model:\n"
            "    merge_method: linear\n    models: [{model: c}]",
            3,
            "but merge on line 6 is a merge itself",
        ),
    ],
)
def test_a_plan_that_does_not_add_up_is_a_problem_at_its_line(text: str, line: int, said: str) -> None:
    assert any(at == line and said in problem for at, problem in refusal(text)), refusal(text)


def test_negative_prompts_tell_experts_apart_too() -> None:
    text = prompted("positive_prompts: p", "positive_prompts: p, negative_prompts: q")
    assert len(moe(text).experts) == 2


def test_all_problems_are_reported_at_once_in_line_order() -> None:
    text = """\
name: s
merge_method: linear
models: [{modl: a}]
---
base_modle: s
gate_mode: randm
experts:
  - sourcemodel: x
    noise_scale: -1
  - source_model:
      merge_method: linear
      models:
        - model: a
          weight: 1
experts_per_token: 9
seed: x
"""
    assert [line for line, _ in refusal(text)] == [1, 3, 3, 5, 5, 6, 8, 8, 9, 14, 15, 16]


def test_a_plan_of_two_kinds_with_experts_is_read_on() -> None:
    text = plan_with("merge_method: x", "models: []", "seed: y", mode="rando")
    assert [line for line, _ in refusal(text)] == [2, 6, 8]


def test_a_plan_with_problems_is_still_read_for_others_to_look_at() -> None:
    problems = Problems()
    plan = read_any(plan_with("experts_per_token: 7", mode="zero"), "p.yml", problems)
    assert names(plan) == ["b", "x", "y"]
    assert len(problems.found) == 1


STAGE = "name: s\nmerge_method: linear\nmodels: [{model: a}]\n---\n"


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (STAGE + plan_with(), 1, "the stage 's' is not used"),
        (
            STAGE.replace("s\n", "coder\n", 1) + plan_with("- source_model: codr"),
            1,
            "the model 'codr' on line 10",
        ),
        (STAGE.replace("name: s\n", "") + plan_with(), 1, "a stage needs name"),
        (STAGE.replace("name: s", "name: 3") + plan_with(), 1, "name must be a string"),
        (STAGE + STAGE + plan_with("- source_model: s"), 5, "the stage 's' is there twice (first on line 1)"),
        ("- a\n---\n" + plan_with(), 1, "a stage must be a mapping, not a list"),
        (plan_with() + "---\n" + STAGE[:-4], 2, "earlier documents are merge plans; put it last"),
        (plan_with() + "---\n" + STAGE[:-4], 7, "a merge plan has no key 'name'"),
        (STAGE + "merge_method: x\nmodels: [{model: s}]", 5, "the last document is a merge plan"),
        (
            STAGE + STAGE.replace("s\n", "t\n", 1).replace(": a", ": s"),
            9,
            "a plan must be a mapping, not nothing",
        ),
        (
            STAGE + STAGE.replace("s\n", "t\n", 1).replace(": a", ": s") + plan_with(),
            7,
            "cannot use the stage 's'",
        ),
        (
            STAGE + plan_with("- source_model: s", "- source_model: {merge_method: x, models: [{model: s}]}"),
            11,
            "a merge cannot use the stage 's'",
        ),
        (STAGE + "surgery: prune\nmodel: s\nkeep: [0]", 6, "a pruning plan takes a checkpoint, not a merge"),
    ],
)
def test_stages_that_cannot_be_are_refused(text: str, line: int, said: str) -> None:
    assert any(at == line and said in problem for at, problem in refusal(text)), refusal(text)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("merge_method: x\nmodels: [{model: a}]\nexperts: []", 3, "'experts' is for a mixture of experts"),
        ("experts: []\nbase_model: a\nmodels: []", 3, "'models' is for a merge, but 'experts' (line 1)"),
        ("experts: []\nmodels: []", 2, "a merge stands below source_model:"),
        ("merge_method: x\nmodels: []\ngate_mode: random", 3, "for a merge, remove this"),
        ("gate_mode: random\nmerge_method: x\nmodels: []", 2, "for a merge, remove 'gate_mode'"),
        ("base_model: a\ndtype: float32", 1, "it is not clear what kind of plan this is"),
        ("base_model: a\nexpert: []", 2, "did you mean 'experts'?"),
        ("surgrey: prune", 1, "did you mean 'surgery'?"),
        ("- a", 1, "a plan must be a mapping, not a list"),
        ("surgery: prun", 1, "did you mean 'prune'?"),
        ("surgery:", 1, "a plan for surgery needs surgery"),
        ("surgery: [1]", 1, "surgery must be one of upcycle, extract, prune, align"),
    ],
)
def test_the_kind_of_plan_is_told_or_asked_for(text: str, line: int, said: str) -> None:
    assert any(at == line and said in problem for at, problem in refusal(text)), refusal(text)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("merge_method: x\nmodels: [{model: a}]", MergePlan),
        ("merge_method: x\nslices: [{sources: [{model: a, layer_range: [0, 1]}]}]", MergePlan),
        (plan_with(), MoePlan),
        ("surgery: upcycle\nmodel: a\nexperts: 2", UpcyclePlan),
        ("surgery: extract\nmodel: a\nexpert: 2", ExtractPlan),
        ("surgery: prune\nmodel: a\nkeep: [2]", PrunePlan),
        ("surgery: align\nmerge_method: x\nmodels: [a, b]", AlignPlan),
    ],
)
def test_every_kind_of_plan_is_recognised(text: str, kind: type) -> None:
    assert isinstance(parse_any(text, "p.yml"), kind)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_an_example_plan_is_read_without_a_remark(config: Path) -> None:
    plan = parse_any(config.read_text(encoding="utf-8"), config.name)
    assert plan.notes == ()
    assert plan.referenced_models()
