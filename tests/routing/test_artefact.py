"""Rows in the cache are whole and right, or they are not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mergegraph.errors import OutputError
from mergegraph.routing.artefact import artefact_path, load, read_rows, store
from mergegraph.routing.prompts import PromptGroup
from mergegraph.routing.report import GateReport, Reporter
from mergegraph.storage.local import open_checkpoint

TENSORS = {f"layers.{i}": np.random.default_rng(i).random((3, 4), np.float32) for i in range(12)}


@pytest.fixture
def report() -> GateReport:
    reporter = Reporter(("x",), (PromptGroup((0,), ()),), 1)
    reporter.add(np.ones((1, 4), np.float32), np.ones((1, 4)))
    return reporter.finish("hidden", 1, 3, None, ["a note — with “quotes”"])


def test_what_is_stored_is_loaded(cache: Path, report: GateReport) -> None:
    path = artefact_path("key")
    assert path == cache / "gates" / "key.safetensors"
    store(path, TENSORS, report)
    assert load(path) == report
    for name, rows in TENSORS.items():
        np.testing.assert_array_equal(read_rows(path, name), rows)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_other_readers_of_the_format_read_it(report: GateReport) -> None:
    path = artefact_path("key")
    store(path, TENSORS, report)
    theirs = load_file(path)
    assert sorted(theirs) == sorted(TENSORS)
    assert all(np.array_equal(theirs[name], rows) for name, rows in TENSORS.items())
    assert list(open_checkpoint(str(path), name="gates").tensors) == list(TENSORS)


def test_there_is_nothing_before_it_is_stored() -> None:
    assert load(artefact_path("key")) is None


def test_damage_anywhere_is_noticed(report: GateReport) -> None:
    path = artefact_path("key")
    store(path, {"layers.0": TENSORS["layers.0"]}, report)
    whole = path.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        if load(path) is not None:  # only the format's name and white space do not matter
            assert load(path) == report
            np.testing.assert_array_equal(read_rows(path, "layers.0"), TENSORS["layers.0"])
    for length in (0, 7, 20, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert load(path) is None


def test_damaged_rows_are_replaced_and_intact_ones_left_alone(report: GateReport) -> None:
    path = artefact_path("key")
    store(path, TENSORS, report)
    first = path.stat().st_ino
    store(path, TENSORS, report)
    assert path.stat().st_ino == first
    path.write_bytes(path.read_bytes()[:-1])
    store(path, TENSORS, report)
    assert load(path) == report
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_cache_that_is_no_directory_is_an_error(cache: Path, report: GateReport) -> None:
    cache.write_text("")
    with pytest.raises(OutputError):
        store(artefact_path("key"), TENSORS, report)
