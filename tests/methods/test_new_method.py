"""Adding a merge method is adding one file: everything else finds it there."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from typer.testing import CliRunner

import mergegraph
import mergegraph.methods
from mergegraph.cli.app import app
from mergegraph.testing.tiny import write_checkpoint

DECLARATION = """
METHOD = MergeMethod(
    name="{name}",
    summary="A method of this test alone.",
    formula="out = b + pull · f(x_i - b)",
    reference=Reference("Nobody 2024, Nothing", "https://example.org", "equation 1"),
    deviations="none",
    base="required",
    inputs=(1, 2),
    parameters=(
        Parameter("pull", float, "shared", REQUIRED, 0.0, 2.0, doc="How far to go."),
        Parameter("share", float, "each", 1.0, doc="Weight of this model."),
    ),
    build=build,
    example="merge_method: {name}",
)
"""

COMPOSED = """
from mergegraph import ops
from mergegraph.methods.base import REQUIRED, MergeMethod, Parameter, Reference

def build(base, models, shared, each):
    deltas = [ops.keep_largest(ops.delta(x, base), 0.5) for x in models]
    merged = ops.weighted_sum(*deltas, tuple(p.share for p in each))
    return ops.apply_delta(base, merged, shared.pull)
"""

OWN_OPS = """
from mergegraph import ops
from mergegraph.graph.node import Locality, Op
from mergegraph.methods.base import REQUIRED, MergeMethod, Parameter, Reference

def same(specs, attrs):
    return specs[0]

code = lambda args, attrs, real, tmp: ([], args[0] + " * " + args[0])
square = Op("square", Locality.ELEMENTWISE, same, lambda x: x * x, code)
centre = Op("centre", Locality.WHOLE, same, lambda x: x - x.mean())

def build(base, models, shared, each):
    deltas = [centre(square(ops.delta(x, base))) for x in models]
    merged = ops.weighted_sum(*deltas, tuple(p.share for p in each))
    return ops.apply_delta(base, merged, shared.pull)
"""

PLAN = """\
merge_method: {name}
base_model: {root}/base
models:
  - model: {root}/a
  - model: {root}/b
    parameters: {{share: 0.5}}
parameters:
  pull:
    - filter: bias
      value: 2
    - value: 0.25
dtype: float32
"""

Tensors = dict[str, Any]


def halved(d: Any) -> Any:
    """The larger half of the changes."""
    threshold = np.sort(np.abs(d).ravel())[-max(1, d.size // 2)]
    return np.where(np.abs(d) >= threshold, d, 0)


def centred(d: Any) -> Any:
    return d * d - (d * d).mean()


FILES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "composed": (COMPOSED, halved),
    "own_ops": (OWN_OPS, centred),
}


@pytest.fixture(params=FILES)
def added(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a method that a file just put on the package's path defines."""
    folder = tmp_path / "methods"
    folder.mkdir()
    name: str = request.param
    (folder / f"{name}.py").write_text(FILES[name][0] + DECLARATION.format(name=name))
    monkeypatch.setattr(mergegraph.methods, "__path__", [*mergegraph.methods.__path__, str(folder)])
    yield name
    sys.modules.pop(f"mergegraph.methods.{name}", None)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Tensors]:
    """Three small checkpoints, and what is in them."""
    shapes = {"layer.weight": (6, 5), "layer.bias": (5,), "scalar": ()}
    found: dict[str, Tensors] = {}
    for seed, model in enumerate(("base", "a", "b")):
        random = np.random.Generator(np.random.SFC64(seed))
        found[model] = {k: np.asarray(random.standard_normal(s), dtype=np.float32) for k, s in shapes.items()}
        write_checkpoint(
            tmp_path / model, found[model], config={"model_type": "mine", "torch_dtype": "float32"}
        )
    return found


@pytest.fixture
def plan(added: str, models: dict[str, Tensors], tmp_path: Path) -> Path:
    path = tmp_path / "plan.yml"
    path.write_text(PLAN.format(name=added, root=tmp_path))
    return path


def test_a_plan_may_name_it_and_runs(
    added: str, models: dict[str, Tensors], plan: Path, tmp_path: Path
) -> None:
    report = mergegraph.run(plan, tmp_path / "out", threads=2)
    assert report.merged == 3
    written = load_file(tmp_path / "out" / "model.safetensors")
    change = FILES[added][1]
    for name, base in models["base"].items():
        pull = 2.0 if "bias" in name else 0.25
        merged = change(models["a"][name] - base) + 0.5 * change(models["b"][name] - base)
        np.testing.assert_allclose(written[name], base + pull * merged, rtol=1e-5, atol=1e-6, err_msg=name)


def test_its_parameters_are_checked_and_explained(added: str, plan: Path) -> None:
    text = mergegraph.explain(mergegraph.compile_plan(plan), "layer.bias")
    assert "pull = 2" in text
    assert "share (" in text
    plan.write_text(plan.read_text().replace("share: 0.5", "shard: 0.5").replace("value: 0.25", "value: 7"))
    with pytest.raises(mergegraph.PlanError) as caught:
        mergegraph.compile_plan(plan)
    said = str(caught.value)
    assert "did you mean 'share'" in said
    assert "pull" in said


def test_the_command_line_lists_and_describes_it(added: str) -> None:
    cli = CliRunner()
    listed = cli.invoke(app, ["methods", "--json"])
    assert added in [method["name"] for method in json.loads(listed.stdout)]
    assert added in cli.invoke(app, ["methods"]).stdout
    described = cli.invoke(app, ["methods", added])
    assert described.exit_code == 0, described.output
    for part in ("A method of this test alone.", "pull", "How far to go.", "Nobody 2024"):
        assert part in described.stdout


def test_it_is_gone_with_its_file(models: dict[str, Tensors], tmp_path: Path) -> None:
    path = tmp_path / "plan.yml"
    path.write_text(PLAN.format(name="composed", root=tmp_path))
    with pytest.raises(mergegraph.PlanError, match="unknown merge method 'composed'"):
        mergegraph.compile_plan(path)
