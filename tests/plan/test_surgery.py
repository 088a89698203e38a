"""Plans for surgery: everything they may say, and every way to be refused."""

from __future__ import annotations

from typing import TypeVar

import pytest

from mergegraph.plan.kinds import parse_any, read_any
from mergegraph.plan.merge import MergePlan
from mergegraph.plan.router import RouterOptions
from mergegraph.plan.source import Problems
from mergegraph.plan.surgery import AlignPlan, ExtractPlan, PrunePlan, ScoreFile, UpcyclePlan
from mergegraph.plan.values import ModelRef
from mergegraph.tensorspec import DType
from tests.plan.refusals import refusal

Plan = TypeVar("Plan", UpcyclePlan, ExtractPlan, PrunePlan, AlignPlan)

UPCYCLE = "surgery: upcycle\nmodel: m\nexperts: 8\n"
EXTRACT = "surgery: extract\nmodel: m\n"
PRUNE = "surgery: prune\nmodel: m\n"
ALIGN = "surgery: align\nmerge_method: x\nmodels: [a, b]\n"


def read(kind: type[Plan], text: str) -> Plan:
    plan = parse_any(text, "p.yml")
    assert isinstance(plan, kind)
    return plan


def test_upcycling_is_read_completely() -> None:
    text = UPCYCLE + (
        "experts_per_token: 4\narchitecture: mixtral\nmethod: drop\nratio: 0.25\nnoise_scale: 1e-2\n"
        "granularity: 2\ngate_mode: random\nrouter: {std: 0.1}\nexpert_layout: stacked\n"
        "dtype: float32\nout_dtype: bfloat16\nseed: 5\n"
    )
    plan = read(UpcyclePlan, text)
    assert (plan.model, plan.model_origin.line) == (ModelRef("m"), 2)
    assert (plan.experts, plan.experts_per_token, plan.granularity) == (8, 4, 2)
    assert (plan.architecture, plan.architecture_origin.line, plan.expert_layout) == ("mixtral", 5, "stacked")
    assert (plan.method, plan.ratio, plan.noise_scale) == ("drop", 0.25, 0.01)
    assert (plan.gate_mode, plan.gate_origin.line, plan.router) == ("random", 10, RouterOptions(std=0.1))
    assert (plan.dtype, plan.out_dtype, plan.seed, plan.notes) == (DType.F32, DType.BF16, 5, ())
    assert (plan.text, plan.file, plan.referenced_models()) == (text, "p.yml", (ModelRef("m"),))


def test_upcycling_has_defaults() -> None:
    plan = read(UpcyclePlan, UPCYCLE)
    assert (plan.experts_per_token, plan.granularity, plan.method, plan.ratio) == (2, 1, "sparse", 0.5)
    assert (plan.gate_mode, plan.router) == ("random", RouterOptions(std=0.02))
    assert (plan.noise_scale, plan.architecture, plan.expert_layout, plan.seed) == (None,) * 4


@pytest.mark.parametrize(
    ("experts", "granularity", "active"), [(1, 1, 1), (2, 1, 2), (8, 4, 8), (16, 4, 8), (4, 4, 4)]
)
def test_a_token_uses_two_whole_copies_if_there_are_two(experts: int, granularity: int, active: int) -> None:
    text = f"surgery: upcycle\nmodel: m\nexperts: {experts}\ngranularity: {granularity}\n"
    assert read(UpcyclePlan, text).experts_per_token == active


def test_a_merge_can_be_upcycled() -> None:
    text = "name: s\nmerge_method: x\nmodels: [{model: a}]\n---\nsurgery: upcycle\nmodel: s\nexperts: 2\n"
    plan = read(UpcyclePlan, text)
    assert isinstance(plan.model, MergePlan)
    assert plan.referenced_models() == (ModelRef("a"),)
    assert plan.origin_of(ModelRef("a")).line == 3


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("models: [m]", "did you mean 'model'?"),
        ("experts_per_token: 9", "must be a whole number from 1 to 8, not 9"),
        ("granularity: 0", "granularity must be a whole number of at least 1, not 0"),
        ("method: drp", "did you mean 'drop'?"),
        ("method: 3", "method must be one of sparse, drop"),
        ("ratio: 0.5", "ratio has no effect with method sparse"),
        ("method: drop\nratio: 0", "ratio must be greater than 0, not 0"),
        ("method: drop\nratio: 1.5", "ratio is 1.5, more than 1"),
        ("noise_scale: -1", "noise_scale is -1, less than 0"),
        ("gate_mode: hidden", "gate_mode must be one of random, uniform_random, zero"),
        ("router: {temperature: 2}", "temperature has no effect with gate_mode random"),
        ("gate_mode: zero\nrouter: {std: 2}", "std has no effect with gate_mode zero"),
        ("granularity: 3\nexperts_per_token: 3", "experts is 8, which is not a multiple of granularity 3"),
        ("granularity: 4\nexperts_per_token: 2", "experts_per_token is 2, which is not a multiple"),
        ("seed: x", "seed must be an integer"),
    ],
)
def test_wrong_upcycling_is_a_problem(lines: str, said: str) -> None:
    assert [said in problem for _, problem in refusal(UPCYCLE + lines)] == [True]


def test_extracting_one_expert_is_picking_it() -> None:
    plan = read(ExtractPlan, EXTRACT + "expert: 3\narchitecture: llama\ndtype: float16\n")
    assert (plan.model, plan.experts, plan.experts_origin.line) == (ModelRef("m"), (3,), 3)
    assert (plan.shares, plan.mode, plan.architecture, plan.dtype) == ((1.0,), "pick", "llama", DType.F16)


def test_extracting_several_experts_averages_them_by_their_weights() -> None:
    plan = read(ExtractPlan, EXTRACT + "experts: [4, 1]\nweights: [3, 1]\n")
    assert (plan.experts, plan.shares, plan.mode) == ((4, 1), (0.75, 0.25), "mean")
    plan = read(ExtractPlan, EXTRACT + "experts: [4, 1]\nmode: concatenate\n")
    assert (plan.shares, plan.mode) == ((0.5, 0.5), "concatenate")


@pytest.mark.parametrize(
    ("lines", "line", "said"),
    [
        ("", 1, "an extraction plan needs expert or experts"),
        ("expert: 1\nexperts: [1]", 4, "expert and experts cannot both be given"),
        ("expert: -1", 3, "expert must be a whole number of at least 0, not -1"),
        ("expert: one", 3, "not a string"),
        ("experts: []", 3, "experts is empty"),
        ("experts: 3", 3, "experts must be a list"),
        ("experts: [1, -2]", 3, "an expert is a whole number from 0, not -2"),
        ("experts: [1, 1]", 3, "expert 1 is listed twice"),
        ("experts: [1, x]", 3, "not a string"),
        ("experts: [1, 2]\nmode: pick", 4, "mode pick takes one expert, and 2 are given"),
        ("expert: 1\nmode: mean", 4, "mode mean combines several experts"),
        ("expert: 1\nmode: avg", 4, "mode must be one of pick, mean, concatenate"),
        ("experts: [1, 2]\nweights: [1]", 4, "there are 1 weights, but 2 experts"),
        ("experts: [1, 2]\nweights: [0, 0]", 4, "nor all zero"),
        ("experts: [1, 2]\nweights: [2, -1]", 4, "must not be negative"),
        ("experts: [1, 2]\nweights: [2, a]", 4, "a weight must be a finite number, not 'a'"),
        ("experts: [1, 2]\nweights: 1", 4, "weights must be a list"),
        ("expert: 1\nseed: 1", 4, "an extraction plan has no key 'seed'"),
        ("expert: 1\narchitecture: [x]", 4, "architecture must be a string"),
    ],
)
def test_wrong_extraction_is_a_problem_at_its_line(lines: str, line: int, said: str) -> None:
    ((at, problem),) = refusal(EXTRACT + lines)
    assert (at, said in problem) == (line, True), problem


def test_pruning_keeps_the_listed_experts_in_every_layer() -> None:
    plan = read(PrunePlan, PRUNE + "keep: [5, 2]\nexperts_per_token: 2\nexpert_layout: per-expert\n")
    assert (plan.keep, plan.count, plan.keep_origin.line) == ((5, 2), 2, 3)
    assert (plan.experts_per_token, plan.expert_layout) == (2, "per-expert")


@pytest.mark.parametrize("zero", ["0", "'0'"])
def test_pruning_may_differ_between_layers(zero: str) -> None:
    plan = read(PrunePlan, PRUNE + f"keep:\n  {zero}: [0, 1]\n  12: [2, 3]\n")
    assert plan.keep == {0: (0, 1), 12: (2, 3)}
    assert (plan.count, plan.experts_per_token) == (2, None)


def test_pruning_may_follow_scores() -> None:
    plan = read(PrunePlan, PRUNE + "scores: s/usage.json\ncount: 4\n")
    assert isinstance(plan.keep, ScoreFile)
    assert (plan.keep.path, plan.keep.count, plan.keep.origin.line, plan.count) == ("s/usage.json", 4, 3, 4)


@pytest.mark.parametrize(
    ("lines", "line", "said"),
    [
        ("", 1, "a pruning plan needs keep or scores"),
        ("keep: [1]\nscores: s.csv\ncount: 1", 4, "keep and scores cannot both be given"),
        ("keep: [1]\ncount: 1", 4, "count belongs to scores"),
        ("scores: s.csv", 1, "a pruning plan with scores needs count"),
        ("scores: s.csv\ncount: 0", 4, "count must be a whole number of at least 1, not 0"),
        ("scores: [1]\ncount: 1", 3, "scores must be a string"),
        ("keep: []", 3, "keep is empty"),
        ("keep: {}", 3, "keep is empty"),
        ("keep: 3", 3, "keep must be a list"),
        ("keep: {a: [1]}", 3, "keep has the layer 'a', which is not a number"),
        ("keep: {0: [1], 0: [2]}", 3, "the key '0' is set twice"),
        ("keep: {0: [1], 1: [1, 2]}", 3, "the layers keep between 1 and 2 experts"),
        ("keep:\n  0: [1]\n  1: []", 5, "1 is empty"),
        ("keep:\n  0: [1]\n  1: [-1]", 5, "not -1"),
        ("keep: [0, 1]\nexperts_per_token: 3", 4, "experts_per_token is 3, but 2 stay in each layer"),
        ("keep: [0]\nepxert_layout: stacked", 4, "did you mean 'expert_layout'?"),
    ],
)
def test_wrong_pruning_is_a_problem_at_its_line(lines: str, line: int, said: str) -> None:
    found = refusal(PRUNE + lines)
    assert any(at == line and said in problem for at, problem in found), found


def test_aligning_is_a_merge_with_a_reference() -> None:
    text = """\
surgery: align
merge_method: ties
base_model: base
models:
  - a
  - model: b
    parameters: {weight: 2}
reference: b
by: weights
parameters: {density: 0.5}
dtype: float32
seed: 3
expert_layout: stacked
"""
    plan = read(AlignPlan, text)
    assert (plan.reference, plan.reference_origin.line, plan.by) == (ModelRef("b"), 8, "weights")
    assert [(str(s.model), s.origin.line) for s in plan.merge.models] == [("a", 5), ("b", 6)]
    assert plan.merge.models[1].parameters["weight"].conditions[0].value == 2
    assert plan.merge.parameters["density"].origin.line == 10
    assert (plan.merge.method, plan.merge.base_model) == ("ties", ModelRef("base"))
    assert (plan.dtype, plan.seed, plan.expert_layout) == (DType.F32, 3, "stacked")
    assert [str(ref) for ref in plan.referenced_models()] == ["base", "a", "b"]


@pytest.mark.parametrize(("more", "reference"), [("", "a"), ("base_model: c", "c"), ("reference: b", "b")])
def test_the_reference_is_the_base_model_or_the_first(more: str, reference: str) -> None:
    assert str(read(AlignPlan, ALIGN + more).reference) == reference


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (ALIGN + "by: rows", 4, "by must be one of router, weights"),
        (ALIGN + "reference: c", 4, "the reference c is not a model of this plan — one of a, b"),
        (ALIGN.replace("a,", "moe-a,") + "reference: moe_a", 4, "did you mean 'moe-a'?"),
        (ALIGN + "slices: []", 4, "an alignment plan has no key 'slices'"),
        (ALIGN + "weight: 1", 4, "write it below 'parameters:'"),
        (ALIGN.replace(", b", ""), 3, "there is one mixture only"),
        (ALIGN.replace("b]", "a]"), 3, "the model a is listed twice in models"),
        ("surgery: align\nmodels: [a, b]", 1, "merge_method is missing"),
        ("surgery: align\nmerge_method: x", 1, "the plan merges nothing"),
        ("surgery: align\nmerge_method: x\nmodels: [1, b]", 3, "a model must be a mapping, not an integer"),
        ("surgery: align\nmerge_method: x\nmodels: a", 3, "models must be a list"),
    ],
)
def test_wrong_alignment_is_a_problem_at_its_line(text: str, line: int, said: str) -> None:
    found = refusal(text)
    assert any(at == line and said in problem for at, problem in found), found


@pytest.mark.parametrize("kind", ["upcycle", "extract", "prune"])
def test_surgery_needs_a_model(kind: str) -> None:
    assert any("needs model" in problem for _, problem in refusal(f"surgery: {kind}\n"))


@pytest.mark.parametrize("kind", ["extract\nexpert: 0", "prune\nkeep: [0]"])
def test_what_is_cut_is_a_checkpoint(kind: str) -> None:
    text = f"surgery: {kind}\nmodel: {{merge_method: x, models: [{{model: a}}]}}\n"
    assert ["takes a checkpoint, not a merge" in problem for _, problem in refusal(text)] == [True]


def test_all_problems_are_reported_at_once_in_line_order() -> None:
    text = "surgery: upcycle\nexprts: 3\narchitecture: 1\ndtype: x\nseed: y\nexpert_layout: z\ngate_mode: q\n"
    assert [line for line, _ in refusal(text)] == [1, 1, 2, 3, 4, 5, 6, 7]


def test_a_plan_with_problems_is_still_read_for_others_to_look_at() -> None:
    problems = Problems()
    plan = read_any(PRUNE + "keep: [0]\nexperts_per_token: 7", "p.yml", problems)
    assert plan.referenced_models() == (ModelRef("m"),)
    assert len(problems.found) == 1
