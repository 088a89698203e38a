"""What stands beside the weights is copied as it is, or written to be read by people and tools."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.errors import CheckpointError, OutputError
from mergegraph.storage.local import open_checkpoint
from mergegraph.storage.sidecars import copy_sidecars, model_card, write_json, write_manifest


@pytest.fixture
def index(model: Path) -> CheckpointIndex:
    (model / "vocab.bin.txt").write_bytes(bytes(range(256)))
    return open_checkpoint(str(model), name="org/model")


@pytest.fixture
def staging(tmp_path: Path) -> Path:
    path = tmp_path / "staging"
    path.mkdir()
    return path


def test_sidecars_are_copied_byte_for_byte(index: CheckpointIndex, staging: Path) -> None:
    names = copy_sidecars(index, staging)
    assert names == ["LICENSE", "tokenizer.json", "vocab.bin.txt"]
    assert sorted(p.name for p in staging.iterdir()) == names
    for name in names:
        assert (staging / name).read_bytes() == Path(index.root, name).read_bytes()


def test_a_sidecar_that_went_missing_is_reported(index: CheckpointIndex, staging: Path) -> None:
    Path(index.root, "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: cannot be copied"):
        copy_sidecars(index, staging)


def test_a_sidecar_that_cannot_be_written_is_reported(index: CheckpointIndex, staging: Path) -> None:
    with pytest.raises(OutputError, match="LICENSE: cannot be written"):
        copy_sidecars(index, staging / "nowhere")
    with pytest.raises(OutputError, match=r"x\.json: cannot be written"):
        write_json(staging / "nowhere", "x.json", {})


def test_json_is_written_for_people_and_keeps_its_order(staging: Path) -> None:
    write_json(staging, "x.json", {"b": "é", "a": [1]})
    assert (staging / "x.json").read_text() == '{\n  "b": "é",\n  "a": [\n    1\n  ]\n}\n'


def test_the_manifest_says_what_it_takes_to_repeat_the_merge_and_nothing_of_this_machine(
    index: CheckpointIndex, staging: Path
) -> None:
    write_manifest(
        staging,
        plan="merge_method: linear\n",
        fingerprint="f",
        inputs=[index],
        parameters={"w": {"weight": 1.0}},
        checksums={"w": "c"},
        versions={"mergegraph": "1"},
    )
    text = (staging / "mergegraph.json").read_text()
    manifest = json.loads(text)
    assert list(manifest) == ["versions", "fingerprint", "plan", "inputs", "parameters", "checksums"]
    assert manifest["inputs"][0]["identity"] == index.identity
    assert list(manifest["inputs"][0]["files"]) == list(index.files)
    assert index.root not in text
    assert "mtime" not in text


def card(index: CheckpointIndex, plan: str = "merge_method: linear\n") -> tuple[dict[str, object], str]:
    text = model_card(title="out", method="linear", models=[index, index], plan=plan, version="1.2")
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_carries_the_plan_and_the_models(index: CheckpointIndex) -> None:
    front, body = card(index)
    assert front == {"library_name": "transformers", "tags": ["mergegraph", "merge"]}
    assert "```yaml\nmerge_method: linear\n```\n" in body
    assert "| org/model | local | 4 |" in body
    assert "mergegraph 1.2" in body


def test_only_models_from_the_hub_are_linked_as_base_models(index: CheckpointIndex) -> None:
    front, _ = card(replace(index, name="org/model@main", revision="0123"))
    assert front["base_model"] == ["org/model"]
    front, _ = card(replace(index, name="../up/model", revision="0123"))
    assert "base_model" not in front


def test_neither_a_plan_nor_a_name_can_break_out_of_its_place(index: CheckpointIndex) -> None:
    _, body = card(replace(index, name="a|b\n# c"), plan="x: '```'\n# ````\n")
    assert "| a\\|b # c |" in body
    assert "\n`````yaml\n" in body
    assert body.endswith("# ````\n`````\n")
