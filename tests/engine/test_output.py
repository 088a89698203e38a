"""What is written is what safetensors itself would write, from inputs of any kind and shape."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mergegraph import compile_plan, run, verify
from mergegraph.engine import inspect
from mergegraph.testing import write_checkpoint
from tests.engine.scenario import (
    MEDIUM,
    METHODS,
    SHAPES,
    Scenario,
    contents,
    make,
    tensor_bytes,
    tensors_of,
    values,
)

LONG = "model." + "very_long_" * 400 + "weight"
ODD_NAMES = ("modèle.größe", "模型.权重", "emoji.🙂", "with space", 'quote".back\\slash', "tab\t", "a", LONG)


def saved_again(path: Path, scratch: Path) -> bytes:
    save_file(load_file(path), scratch, metadata={"format": "pt"})
    return scratch.read_bytes()


@pytest.mark.parametrize("shard_size", ["5GB", 400_000])
@pytest.mark.parametrize("method", METHODS)
def test_every_file_is_what_safetensors_would_save(
    shared: Scenario, tmp_path: Path, method: str, shard_size: str | int
) -> None:
    out = tmp_path / "out"
    run(shared.plan(method), out, shard_size=shard_size)
    files = sorted(out.glob("*.safetensors"))
    for path in files:
        assert path.read_bytes() == saved_again(path, tmp_path / "again"), path.name
    tensors = tensors_of(out)
    assert tensors.keys() == {*SHAPES, "model.layers.0.steps"}
    if shard_size == "5GB":
        assert [f.name for f in files] == ["model.safetensors"]
        assert not (out / "model.safetensors.index.json").exists()
        return
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors.values())
    assert index["weight_map"] == {name: f.name for f in files for name in load_file(f)}
    assert [f.name for f in files] == [
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    ]
    data = [sum(x.nbytes for x in load_file(f).values()) for f in files]
    assert all(size <= 400_000 or len(load_file(f)) == 1 for size, f in zip(data, files, strict=True))


def test_a_pass_through_is_the_input_itself(shared: Scenario, tmp_path: Path) -> None:
    report = run(shared.plan("passthrough"), tmp_path / "out")
    assert tensor_bytes(tmp_path / "out") == tensor_bytes(shared.model("chat"))
    assert (report.merged, report.copied) == (0, len(SHAPES) + 1)


def test_files_beside_the_weights_are_the_donors(shared: Scenario, tmp_path: Path) -> None:
    run(shared.plan("ties"), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == '{"of": "base"}'
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "tiny"


def test_inputs_are_not_touched(tmp_path: Path) -> None:
    scenario = make(tmp_path, shapes=MEDIUM)
    before = {
        path: (path.read_bytes(), path.stat().st_mtime_ns)
        for path in scenario.root.rglob("*")
        if path.is_file()
    }
    run(scenario.plan("ties"), tmp_path / "elsewhere" / "out", threads=2)
    for path, (data, stamp) in before.items():
        assert (path.read_bytes(), path.stat().st_mtime_ns) == (data, stamp), path


@pytest.mark.parametrize("method", METHODS)
def test_any_name_survives(tmp_path: Path, method: str) -> None:
    tensors = {
        name: {n: np.full((2, 3), i + 1.0, np.float32) for n in ODD_NAMES} for i, name in enumerate("abc")
    }
    scenario = make(
        tmp_path, dict(zip(("base", "chat", "code"), tensors.values(), strict=True)), shard_size=100
    )
    out = tmp_path / "out"
    run(scenario.plan(method), out, shard_size=50, threads=2)
    assert tensors_of(out).keys() == set(ODD_NAMES)
    for path in out.glob("*.safetensors"):
        assert path.read_bytes() == saved_again(path, tmp_path / "again")
    assert verify(out) == []
    assert inspect(str(out))["tensors"] == len(ODD_NAMES)


@pytest.mark.parametrize("shape", [(), (0,), (0, 5), (3, 0, 2), (1,), (1, 1), (5, 1), (65_536,), (65_537,)])
@pytest.mark.parametrize("method", METHODS)
def test_any_shape_alone_in_a_checkpoint_is_merged(
    tmp_path: Path, method: str, shape: tuple[int, ...]
) -> None:
    scenario = make(tmp_path, {n: values(i, {"x": shape}) for i, n in enumerate(("base", "chat", "code"))})
    report = run(scenario.plan(method), tmp_path / "out", threads=2)
    (name, tensor), *more = tensors_of(tmp_path / "out").items()
    assert (name, tuple(tensor.shape), more) == ("x", shape, [])
    assert report.bytes_written == tensor.nbytes
    assert verify(tmp_path / "out") == []


DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@pytest.mark.parametrize("first", DTYPES)
@pytest.mark.parametrize("second", DTYPES)
def test_inputs_of_different_float_types_are_merged_in_the_type_that_holds_both(
    tmp_path: Path, first: str, second: str
) -> None:
    shapes = {"w": (40, 50), "v": (3,)}
    scenario = Scenario(tmp_path)
    inputs = []
    for seed, (name, dtype) in enumerate((("chat", first), ("code", second))):
        (tmp_path / name).mkdir()
        held = {n: torch.from_numpy(x).to(DTYPES[dtype]) for n, x in values(seed, shapes).items()}
        save_file(held, tmp_path / name / "model.safetensors")
        inputs.append(held)
    out = tmp_path / "out"
    run(scenario.plan("linear", parameters={"normalize": False}), out, threads=2)
    for name, merged in tensors_of(out).items():
        exact = 0.6 * inputs[0][name].double() + 0.7 * inputs[1][name].double()
        kind = torch.promote_types(DTYPES[first], DTYPES[second])
        assert merged.dtype == kind
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
        torch.testing.assert_close(merged.double(), exact, rtol=tolerance[kind], atol=tolerance[kind])


def test_single_files_are_inputs_too(tmp_path: Path) -> None:
    scenario = make(tmp_path / "whole", shapes=MEDIUM, shard_size=None)
    run(scenario.plan("slerp"), tmp_path / "expected")
    lone = tmp_path / "lone"
    lone.mkdir()
    for name in ("base", "chat"):
        (lone / f"{name}.safetensors").write_bytes((scenario.model(name) / "model.safetensors").read_bytes())
    plan = scenario.plan(
        "slerp",
        name="lone",
        base_model=str(lone / "base.safetensors"),
        models=[{"model": str(lone / "chat.safetensors")}],
    )
    report = run(plan, tmp_path / "out")
    assert tensor_bytes(tmp_path / "out") == tensor_bytes(tmp_path / "expected")
    assert report.tensors == len(MEDIUM) + 1
    assert "config.json" not in contents(tmp_path / "out"), "a lone file has none"


def test_two_names_of_equal_headers_are_two_models(tmp_path: Path) -> None:
    """Fine-tunes of one base have equal headers: they must not be taken for one checkpoint."""
    scenario = make(
        tmp_path,
        {n: {"w": np.full((4, 4), x, np.float32)} for n, x in (("base", 0.0), ("chat", 1.0), ("code", 2.0))},
    )
    run(scenario.plan("linear", parameters={"normalize": False}), tmp_path / "out")
    expected = torch.full((4, 4), 0.6 * 1.0 + 0.7 * 2.0).bfloat16()
    assert torch.equal(tensors_of(tmp_path / "out")["w"], expected)


@pytest.mark.parametrize("method", ["slerp", "ties"])
def test_a_compiled_plan_can_be_run_and_does_what_its_summary_says(
    shared: Scenario, tmp_path: Path, method: str
) -> None:
    compiled = compile_plan(shared.plan(method), threads=2, shard_size=400_000)
    summary = compiled.summary()
    report = run(compiled, tmp_path / "out")
    files = {p.name: p.stat().st_size for p in (tmp_path / "out").glob("*.safetensors")}
    assert {s["file"]: s["bytes"] for s in summary["shards"]} == files
    assert summary["bytes_written"] == sum(files.values())
    if method == "slerp":
        assert report.bytes_read == summary["bytes_streamed"]
    else:
        assert report.bytes_read > summary["bytes_streamed"], "small tensors take passes to find thresholds"
    assert report.bytes_written == sum(x.nbytes for x in tensors_of(tmp_path / "out").values())
    assert {o["name"] for o in summary["outputs"]} == tensors_of(tmp_path / "out").keys()


def test_a_merge_can_be_merged_again(shared: Scenario, tmp_path: Path) -> None:
    run(shared.plan("slerp"), tmp_path / "first", shard_size=400_000)
    plan = shared.plan(
        "linear", name="again", models=[{"model": str(tmp_path / "first"), "parameters": {"weight": 1}}]
    )
    run(plan, tmp_path / "second")
    assert tensor_bytes(tmp_path / "second") == tensor_bytes(tmp_path / "first")


def test_a_plan_runs_from_anywhere_into_a_relative_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path / "m", {"w": np.ones(3, np.float32)})
    (tmp_path / "p.yml").write_text("merge_method: passthrough\nmodels: [{model: m}]\n")
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    report = run("../p.yml", "a/b/out")
    assert report.out == Path("a/b/out")
    assert tensor_bytes(tmp_path / "deep" / "a" / "b" / "out") == tensor_bytes(tmp_path / "m")
