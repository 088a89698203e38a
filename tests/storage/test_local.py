"""A local checkpoint is found, whole and consistent, or refused with what to do."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mergegraph.checkpoint.layout import INDEX_FILE
from mergegraph.errors import CheckpointError
from mergegraph.storage.headers import Headers
from mergegraph.storage.local import is_sidecar, open_checkpoint
from mergegraph.tensorspec import DType, TensorSpec

MakeModel = Callable[..., Path]
ONE = {"w": np.ones(2, dtype=np.float32)}
OTHER = {"v": np.ones(3, dtype=np.float32)}


def names(path: Path) -> list[str]:
    return list(open_checkpoint(str(path), name="m").tensors)


def refuses(path: Path, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        open_checkpoint(str(path), name="m")
    assert caught.value.hint


def test_a_sharded_directory_is_indexed_from_headers(model: Path) -> None:
    index = open_checkpoint(str(model), name="my/model")
    assert index.name == "my/model"
    assert index.root == str(model)
    assert list(index.tensors) == ["empty", "h.2.w", "h.10.w", "scalar"]
    assert index.tensors["h.10.w"].spec == TensorSpec((3, 4), DType.F32)
    assert index.tensors["scalar"].spec == TensorSpec((), DType.F16)
    assert index.tensors["scalar"].file == "model-00002-of-00002.safetensors"
    assert list(index.files) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert index.config == {"model_type": "tiny"}
    assert index.sidecars == ("LICENSE", "tokenizer.json")


def test_no_tensor_byte_is_needed_to_open(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    reads: list[int] = []

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        reads.append(size)
        return real(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    index = open_checkpoint(str(model), name="m")
    data = sum(entry.end - entry.begin for entry in index.tensors.values())
    assert len(reads) == 4
    assert sum(reads) == sum(file.size for file in index.files.values()) - data


def test_a_relative_path_is_made_absolute(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert open_checkpoint("model", name="model").root == str(model)


def test_resharding_changes_the_identity_but_copying_does_not(make_model: MakeModel) -> None:
    a = make_model("a", {"model.safetensors": ONE | OTHER})
    b = make_model("b", {"model.safetensors": ONE | OTHER})
    c = make_model("c", {"1.safetensors": ONE, "2.safetensors": OTHER})
    identity = {p.name: open_checkpoint(str(p), name="m").identity for p in (a, b, c)}
    assert identity["a"] == identity["b"] != identity["c"]


def test_fine_tunes_share_what_their_headers_say(make_model: MakeModel) -> None:
    shards = {"1.safetensors": ONE, "2.safetensors": OTHER}
    roots = [make_model(name, shards, index=True) for name in "ab"]
    known = Headers()
    a, b = (open_checkpoint(str(root), name="m", known=known) for root in roots)
    alone = open_checkpoint(str(roots[1]), name="m")
    assert a.tensors is b.tensors
    assert b.like is a
    assert a.identity == b.identity == alone.identity
    other = open_checkpoint(str(make_model("c", {"1.safetensors": ONE})), name="m", known=known)
    assert other.like is None


def test_an_index_that_was_read_before_is_held_against_other_shards_again(make_model: MakeModel) -> None:
    whole = make_model("a", {"1.safetensors": ONE, "2.safetensors": OTHER}, index=True)
    wrong = make_model("b", {"1.safetensors": ONE, "2.safetensors": {"x": ONE["w"]}})
    shutil.copy(whole / INDEX_FILE, wrong / INDEX_FILE)
    known = Headers()
    open_checkpoint(str(whole), name="m", known=known)
    with pytest.raises(CheckpointError, match="promises tensors"):
        open_checkpoint(str(wrong), name="m", known=known)
    (wrong / "2.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is not there"):
        open_checkpoint(str(wrong), name="m", known=known)


def test_an_index_file_with_a_hole_is_refused_beside_equal_shards(make_model: MakeModel) -> None:
    shards = {"1.safetensors": ONE, "2.safetensors": OTHER}
    whole, wrong = (make_model(name, shards, index=True) for name in "ab")
    (wrong / INDEX_FILE).write_text(json.dumps({"weight_map": {"w": "1.safetensors", "x": "2.safetensors"}}))
    known = Headers()
    open_checkpoint(str(whole), name="m", known=known)
    with pytest.raises(CheckpointError, match="promises tensors"):
        open_checkpoint(str(wrong), name="m", known=known)


def test_an_index_beats_a_single_file(make_model: MakeModel) -> None:
    root = make_model("m", {"part.safetensors": OTHER}, index=True)
    other = make_model("o", {"model.safetensors": ONE})
    (other / "model.safetensors").rename(root / "model.safetensors")
    assert names(root) == ["v"]


def test_a_single_file_beats_stray_ones(make_model: MakeModel) -> None:
    assert names(make_model("m", {"model.safetensors": ONE, "consolidated.safetensors": OTHER})) == ["w"]


def test_an_index_of_another_name_is_used(make_model: MakeModel) -> None:
    root = make_model("m", {"x.safetensors": ONE, "y.safetensors": OTHER}, index="z.safetensors.index.json")
    make_model("n", {"unrelated.safetensors": OTHER})
    assert names(root) == ["v", "w"]


def test_several_unindexed_files_are_joined_without_an_adapter(make_model: MakeModel) -> None:
    shards = {"a.safetensors": ONE, "b.safetensors": OTHER, "adapter_model.safetensors": {"lora": ONE["w"]}}
    assert names(make_model("m", shards)) == ["v", "w"]


def test_a_lone_adapter_can_be_opened(make_model: MakeModel) -> None:
    assert names(make_model("m", {"adapter_model.safetensors": ONE})) == ["w"]


def test_one_file_can_be_opened_and_takes_its_config_only_from_a_model_directory(
    make_model: MakeModel, model: Path
) -> None:
    downloads = make_model("downloads", {"x.safetensors": ONE}, extra={"diary.txt": "private"})
    index = open_checkpoint(str(downloads / "x.safetensors"), name="x")
    assert (list(index.tensors), index.config, index.sidecars) == (["w"], {}, ())
    index = open_checkpoint(str(model / "model-00001-of-00002.safetensors"), name="x")
    assert list(index.tensors) == ["h.2.w", "h.10.w"]
    assert index.config == {"model_type": "tiny"}


def test_an_index_file_can_be_opened(model: Path) -> None:
    assert len(names(model / "model.safetensors.index.json")) == 4


def test_links_into_a_cache_are_followed(make_model: MakeModel, tmp_path: Path) -> None:
    blobs = make_model("blobs", {"0123abcd.safetensors": ONE})
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to("../blobs/0123abcd.safetensors")
    (snapshot / "tokenizer.model").symlink_to("../blobs/0123abcd.safetensors")
    assert blobs.is_dir()
    index = open_checkpoint(str(snapshot), name="m")
    assert (list(index.tensors), index.sidecars) == (["w"], ("tokenizer.model",))


def test_a_missing_path_suggests_its_neighbour(model: Path) -> None:
    refuses(model.parent / "modell", "did you mean 'model'")
    refuses(model.parent / "no" / "where", "no such file or directory")
    refuses(model / "config.json", "not a .safetensors file")


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.gguf", "consolidated.00.pth"])
def test_a_directory_of_another_format_says_how_to_convert_it(make_model: MakeModel, file: str) -> None:
    refuses(make_model("m", {}, extra={file: "pickle"}), f"only '{file}'.*convert it first")


def test_a_directory_without_weights_is_refused(make_model: MakeModel) -> None:
    refuses(make_model("m", {}, extra={"config.json": "{}"}), "no .safetensors files")


def test_several_indexes_are_ambiguous(make_model: MakeModel) -> None:
    text = '{"weight_map": {}}'
    extra = {"a.safetensors.index.json": text, "b.safetensors.index.json": text}
    refuses(make_model("m", {}, extra=extra), "several indexes.*give the path of the index")


def test_a_missing_shard_is_found_with_and_without_an_index(model: Path) -> None:
    (model / "model-00002-of-00002.safetensors").unlink()
    refuses(model, "model-00002-of-00002.safetensors', which is not there")
    (model / "model.safetensors.index.json").unlink()
    refuses(model, "has 1 of the 2 files named model-")


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ("../secret.safetensors", "outside its own directory"),
        ("/etc/secret.safetensors", "outside its own directory"),
        ("a/../../secret.safetensors", "outside its own directory"),
        ("..\\secret.safetensors", "outside its own directory"),
        ("x\0.safetensors", "outside its own directory"),
        ("", "outside its own directory"),
        ("pytorch_model-00001-of-00002.bin", "not a .safetensors file"),
        ("gone.safetensors", "not there"),
    ],
)
def test_an_index_cannot_name_files_elsewhere(make_model: MakeModel, file: str, match: str) -> None:
    root = make_model("m", {"model.safetensors": ONE})
    make_model("x", {"secret.safetensors": ONE})
    (root / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": file}}))
    refuses(root, match)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not a checkpoint index"),
        ("[]", "no weight_map"),
        ("{}", "no weight_map"),
        ('{"weight_map": []}', "not a map"),
        ('{"weight_map": {"w": 1}}', "not a map"),
        ('{"weight_map": {"w": "model.safetensors", "w": "model.safetensors"}}', "appears twice"),
        ("[" * 100_000, "not a checkpoint index"),
    ],
)
def test_a_malformed_index_is_refused(make_model: MakeModel, text: str, match: str) -> None:
    extra = {"model.safetensors.index.json": text}
    refuses(make_model("m", {"model.safetensors": ONE}, extra=extra), match)


def test_an_index_that_disagrees_with_its_shards_is_refused(make_model: MakeModel) -> None:
    root = make_model("m", {"a.safetensors": ONE, "b.safetensors": OTHER})
    index = root / "model.safetensors.index.json"

    def write(weight_map: dict[str, str]) -> None:
        index.write_text(json.dumps({"weight_map": weight_map}))

    write({"w": "a.safetensors", "v": "b.safetensors", "lost": "b.safetensors"})
    refuses(root, "promises tensors that are not in their shards: 'lost'")
    write({"w": "b.safetensors", "v": "b.safetensors"})
    refuses(root, "promises tensors that are not in their shards: 'w'")
    write({"w": "a.safetensors", **{f"x{i}": "b.safetensors" for i in range(5)}})
    refuses(root, "'x0', 'x1', 'x2' and 2 more")
    (root / "b.safetensors").unlink()
    write({"nothing": "a.safetensors"})
    refuses(root, "promises")
    index.unlink()
    write({"w": "a.safetensors"})
    assert names(root) == ["w"]


def test_a_shard_with_tensors_that_the_index_does_not_list_is_refused(make_model: MakeModel) -> None:
    root = make_model("m", {"a.safetensors": ONE | OTHER})
    (root / "model.safetensors.index.json").write_text('{"weight_map": {"w": "a.safetensors"}}')
    refuses(root, "does not list tensors that its shards hold: 'v'")


def test_a_tensor_in_two_files_is_refused(make_model: MakeModel) -> None:
    refuses(make_model("m", {"a.safetensors": ONE, "b.safetensors": ONE}), "'w' is in both a.saf.* and b.saf")


@pytest.mark.parametrize("keep", [0, 5, 8, 40])
def test_a_truncated_file_is_refused(make_model: MakeModel, keep: int) -> None:
    root = make_model("m", {"model.safetensors": ONE})
    os.truncate(root / "model.safetensors", keep)
    refuses(root, "fetch the file again")


def test_missing_data_is_found_from_the_header(make_model: MakeModel) -> None:
    root = make_model("m", {"model.safetensors": ONE})
    os.truncate(root / "model.safetensors", (root / "model.safetensors").stat().st_size - 1)
    refuses(root, "truncated: 1 of 8 data bytes are missing")


def test_a_git_lfs_pointer_is_recognised(make_model: MakeModel) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    refuses(make_model("m", {}, extra={"model.safetensors": pointer}), "git lfs pull")


def test_a_pipe_does_not_stop_us(make_model: MakeModel) -> None:
    root = make_model("m", {})
    os.mkfifo(root / "model.safetensors")
    refuses(root, "not a regular file")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(make_model: MakeModel) -> None:
    root = make_model("m", {"model.safetensors": ONE})
    (root / "model.safetensors").chmod(0)
    refuses(root, r"model.safetensors: cannot be read: Permission denied")


def test_a_failing_disk_is_reported_with_the_file(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int, size: int, offset: int) -> bytes:
        raise OSError(5, "Input/output error")

    root = make_model("m", {"model.safetensors": ONE})
    monkeypatch.setattr(os, "pread", broken)
    refuses(root, r"model\.safetensors: cannot be read: Input/output error")


@pytest.mark.parametrize("text", ["", "[]", "{", "\ud800".encode("utf-8", "surrogatepass")])
def test_a_malformed_config_is_refused(make_model: MakeModel, text: str | bytes) -> None:
    root = make_model("m", {"model.safetensors": ONE})
    (root / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refuses(root, "not a model config")


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer.json",
        "tokenizer.model",
        "vocab.txt",
        "chat_template.jinja",
        "generation_config.json",
        "LICENSE",
        "merges.txt",
        "preprocessor_config.json",
        "modeling_tiny.py",
        "special_tokens_map.json",
    ],
)
def test_what_belongs_to_a_model_is_a_sidecar(name: str) -> None:
    assert is_sidecar(name)


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "README.md",
        "readme.txt",
        ".gitattributes",
        ".DS_Store",
        "mergegraph.json",
        "mergekit_config.yml",
        "model.safetensors",
        "x.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "optimizer.pt",
        "training_args.bin",
        "trainer_state.json",
        "model.Q4_K_M.gguf",
        "tf_model.h5",
        "flax_model.msgpack",
        "model.onnx",
        "adapter_config.json",
        "rng_state_0.pth",
        "scheduler.pt",
        "weights.pkl",
        "journal.jsonl",
    ],
)
def test_weights_training_state_and_what_a_merge_writes_anew_are_not(name: str) -> None:
    assert not is_sidecar(name)


def test_subdirectories_are_not_sidecars(model: Path) -> None:
    (model / "original").mkdir()
    assert "original" not in open_checkpoint(str(model), name="m").sidecars
