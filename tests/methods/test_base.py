"""Declaring a merge method, and finding it by its file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import mergegraph.methods
from mergegraph.errors import MergeGraphError, PlanError
from mergegraph.methods import all_methods, discover, get_method
from mergegraph.methods.base import REQUIRED, MergeMethod, Parameter, Reference, Values


def source(name: str) -> str:
    return dedent(
        f"""
        from mergegraph.methods.base import REQUIRED, MergeMethod, Parameter, Reference

        METHOD = MergeMethod(
            name="{name}",
            summary="The first model.",
            formula="x_1",
            reference=Reference("none", "https://example.org", "x_1"),
            deviations="none",
            base="ignored",
            inputs=(1, None),
            parameters=(Parameter("weight", float, "each", REQUIRED, doc="How much."),),
            build=lambda base, models, shared, each: models[0],
            example="merge_method: {name}",
        )
        """
    )


def method(**changes: Any) -> MergeMethod:
    fields: dict[str, Any] = {
        "name": "mine",
        "summary": "",
        "formula": "",
        "reference": Reference("", "", ""),
        "deviations": "none",
        "base": "optional",
        "inputs": (1, None),
        "parameters": (),
        "build": lambda base, models, shared, each: models[0],
        "example": "",
    }
    return MergeMethod(**{**fields, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for method files, whose modules are forgotten afterwards."""
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_new_file_on_the_package_path_is_a_new_method(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = all_methods()
    monkeypatch.setattr(mergegraph.methods, "__path__", [*mergegraph.methods.__path__, str(folder)])
    assert all_methods() == before
    (folder / "brand_new.py").write_text(source("brand_new"))
    assert get_method("brand_new").build(None, (1, 2), Values({}), ()) == 1
    assert list(all_methods()) == sorted([*before, "brand_new"])
    monkeypatch.undo()
    assert all_methods() == before


def test_methods_are_loaded_once(folder: Path) -> None:
    (folder / "once.py").write_text(source("once"))
    assert discover([folder])["once"] is discover([folder])["once"]


def test_changing_the_answer_does_not_change_the_next() -> None:
    all_methods().clear()
    assert list(all_methods()) == list(discover(mergegraph.methods.__path__))


def test_helpers_are_not_methods(folder: Path) -> None:
    (folder / "_helper.py").write_text("raise RuntimeError")
    (folder / "base.py").write_text("raise RuntimeError")
    (folder / "notes.txt").write_text("")
    assert discover([folder]) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "defines no merge method"),
        ("METHOD = 'x'", "defines no merge method"),
        (source("other"), "call the file other.py"),
        ("import nowhere_to_be_found", "cannot be imported: ModuleNotFoundError"),
        ("x = (", "cannot be imported: SyntaxError"),
    ],
)
def test_a_file_that_is_no_method_is_an_error_that_names_it(folder: Path, text: str, said: str) -> None:
    (folder / "broken.py").write_text(text)
    with pytest.raises(MergeGraphError, match=r"broken\.py") as caught:
        discover([folder])
    assert said in str(caught.value)
    assert "mergegraph.methods.broken" not in sys.modules or text in ("", "METHOD = 'x'", source("other"))


def test_two_files_of_one_name_are_an_error(folder: Path) -> None:
    for part in ("a", "b"):
        (folder / part).mkdir()
        (folder / part / "twice.py").write_text(source("twice"))
    with pytest.raises(MergeGraphError, match="already a merge method 'twice'"):
        discover([folder / "a", folder / "b"])


def test_an_unknown_method_is_a_plan_error_with_the_nearest_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "wonderful.py").write_text(source("wonderful"))
    monkeypatch.setattr(mergegraph.methods, "__path__", [str(folder)])
    with pytest.raises(PlanError) as caught:
        get_method("wonderfull", "plan.yml:1")
    (problem,) = caught.value.problems
    assert problem.where == "plan.yml:1"
    assert problem.hint == "did you mean 'wonderful'? the methods are wonderful"
    with pytest.raises(PlanError, match="— the methods are wonderful"):
        get_method("zzz")


def test_values_are_read_by_name_and_never_written() -> None:
    values = Values({"weight": 0.5, "lambda": 2.0})
    assert (values.weight, values["weight"], values.lambda_, values["lambda"]) == (0.5, 0.5, 2.0, 2.0)
    assert list(values) == ["weight", "lambda"]
    assert values == Values({"weight": 0.5, "lambda": 2.0})
    assert hash(values) == hash(Values({"weight": 0.5, "lambda": 2.0}))
    assert repr(values) == "Values({'weight': 0.5, 'lambda': 2.0})"
    with pytest.raises(AttributeError, match="declares no parameter 'wieght'"):
        _ = values.wieght
    with pytest.raises(AttributeError, match="read-only"):
        values.weight = 1


def test_a_method_knows_its_parameters_by_scope_and_name() -> None:
    t = Parameter("t", float, "shared", REQUIRED)
    weight = Parameter("weight", float, "each", 1.0)
    mine = method(parameters=(t, weight))
    assert (mine.shared, mine.each) == ((t,), (weight,))
    assert (mine.parameter("t"), mine.parameter("u")) == (t, None)
    assert (t.required, weight.required) == (True, False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "maybe"}, "base must be one of"),
        ({"inputs": (0, 1)}, "not a range"),
        ({"inputs": (3, 2)}, "not a range"),
        ({"parameters": (Parameter("t", float, "shared", 0.0),) * 2}, "declares the parameter 't' twice"),
    ],
)
def test_a_contradictory_method_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        method(**changes)


def test_a_contradictory_parameter_is_refused() -> None:
    with pytest.raises(TypeError, match="kind must be"):
        Parameter("t", list, "shared", REQUIRED)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="scope must be"):
        Parameter("t", float, "all", REQUIRED)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="minimum 2 exceeds maximum 1"):
        Parameter("t", float, "shared", REQUIRED, minimum=2, maximum=1)
