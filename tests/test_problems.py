"""What a user reads when a plan is wrong: every problem at once, with line, reason and remedy.

The texts are golden: a change here is a change of what users see.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
from typer.testing import CliRunner

import mergegraph
from mergegraph.cli.app import app
from mergegraph.methods import all_methods
from mergegraph.testing import Llama, write_llama

SHAPE = Llama(layers=4, hidden=8, intermediate=12, heads=2, kv_heads=1, vocab=300)


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``a`` and ``b`` fit, ``wide`` is another size, ``words`` has more tokens, ``link`` is ``a``."""
    monkeypatch.chdir(tmp_path)
    write_llama(Path("a"), SHAPE, seed=0)
    write_llama(Path("b"), SHAPE, seed=1)
    write_llama(Path("wide"), Llama(4, 16, 12, 2, 1, 300), seed=2)
    write_llama(Path("words"), Llama(4, 8, 12, 2, 1, 320), seed=3)
    Path("link").symlink_to("a")


def answer(plan: str, *options: str, code: int = 2) -> str:
    """What ``plan --dry-run`` says about a plan; nothing may be written."""
    Path("p.yml").write_text(plan)
    before = sorted(Path().rglob("*"))
    done = CliRunner().invoke(app, ["plan", "p.yml", "--dry-run", *options])
    assert done.exit_code == code, done.output
    assert sorted(Path().rglob("*")) == before
    assert "Traceback" not in done.output
    return done.stdout + done.stderr


def test_a_mistyped_method() -> None:
    assert (
        answer("merge_method: slrep\nbase_model: ./a\nmodels: [{model: ./b}]\nparameters: {t: 0.5}\n")
        == f"""\
p.yml:1: unknown merge method 'slrep'
    → did you mean 'slerp'? the methods are {", ".join(all_methods())}
1 problem; nothing was written
"""
    )


def test_a_mistyped_key_and_a_mistyped_parameter() -> None:
    plan = """\
merge_method: linear
modles: []
models:
  - model: ./a
    parameters: {wieght: 1, weight: 1}
dtype: bfloat
"""
    assert (
        answer(plan)
        == """\
p.yml:2: a merge plan has no key 'modles'
    → did you mean 'models'?
p.yml:5: linear has no parameter 'wieght' [model ./a]
    → did you mean 'weight'?
p.yml:6: dtype: 'bfloat' is not a dtype
    → did you mean 'bfloat16'?
3 problems; nothing was written
"""
    )


def test_another_vocabulary() -> None:
    plan = "merge_method: slerp\nbase_model: ./a\nmodels:\n  - model: ./words\nparameters: {t: 0.5}\n"
    text = answer(plan)
    assert "model.embed_tokens.weight has different shapes: [320, 8] in ./words; [300, 8] in ./a" in text
    assert (
        "    → the models have vocabularies of different sizes; resize them to one vocabulary first\n" in text
    )
    assert text.endswith("2 problems; nothing was written\n")


def test_a_layer_range_out_of_bounds() -> None:
    plan = "merge_method: passthrough\nslices:\n  - sources: [{model: ./a, layer_range: [2, 6]}]\n"
    assert (
        answer(plan)
        == """\
p.yml:3: layer_range [2, 6] goes beyond the 4 layers of ./a
    → layers are numbered 0 to 3; the end is exclusive
1 problem; nothing was written
"""
    )


def test_a_model_that_is_not_there() -> None:
    plan = "merge_method: linear\nparameters: {weight: 1}\nmodels:\n  - model: ./a\n  - model: ./nowhere\n"
    text = answer(plan)
    assert text.startswith("p.yml:5: model ./nowhere: ")
    assert "there is no such file or directory" in text
    assert "    → give a model directory or a .safetensors file\n" in text


def test_everything_that_is_wrong_is_said_in_one_go() -> None:
    """::

    typo in the method · wrong key · wrong dtype · missing model · other sizes
    """
    plan = """\
merge_method: slrep
models:
  - model: ./a
  - model: ./wide
  - model: ./nowhere
dtype: bfloat
bogus: 1
"""
    text = answer(plan)
    for part in (
        "p.yml:1: unknown merge method 'slrep'",
        "different shapes",
        "p.yml:5: model ./nowhere",
        "p.yml:6: dtype: 'bfloat' is not a dtype",
        "p.yml:7: a merge plan has no key 'bogus'",
    ):
        assert part in text


def test_a_missing_model_hides_nothing() -> None:
    plan = """\
merge_method: linear
models:
  - model: ./a
    parameters: {weight: heavy}
  - model: ./words
  - model: ./nowhere
    parameters: {wieght: 1}
"""
    text = answer(plan)
    for part in (
        "p.yml:4: weight: 'heavy' is not a number",
        "p.yml:5: linear needs the parameter 'weight'",
        "model.embed_tokens.weight has different shapes",
        "p.yml:6: model ./nowhere",
        "p.yml:7: linear has no parameter 'wieght'",
    ):
        assert part in text


def test_a_missing_model_hides_no_wrong_range() -> None:
    plan = """\
merge_method: passthrough
slices:
  - sources: [{model: ./a, layer_range: [0, 9]}]
  - sources: [{model: ./nowhere, layer_range: [0, 2]}]
"""
    text = answer(plan)
    assert "p.yml:3: layer_range [0, 9] goes beyond the 4 layers of ./a" in text
    assert "p.yml:4: model ./nowhere" in text


def test_a_missing_model_hides_no_wrong_roles() -> None:
    Path("b/tokenizer.json").write_text("{}")
    plan = """\
merge_method: slerp
parameters: {t: 0.5}
tokenizer_source: union
models:
  - model: ./a
  - model: ./b
  - model: ./nowhere
"""
    text = answer(plan)
    assert "p.yml:1: slerp needs a base model" in text
    assert "p.yml:3: tokenizer_source is not supported" in text
    assert "p.yml:7: model ./nowhere" in text


def test_a_mistyped_method_hides_no_wrong_range_and_no_unknown_parameter() -> None:
    """Names that no method has are wrong under every method."""
    plan = """\
merge_method: slrep
base_model: ./a
parameters: {wieght: 1}
slices:
  - sources: [{model: ./a, layer_range: [0, 9]}, {model: ./b, layer_range: [0, 9]}]
"""
    text = answer(plan)
    assert "p.yml:1: unknown merge method" in text
    assert "p.yml:3: " in text
    assert "'wieght'" in text
    assert "p.yml:5: layer_range [0, 9] goes beyond" in text


def test_shapes_are_wrong_in_slices_too_when_a_model_is_missing() -> None:
    plan = """\
merge_method: linear
parameters: {weight: 1}
slices:
  - sources: [{model: ./a, layer_range: [0, 4]}, {model: ./wide, layer_range: [0, 4]}]
  - sources: [{model: ./nowhere, layer_range: [0, 2]}]
"""
    text = answer(plan)
    assert "different shapes" in text
    assert "p.yml:5: model ./nowhere" in text


def test_problems_stand_in_the_order_of_the_plan() -> None:
    plan = """\
merge_method: linear
models:
  - model: ./nowhere
    parameters: {weight: 1}
  - model: ./a
    parameters: {weight: [1, heavy]}
bogus: 1
"""
    lines = [line.split(":")[1] for line in answer(plan).splitlines() if line.startswith("p.yml:")]
    assert lines == sorted(lines, key=int)
    assert len(lines) == 3


def test_problems_as_json() -> None:
    text = answer("merge_method: linear\nmodels:\n  - model: ./a\nbogus: 1\n", "--json")
    found = json.loads(text)["problems"]
    assert [p["where"] for p in found] == ["p.yml:3", "p.yml:4"]
    assert all(set(p) == {"message", "where", "tensor", "model", "hint"} for p in found)
    assert all(p["hint"] for p in found)


def test_one_checkpoint_under_several_names_is_remarked_on() -> None:
    plan = (
        "merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: ./a}, {model: a/}, {model: link}]\n"
    )
    text = answer(plan, code=0)
    assert "a/ is the same checkpoint as ./a" in text
    assert "link is the same checkpoint as ./a" in text


def test_a_parameter_without_effect_is_remarked_on() -> None:
    plan = """\
merge_method: slerp
base_model: ./a
models:
  - model: ./b
    parameters: {t: 0.9}
parameters:
  t: 0.5
  int8_mask: true
"""
    text = answer(plan, code=0)
    assert "p.yml:8: int8_mask has no effect" in text
    assert "p.yml:5: t has no effect" in text


def test_a_plan_that_is_no_plan() -> None:
    assert "p.yml:1: a plan must be a mapping" in answer("- a\n- b\n")
    assert "not valid YAML" in answer("merge_method: [\n")
    assert "experts is empty" in answer("base_model: a\nexperts: []\n")
    assert "the plan merges nothing" in answer("merge_method: linear\n")


METHODS = ("", "merge_method: slerp\n", "merge_method: linear\n", "merge_method: nope\n", "merge_method: 3\n")
BASES = ("", "base_model: ./a\n", "base_model: ./nope\n", "base_model: ''\n")
SOURCES = (
    "",
    "models: []\n",
    "models: [3]\n",
    "models: [{model: ./a}, {model: ./wide}]\n",
    "models: [{model: ./nope}, {model: ./b}]\n",
    "slices: [{sources: []}]\n",
    "slices: [{sources: []}, {sources: [{model: ./a, layer_range: [0, 2]}]}]\n",
    "slices: [{sources: [{model: ./a, layer_range: [0, 9]}, {model: ./b, layer_range: [0, 9]}]}]\n",
    "slices: [{base_model: ./b, sources: [{model: ./a, layer_range: [0, 2]}]}]\n",
    "slices: [{sources: [{model: ./a}]}]\n",
    "modules: {x: {}}\n",
)
PARAMETERS = ("", "parameters: {weight: x, t: []}\n", "parameters: {weight: [{filter: mlp, value: 1}]}\n")


@pytest.mark.parametrize("sources", SOURCES)
def test_no_combination_of_mistakes_is_answered_with_anything_but_problems(sources: str) -> None:
    for method, base, parameters in product(METHODS, BASES, PARAMETERS):
        Path("p.yml").write_text(f"{method}{base}{sources}{parameters}" or "{}")
        with pytest.raises(mergegraph.PlanError) as caught:
            mergegraph.compile_plan("p.yml")
        assert caught.value.problems
        assert all(p.where for p in caught.value.problems)


def test_run_writes_nothing_either(tmp_path: Path) -> None:
    Path("p.yml").write_text("merge_method: slrep\nmodels: [{model: ./a}]\n")
    done = CliRunner().invoke(app, ["run", "p.yml", "-o", "out", "--progress", "none"])
    assert done.exit_code == 2
    assert "unknown merge method" in done.output
    assert not [p for p in tmp_path.iterdir() if "out" in p.name]


TOKENIZERS = """\
merge_method: linear
parameters: {weight: 1}
tokenizer_source: union
chat_template: auto
models: [{model: ./a}, {model: ./b}]
"""


def test_tokenizer_keys_are_accepted_where_the_files_are_equal() -> None:
    text = answer(TOKENIZERS, code=0)
    assert "p.yml:3: tokenizer_source changes nothing" in text
    assert "p.yml:4: chat_template changes nothing" in text


def test_a_template_is_the_same_wherever_it_is_written() -> None:
    Path("a/chat_template.jinja").write_text("{{ messages }}\n")
    settings = json.loads(Path("b/tokenizer_config.json").read_text())
    Path("b/tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": "{{ messages }}"}))
    assert "p.yml:4: chat_template changes nothing" in answer(TOKENIZERS, code=0)


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja"])
def test_one_byte_is_a_difference(file: str) -> None:
    for name, text in (("a", "{}"), ("b", "{ }")):
        Path(name, file).write_text(text)
    line = 3 if file == "tokenizer.json" else 4
    text = answer(TOKENIZERS)
    assert f"p.yml:{line}: " in text
    assert "./b differs from ./a" in text
    assert text.endswith("1 problem; nothing was written\n")


def test_tokenizers_of_the_older_forms_are_compared_too() -> None:
    for name in ("a", "b"):
        Path(name, "tokenizer.json").unlink()
        Path(name, "vocab.json").write_text("{}")
    assert "./a, ./b have none that can be read" in answer(TOKENIZERS)
    for name in ("a", "b"):
        Path(name, "merges.txt").write_text("a b")
    assert "p.yml:3: tokenizer_source changes nothing" in answer(TOKENIZERS, code=0)
    Path("b/merges.txt").write_text("b a")
    assert "./b differs from ./a" in answer(TOKENIZERS)
    for name in ("a", "b"):
        Path(name, "tokenizer.model").write_bytes(b"pieces")
    assert "p.yml:3: tokenizer_source changes nothing" in answer(TOKENIZERS, code=0)


def test_a_directory_with_a_plus_in_its_name_is_no_adapter() -> None:
    write_llama(Path("a+b"), SHAPE)
    answer("merge_method: linear\nparameters: {weight: 1}\nmodels: [{model: a+b}, {model: ./a}]\n", code=0)
