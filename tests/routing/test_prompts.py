"""Prompts become tokens as the usual MoE configurations expect: BOS first, nothing else added."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mergegraph.errors import CheckpointError, PlanError
from mergegraph.routing.prompts import GatePrompts, PromptEncoder, PromptGroup


def set_bos(directory: Path, bos: object, file: str = "tokenizer_config.json") -> None:
    (directory / file).write_text(json.dumps({"bos_token": bos}))


def test_each_prompt_is_prefixed_with_the_bos_token(base: Path) -> None:
    encoder = PromptEncoder(base)
    assert encoder.bos == "<s>"
    assert encoder.encode("ab") == (1, *encoder.encode("a")[1:], *encoder.encode("b")[1:])


@pytest.mark.parametrize("bos", [None, ""])
def test_without_a_bos_token_nothing_is_prefixed(base: Path, bos: object) -> None:
    with_bos = PromptEncoder(base).encode("ab")
    set_bos(base, bos)
    encoder = PromptEncoder(base)
    assert encoder.bos is None
    assert encoder.encode("ab") == with_bos[1:]


def test_the_bos_token_may_be_a_mapping(base: Path) -> None:
    set_bos(base, {"content": "</s>", "lstrip": False})
    assert PromptEncoder(base).encode("a")[0] == 2


def test_older_tokenizers_name_the_bos_token_in_another_file(base: Path) -> None:
    (base / "tokenizer_config.json").write_text("{}")
    set_bos(base, "</s>", "special_tokens_map.json")
    assert PromptEncoder(base).bos == "</s>"


def test_a_post_processor_a_length_limit_and_padding_in_the_file_have_no_effect(base: Path) -> None:
    expected = PromptEncoder(base).encode("a long prompt")
    path = base / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    tokenizer["padding"] = {
        **{"strategy": {"Fixed": 50}, "direction": "Left", "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"},
    }
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "</s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
    }
    path.write_text(json.dumps(tokenizer))
    assert PromptEncoder(base).encode("a long prompt") == expected


def test_a_prompt_that_several_experts_share_is_kept_once(base: Path) -> None:
    encoder = PromptEncoder(base)
    table = encoder.table([GatePrompts("x", ("a", "b"), ("c",)), GatePrompts("y", ("c", "c"), ("a",))])
    assert table.tokens == tuple(encoder.encode(prompt) for prompt in "abc")
    assert table.groups == (PromptGroup((0, 1), (2,)), PromptGroup((2, 2), (0,)))
    assert table.vocabulary.tolist() == sorted({token for row in table.tokens for token in row})


def test_all_prompts_without_tokens_are_reported_together(base: Path) -> None:
    set_bos(base, None)
    with pytest.raises(PlanError) as caught:
        PromptEncoder(base).table([GatePrompts("x", ("a", "")), GatePrompts("y", ("b",), ("",))])
    assert [problem.message for problem in caught.value.problems] == [
        "x: the prompt '' has no tokens",
        "y: the prompt '' has no tokens",
    ]


def test_a_model_without_tokenizer_json_is_told_what_to_do(base: Path) -> None:
    (base / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json.*gate_mode random"):
        PromptEncoder(base)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1'])
def test_a_damaged_tokenizer_is_named(base: Path, file: str, text: str) -> None:
    (base / file).write_text(text)
    with pytest.raises(CheckpointError, match=f"{file}: is not a tokenizer"):
        PromptEncoder(base)
