"""What tensors hold may contradict a plan, or be no number: both are told, by tensor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mergegraph import run
from mergegraph.errors import TensorValueError
from mergegraph.storage.journal import JOURNAL_FILE
from mergegraph.storage.publish import staging_path
from tests.engine.scenario import MODELS, Scenario, make, tensors_of

KINDS = ("int64", "int32", "uint8", "bool", "int8", "uint16")


def with_integers(root: Path, kind: str = "int64", *, different: str | None = None) -> Scenario:
    """Models that agree in the integer tensor ``z.table``, but for its very last element in one of them."""
    tensors = {}
    for seed, name in enumerate(MODELS):
        table = (np.arange(70_001) % 2).astype(kind)
        if name == different:
            table[-1] = 1 - table[-1]
        weights = np.random.default_rng(seed).standard_normal((500, 300), dtype=np.float32)
        tensors[name] = {"a.weight": weights, "b.weight": weights[:3], "z.table": table.reshape(1, -1)}
    return make(root, tensors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["linear", "slerp", "ties"])
def test_integers_that_are_equal_everywhere_are_copied(tmp_path: Path, method: str, kind: str) -> None:
    scenario = with_integers(tmp_path, kind)
    report = run(scenario.plan(method), tmp_path / "out", threads=2)
    assert (report.merged, report.copied, report.tensors) == (2, 1, 3)
    table = tensors_of(tmp_path / "out")["z.table"].numpy()
    np.testing.assert_array_equal(table, (np.arange(70_001) % 2).astype(kind).reshape(1, -1))


@pytest.mark.parametrize("different", MODELS)
def test_integers_that_differ_are_an_error_that_names_them(tmp_path: Path, different: str) -> None:
    scenario = with_integers(tmp_path, different=different)
    with pytest.raises(TensorValueError, match=r"^z\.table: .*different values.*int64") as caught:
        run(scenario.plan("ties"), tmp_path / "out", threads=3)
    assert (caught.value.tensor, caught.value.exit_code) == ("z.table", 6)
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [(40, 30), (3000, 800)])
def test_integers_are_compared_before_anything_else_is_computed(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """Both when the other tensors are small, so that a worker takes many at once, and when they are large."""
    tensors = {}
    for seed, name in enumerate(MODELS):
        held = {f"a{i}.weight": np.full(size, seed, np.float32) for i in range(5)}
        tensors[name] = held | {"z.table": np.full(1000, seed, np.int64)}
    scenario = make(tmp_path, tensors)
    with pytest.raises(TensorValueError):
        run(scenario.plan("ties"), tmp_path / "out", threads=1)
    lines = (staging_path(tmp_path / "out") / JOURNAL_FILE).read_text().splitlines()
    assert len(lines) == 1, "only the header: no tensor was finished"


def test_integers_of_a_single_model_are_taken_as_they_are(tmp_path: Path) -> None:
    scenario = with_integers(tmp_path, different="chat")
    run(scenario.plan("passthrough"), tmp_path / "out")
    assert tensors_of(tmp_path / "out")["z.table"][0, -1] == 1


@pytest.mark.parametrize(
    ("method", "kind"),
    [("slerp", "bfloat16"), *(("linear", kind) for kind in ("bfloat16", "float16", "float32", "float64"))],
)
def test_numbers_that_are_not_finite_are_counted_by_tensor(tmp_path: Path, method: str, kind: str) -> None:
    tensors = {}
    for name in MODELS:
        held = {
            n: np.full((300, 400), 0.5, "float32" if kind == "bfloat16" else kind)
            for n in ("fine", "bad", "worse")
        }
        if name == "chat":
            held["bad"][0, 0] = np.nan
            held["worse"][::2, 7] = np.inf
            held["worse"][-1, -1] = -np.inf
        tensors[name] = held
    scenario = make(tmp_path, tensors, narrow=kind == "bfloat16")
    changes = {"parameters": {"normalize": False}} if method == "linear" else {}
    report = run(scenario.plan(method, **changes), tmp_path / "out", threads=2)
    written = {n: int((~x.isfinite()).sum()) for n, x in tensors_of(tmp_path / "out").items()}
    assert report.nonfinite == {n: count for n, count in sorted(written.items()) if count}
    assert written["bad"] >= 1
    assert "fine" not in report.nonfinite
    if method == "linear":
        assert report.nonfinite == {"bad": 1, "worse": 151}


def test_a_number_too_large_for_the_output_type_counts_as_infinite(tmp_path: Path) -> None:
    scenario = make(tmp_path, {n: {"w": np.array([1.0, 60_000.0], np.float32)} for n in MODELS}, narrow=False)
    plan = scenario.plan("linear", parameters={"normalize": False}, out_dtype="float16")
    report = run(plan, tmp_path / "out")
    assert report.nonfinite == {"w": 1}
