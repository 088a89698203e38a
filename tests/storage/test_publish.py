"""Output appears complete or not at all, and never over an input."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mergegraph.errors import DiskFullError, OutputError
from mergegraph.storage.journal import JOURNAL_FILE, Journal
from mergegraph.storage.publish import check_output, free_bytes, publish, staging_path

OUTPUT = ("config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "tokenizer.json")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def stage(out: Path) -> Path:
    staging = staging_path(out)
    staging.mkdir(parents=True)
    for name in (*OUTPUT, JOURNAL_FILE):
        (staging / name).write_text(f"new {name}")
    return staging


def stale(out: Path) -> None:
    out.mkdir()
    for name in (
        *(
            "config.json",
            "model.safetensors",
            "model-00001-of-00003.safetensors",
            "model.safetensors.index.json",
        ),
        *("pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "tokenizer.json", "notes.txt"),
    ):
        (out / name).write_text(f"old {name}")


def contents(path: Path) -> dict[str, str]:
    return {p.name: p.read_text() for p in sorted(path.iterdir())}


NEW = {name: f"new {name}" for name in sorted(OUTPUT)}


def test_staging_is_a_hidden_sibling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert staging_path(tmp_path / "out") == tmp_path.resolve() / ".out.mergegraph"
    monkeypatch.chdir(tmp_path)
    assert staging_path(Path()) == tmp_path.resolve().parent / f".{tmp_path.name}.mergegraph"
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert staging_path(Path("link")) == tmp_path.resolve() / ".real.mergegraph"


@pytest.mark.parametrize("exists", [False, True])
def test_an_absent_or_empty_directory_is_replaced_at_once(out: Path, exists: bool) -> None:
    staging = stage(out)
    if exists:
        out.mkdir()
    publish(staging, out, force=False)
    assert contents(out) == NEW
    assert not staging.exists()


def test_force_leaves_nothing_of_a_stale_sharded_model(out: Path) -> None:
    staging = stage(out)
    stale(out)
    publish(staging, out, force=True)
    assert contents(out) == {"notes.txt": "old notes.txt"} | NEW
    assert not staging.exists()


def test_a_replaced_model_is_not_loadable_while_mixed(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = stage(out)
    stale(out)
    real = os.replace
    moved: list[str] = []

    def watched(source: Path, target: Path) -> None:
        names = set(os.listdir(out))
        if not moved or moved[-1] not in ("config.json", "model.safetensors.index.json"):
            assert not names & {"config.json", "model.safetensors.index.json"}
        assert "model-00001-of-00003.safetensors" not in names
        moved.append(target.name)
        real(source, target)

    monkeypatch.setattr(os, "replace", watched)
    publish(staging, out, force=True)
    assert moved[-1] == "config.json"
    assert sorted(moved) == sorted(OUTPUT)


def test_a_directory_that_filled_up_meanwhile_is_left_alone(out: Path) -> None:
    staging = stage(out)
    stale(out)
    before = contents(out)
    with pytest.raises(OutputError, match="no longer empty; the finished output is in"):
        publish(staging, out, force=False)
    assert contents(out) == before
    assert len(contents(staging)) == 5


def test_the_lock_is_held_until_the_output_is_in_place(out: Path) -> None:
    staging = staging_path(out)
    with Journal.open(staging, {}):
        (staging / "config.json").write_text("{}")
        publish(staging, out, force=False)
    assert [p.name for p in out.iterdir()] == ["config.json"]


def test_a_mount_point_is_filled_from_inside(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.mkdir()
    (out / "lost+found").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out.resolve())
    staging = stage(out)
    assert staging == out.resolve() / ".mergegraph"
    check_output(out, [], force=False)
    publish(staging, out, force=False)
    (out / "lost+found").rmdir()
    assert contents(out) == NEW


@pytest.mark.parametrize(("code", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EACCES, OutputError)])
def test_a_failed_rename_is_typed_and_loses_nothing(
    out: Path, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[Exception]
) -> None:
    def broken(source: Path, target: Path) -> None:
        raise OSError(code, os.strerror(code))

    staging = stage(out)
    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(kind):
        publish(staging, out, force=False)
    assert len(contents(staging)) == 5


def test_a_new_directory_below_new_parents_is_fine_and_nothing_is_created(tmp_path: Path) -> None:
    check_output(tmp_path / "a" / "b", [tmp_path / "in"], force=False)
    assert list(tmp_path.iterdir()) == []


def refuses(out: Path, inputs: list[Path], match: str, *, force: bool = True) -> None:
    with pytest.raises(OutputError, match=match) as caught:
        check_output(out, inputs, force)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("where", "relation"),
    [("in", "is the input"), ("in/merged/deep", "is inside the input"), (".", "contains the input")],
)
def test_an_output_that_overlaps_an_input_is_refused_even_with_force(
    tmp_path: Path, where: str, relation: str
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    (tmp_path / "link").symlink_to(source)
    refuses(tmp_path / where, [tmp_path / "unrelated", source], relation)
    refuses(tmp_path / where, [tmp_path / "link"], relation)


def test_an_output_reached_through_a_link_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "in")
    refuses(tmp_path / "out", [tmp_path / "in"], "is the input")
    refuses(tmp_path / "out" / "new", [tmp_path / "in"], "is inside the input")


def test_an_input_made_of_links_into_the_output_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("weights")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "model.safetensors").symlink_to(tmp_path / "out" / "model.safetensors")
    refuses(tmp_path / "out", [tmp_path / "in"], "contains the input")


def test_a_single_file_is_an_input_too_but_its_neighbours_are_not(tmp_path: Path) -> None:
    file = tmp_path / "models" / "x.safetensors"
    file.parent.mkdir()
    file.write_text("weights")
    refuses(file.parent, [file], "contains the input")
    check_output(file.parent / "merged", [file], force=False)


def test_a_staging_directory_that_is_an_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".out.mergegraph").mkdir()
    refuses(tmp_path / "out", [tmp_path / ".out.mergegraph"], "is prepared in .* which is the input")


def test_a_directory_that_holds_something_needs_force(out: Path) -> None:
    stale(out)
    refuses(out, [], "not empty.*--force", force=False)
    check_output(out, [], force=True)


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refuses(tmp_path / "file", [], "is not a directory")
    refuses(tmp_path / "file" / "out", [], "cannot be created: .*file is not a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_without_write_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    refuses(tmp_path / "out", [], "not writable")


def test_free_space_can_be_asked_for_an_output_that_does_not_exist_yet(out: Path) -> None:
    assert free_bytes(out / "deep") > 0
