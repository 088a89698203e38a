"""Experts merge as logical matrices: how a checkpoint stores them changes no bit of the result."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergegraph import run, verify
from mergegraph.engine.verbs import compile_plan, explain
from mergegraph.errors import PlanError
from mergegraph.storage.publish import staging_path
from tests.engine.mixtures import (
    EXPERTS,
    HIDDEN,
    INNER,
    LAYERS,
    Mixtures,
    Tensors,
    llama4,
    mixtral,
    read,
    same_bits,
    separate,
    stacked,
)
from tests.engine.process import kill_at
from tests.engine.scenario import contents
from tests.engine.test_verify import flip, place_of

METHODS: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {},
    "slerp": {"parameters": {"t": 0.3}},
    "ties": {"parameters": {"density": 0.4}},
    "dare_ties": {"parameters": {"density": 0.6}, "seed": 5},
    "della": {"parameters": {"density": 0.6, "epsilon": 0.1}, "seed": 5},
    "model_stock": {},
    "sce": {"parameters": {"select_topk": 0.5}},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mixtures:
    found = Mixtures(tmp_path_factory.mktemp("mixtures"))
    for seed, name in enumerate(("base", "a", "b")):
        tensors = mixtral(seed)
        found.write(f"separate/{name}", tensors)
        found.write(f"stacked/{name}", stacked(tensors))
        respelled = {n.replace("block_sparse_moe", "mlp"): x for n, x in tensors.items()}
        found.write(f"other/{name}", respelled)
        found.write(f"narrow/{name}", stacked(tensors), narrow=True)
        found.write(f"llama4/{name}", llama4(seed), model_type="llama4_text", num_hidden_layers=2)
    return found


def arguments(method: str, layouts: tuple[str, str, str]) -> tuple[list[str], dict[str, Any]]:
    base, a, b = (f"{layout}/{name}" for layout, name in zip(layouts, ("base", "a", "b"), strict=True))
    match method:
        case "linear":
            return [base, a, b], METHODS[method]
        case "slerp":
            return [a], METHODS[method] | {"base": base}
    return [a, b], METHODS[method] | {"base": base}


def merged(
    models: Mixtures, method: str, layouts: tuple[str, str, str], out: Path, **options: Any
) -> Tensors:
    names, changes = arguments(method, layouts)
    run(models.plan(method, *names, **changes), out, **{"threads": 2, **options})
    return read(out)


SEP, STACK = "separate", "stacked"
MIXED = [
    (SEP, STACK, SEP),
    (STACK, SEP, SEP),
    (STACK, STACK, SEP),
    (STACK, STACK, STACK),
    (SEP, "other", STACK),
]


@pytest.mark.parametrize("method", METHODS)
def test_layouts_change_no_bit_of_any_logical_matrix(models: Mixtures, tmp_path: Path, method: str) -> None:
    expected = merged(models, method, (SEP, SEP, SEP), tmp_path / "expected")
    for number, layouts in enumerate(MIXED):
        found = merged(models, method, layouts, tmp_path / f"out{number}")
        used = layouts[:2] if method == "slerp" else layouts
        wanted = stacked(expected) if set(used) == {STACK} else expected
        same_bits(found, wanted)


def test_statistics_are_those_of_single_matrices(models: Mixtures, tmp_path: Path) -> None:
    """The angle of a slerp is that between two matrices, not that between two stacks."""
    found = separate(merged(models, "slerp", (STACK, STACK, STACK), tmp_path / "out"))
    base, a = mixtral(0), mixtral(1)
    for name in (
        "model.layers.1.block_sparse_moe.experts.2.w1.weight",
        "model.layers.0.block_sparse_moe.experts.3.w2.weight",
    ):
        x, y = base[name].astype(np.float64), a[name].astype(np.float64)
        cosine = float((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y))
        angle = np.arccos(cosine)
        expected = (np.sin(0.7 * angle) * x + np.sin(0.3 * angle) * y) / np.sin(angle)
        assert np.abs(found[name] - expected).max() < 1e-6


# ---- which layout is written -----------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [(SEP, SEP, SEP), (STACK, STACK, STACK), (SEP, STACK, SEP)])
@pytest.mark.parametrize("layout", [SEP, STACK])
def test_the_layout_can_be_chosen(
    models: Mixtures, tmp_path: Path, inputs: tuple[str, str, str], layout: str
) -> None:
    expected = merged(models, "dare_ties", (SEP, SEP, SEP), tmp_path / "expected")
    names, changes = arguments("dare_ties", inputs)
    plan = models.plan("dare_ties", *names, **changes)
    run(plan, tmp_path / "out", expert_layout="stacked" if layout == STACK else "per-expert")
    same_bits(read(tmp_path / "out"), stacked(expected) if layout == STACK else expected)
    assert verify(tmp_path / "out") == []


def test_stacks_keep_their_order_among_the_tensors(models: Mixtures) -> None:
    compiled = compile_plan(models.plan("linear", "stacked/a", "stacked/b"), threads=1)
    model = next(iter(compiled.inputs.values()))
    found, stored = (
        [n for n in names if ".layers." in n] for names in (compiled.graph.outputs, model.index.tensors)
    )
    assert found == stored


# ---- copies ----------------------------------------------------------------------------------------


def test_passing_stacks_through_copies_them_whole(models: Mixtures, tmp_path: Path) -> None:
    compiled = compile_plan(models.plan("passthrough", "stacked/a"), threads=1)
    for output in compiled.graph.outputs.values():
        assert output.kind == "copied" and len(output.parts) == 1
        assert all(source.view is None for source in output.parts[0].sources)
    run(compiled, tmp_path / "out")
    same_bits(read(tmp_path / "out"), stacked(mixtral(1)))
    assert compiled.report.dropped == ()
    summary = compiled.summary()
    assert summary["bytes_read"] == sum(x.nbytes for x in mixtral(1).values())


@pytest.mark.parametrize("layout", [SEP, STACK, "llama4", "narrow"])
def test_every_layout_passes_through_byte_for_byte(models: Mixtures, tmp_path: Path, layout: str) -> None:
    run(models.plan("passthrough", f"{layout}/b"), tmp_path / "out")
    same_bits(read(tmp_path / "out"), read(models.root / layout / "b"))


def test_a_copy_in_the_other_layout_holds_the_same_bytes(models: Mixtures, tmp_path: Path) -> None:
    run(models.plan("passthrough", "stacked/a"), tmp_path / "separate", expert_layout="per-expert")
    same_bits(read(tmp_path / "separate"), mixtral(1))
    run(models.plan("passthrough", "separate/a"), tmp_path / "stacked", expert_layout="stacked")
    same_bits(read(tmp_path / "stacked"), stacked(mixtral(1)))
    assert verify(tmp_path / "separate") == verify(tmp_path / "stacked") == []


def slices(*parts: tuple[Path, int, int]) -> list[dict[str, Any]]:
    return [{"sources": [{"model": str(m), "layer_range": [a, b]}]} for m, a, b in parts]


@pytest.mark.parametrize("layouts", [(SEP, SEP), (STACK, STACK), (SEP, STACK), (STACK, SEP)])
def test_layers_of_several_models_are_laid_end_to_end(
    models: Mixtures, tmp_path: Path, layouts: tuple[str, str]
) -> None:
    a, b = (models.root / layout / name for layout, name in zip(layouts, ("a", "b"), strict=True))
    parts = slices((a, 0, 2), (b, 1, 3), (a, 2, 3))
    plan = tmp_path / "plan.yml"
    plan.write_text(json.dumps({"merge_method": "passthrough", "slices": parts}))
    run(plan, tmp_path / "out", threads=2)
    expected: Tensors = {}
    own = {"a": mixtral(1), "b": mixtral(2)}
    for position, (name, layer) in enumerate([("a", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2)]):
        for key, x in own[name].items():
            if key.startswith(f"model.layers.{layer}."):
                expected[key.replace(f".{layer}.", f".{position}.", 1)] = x
    expected |= {"model.embed_tokens.weight": own["a"]["model.embed_tokens.weight"]}
    expected |= {"lm_head.weight": own["a"]["lm_head.weight"]}
    same_bits(read(tmp_path / "out"), stacked(expected) if set(layouts) == {STACK} else expected)


def test_merged_slices_of_other_layers_do_not_depend_on_the_layout(models: Mixtures, tmp_path: Path) -> None:
    found = {}
    for layouts in ((SEP, SEP), (STACK, SEP), (STACK, STACK)):
        a, b = (str(models.root / layout / n) for layout, n in zip(layouts, ("a", "b"), strict=True))
        sources = [{"model": a, "layer_range": [0, 2]}, {"model": b, "layer_range": [1, 3]}]
        plan = tmp_path / "plan.yml"
        part = {"sources": sources, "base_model": a}
        plan.write_text(
            json.dumps(
                {"merge_method": "slerp", "base_model": a, "slices": [part], "parameters": {"t": [0, 1]}}
            )
        )
        out = tmp_path / "-".join(layouts)
        run(plan, out)
        found[layouts] = read(out)
    same_bits(found[STACK, SEP], found[SEP, SEP])
    same_bits(found[STACK, STACK], stacked(found[SEP, SEP]))


# ---- other families --------------------------------------------------------------------------------


def test_transposed_stacks_merge_matrix_by_matrix(models: Mixtures, tmp_path: Path) -> None:
    found = merged(models, "ties", ("llama4", "llama4", "llama4"), tmp_path / "out")
    alone = Mixtures(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        held: Tensors = {}
        for tensor, x in llama4(seed).items():
            if "experts.gate_up" in tensor:
                for e, matrix in enumerate(x):
                    held[f"g{e}"], held[f"u{e}"] = (
                        np.ascontiguousarray(m) for m in np.split(matrix, 2, axis=1)
                    )
            elif "experts.down" in tensor:
                held |= {f"d{e}": matrix for e, matrix in enumerate(x)}
        alone.write(name, held)
    run(alone.plan("ties", "a", "b", base="base", parameters={"density": 0.4}), tmp_path / "alone")
    expected = read(tmp_path / "alone")
    prefix = "model.layers.1.feed_forward.experts."
    for e in range(EXPERTS):
        both = np.concatenate([expected[f"g{e}"], expected[f"u{e}"]], axis=1)
        assert found[prefix + "gate_up_proj"][e].tobytes() == both.tobytes()
        assert found[prefix + "down_proj"][e].tobytes() == expected[f"d{e}"].tobytes()
    assert found.keys() == llama4(0).keys()


def test_layers_without_experts_and_shared_experts_are_merged_as_they_are(
    models: Mixtures, tmp_path: Path
) -> None:
    found = merged(models, "linear", ("llama4", "llama4", "llama4"), tmp_path / "out")
    for name in (
        "model.layers.0.feed_forward.gate_proj.weight",
        "model.layers.1.feed_forward.shared_expert.up_proj.weight",
    ):
        parts = [llama4(seed)[name].astype(np.float64) for seed in range(3)]
        expected = sum(w * x for w, x in zip((0.6, 0.7, 0.4), parts, strict=True)) / 1.7
        assert np.abs(found[name] - expected).max() < 1e-6


def test_correction_biases_stay_in_float32(tmp_path: Path) -> None:
    models = Mixtures(tmp_path)
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    for seed, name in enumerate(("a", "b")):
        own = {n.replace("block_sparse_moe", "mlp"): x for n, x in mixtral(seed).items()}
        own[bias] = np.linspace(0, 1 + seed, EXPERTS, dtype=np.float32)
        own = {n: x for n, x in own.items() if ".w" not in n}
        inside = stacked(mixtral(seed))
        models.write(
            f"stacked/{name}",
            own | {n: x for n, x in inside.items() if "experts" in n},
            narrow=True,
            model_type="deepseek_v3",
        )
        names = {".w1.": ".gate_proj.", ".w2.": ".down_proj.", ".w3.": ".up_proj."}
        for n, x in mixtral(seed).items():
            role = next((r for r in names if r in n), None)
            if role:
                own[n.replace("block_sparse_moe", "mlp").replace(role, names[role])] = x
        models.write(f"separate/{name}", own, narrow=True, model_type="deepseek_v3")
    outs = []
    for a, b in ((SEP, SEP), (SEP, STACK), (STACK, STACK)):
        out = tmp_path / f"{a}-{b}"
        run(models.plan("linear", f"{a}/a", f"{b}/b", dtype="bfloat16"), out)
        found = read(out)
        assert found[bias].dtype == np.float32
        expected = (0.6 * np.linspace(0, 1, EXPERTS) + 0.7 * np.linspace(0, 2, EXPERTS)) / 1.3
        assert np.abs(found[bias] - expected).max() < 1e-7
        others = {x.dtype for n, x in found.items() if n != bias}
        assert others == {np.dtype(np.int16)}, "bfloat16, read as its bits"
        outs.append(found)
    same_bits(outs[0], outs[1])
    assert "model.layers.0.mlp.experts.gate_up_proj" in outs[2]


# ---- experts that not all models have --------------------------------------------------------------


@pytest.mark.parametrize("layouts", [(SEP, SEP), (STACK, STACK), (STACK, SEP)])
def test_models_with_other_numbers_of_experts_do_not_merge(tmp_path: Path, layouts: tuple[str, str]) -> None:
    models = Mixtures(tmp_path)
    for name, count, layout in (("a", 4, layouts[0]), ("b", 3, layouts[1])):
        tensors = mixtral(1, experts=count)
        models.write(f"{layout}/{name}", stacked(tensors) if layout == STACK else tensors)
    with pytest.raises(PlanError, match=r"gate\.weight has different shapes: \[4, 24\].*\[3, 24\]"):
        compile_plan(models.plan("linear", f"{layouts[0]}/a", f"{layouts[1]}/b"))


def test_an_expert_that_one_model_lacks_is_told(models: Mixtures, tmp_path: Path) -> None:
    lame = Mixtures(tmp_path)
    tensors = {n: x for n, x in mixtral(1).items() if "layers.1.block_sparse_moe.experts.2.w3" not in n}
    lame.write("b", tensors)
    (tmp_path / "stacked").symlink_to(models.root / "stacked")
    compiled = compile_plan(lame.plan("linear", "stacked/a", "b"))
    (partial,) = compiled.report.partial
    assert partial.tensor == "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    assert partial.missing_from == (str(tmp_path / "b"),)
    with pytest.raises(PlanError, match=r"experts\.2\.w3\.weight is in .*a but not in .*b"):
        compile_plan(lame.plan("ties", "stacked/a", base="b", parameters={"density": 0.5}))


@pytest.mark.parametrize("layouts", [(SEP, SEP), (STACK, STACK), (STACK, SEP)])
def test_experts_of_other_sizes_do_not_merge(tmp_path: Path, layouts: tuple[str, str]) -> None:
    models = Mixtures(tmp_path)
    for name, inner, layout in (("a", INNER, layouts[0]), ("b", INNER - 8, layouts[1])):
        tensors = mixtral(1, inner=inner)
        models.write(f"{layout}/{name}", stacked(tensors) if layout == STACK else tensors)
    with pytest.raises(PlanError, match="has different shapes"):
        compile_plan(models.plan("linear", f"{layouts[0]}/a", f"{layouts[1]}/b"))


@pytest.mark.parametrize("layouts", [(SEP, SEP), (STACK, STACK), (STACK, SEP)])
@pytest.mark.parametrize("what", ["experts", "inner"])
def test_layers_may_have_experts_of_their_own_number_and_size(
    tmp_path: Path, layouts: tuple[str, str], what: str
) -> None:
    """Pruned and grown models differ from layer to layer."""
    models = Mixtures(tmp_path)
    for seed, (name, layout) in enumerate(zip(("a", "b"), layouts, strict=True)):
        tensors: Tensors = {}
        for layer, size in enumerate((4, 3, 6)):
            own = mixtral(seed, experts=size) if what == "experts" else mixtral(seed, inner=8 * size)
            tensors |= {n: x for n, x in own.items() if f"layers.{layer}." in n or "layers" not in n}
        models.write(f"{layout}/{name}", stacked(tensors) if layout == STACK else tensors)
        models.write(f"plain/{name}", tensors)
    run(models.plan("linear", "plain/a", "plain/b"), tmp_path / "expected")
    run(models.plan("linear", f"{layouts[0]}/a", f"{layouts[1]}/b"), tmp_path / "out")
    expected = read(tmp_path / "expected")
    same_bits(read(tmp_path / "out"), stacked(expected) if set(layouts) == {STACK} else expected)


# ---- checking and continuing -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["linear", "passthrough"])
@pytest.mark.parametrize("layout", [STACK, "llama4", SEP])
def test_one_flipped_bit_is_found_in_any_layout(
    models: Mixtures, tmp_path: Path, method: str, layout: str
) -> None:
    out = tmp_path / "out"
    inputs = [f"{layout}/a", f"{layout}/b"] if method == "linear" else [f"{layout}/a"]
    run(models.plan(method, *inputs), out)
    assert verify(out) == []
    found = [
        n for n in read(out) if "experts.gate_up_proj" in n or "experts.down" in n or "experts.2.w2" in n
    ]
    tensor = found[-1] if layout == STACK else found[0]
    path, begin, end = place_of(out, tensor)
    for position in (begin, begin + (end - begin) // 3, (begin + end) // 2 + 7, end - 1):
        flip(path, position)
        assert verify(out) == [tensor]
        flip(path, position)
    assert verify(out) == []


@pytest.mark.parametrize("layout", [STACK, "llama4"])
def test_a_stack_with_more_or_fewer_experts_than_were_written_is_found(
    models: Mixtures, tmp_path: Path, layout: str
) -> None:
    from safetensors.numpy import load_file, save_file

    out = tmp_path / "out"
    run(models.plan("linear", f"{layout}/a", f"{layout}/b"), out)
    path = out / "model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if "experts.gate_up_proj" in n)
    whole = tensors[name]
    for changed in (whole[:-1], np.concatenate([whole, np.zeros_like(whole[:1])]), whole[:, :, :-1].copy()):
        save_file(tensors | {name: changed}, path, metadata={"format": "pt"})
        assert verify(out) == [name]
    save_file(tensors, path, metadata={"format": "pt"})
    assert verify(out) == []


@pytest.mark.parametrize("layout", [STACK, "llama4"])
def test_exchanged_experts_are_found(models: Mixtures, tmp_path: Path, layout: str) -> None:
    from safetensors.numpy import load_file, save_file

    out = tmp_path / "out"
    run(models.plan("linear", f"{layout}/a", f"{layout}/b"), out)
    path = out / "model.safetensors"
    tensors = load_file(path)
    name = next(n for n in tensors if "experts.down_proj" in n)
    save_file(tensors | {name: tensors[name][[1, 0, *range(2, EXPERTS)]]}, path, metadata={"format": "pt"})
    assert verify(out) == [name]


@pytest.mark.parametrize("layout", [STACK, "llama4"])
@pytest.mark.parametrize(("point", "after"), [("record", 5), ("write", 30)])
def test_a_killed_run_goes_on_in_the_middle_of_a_stack(
    models: Mixtures, tmp_path: Path, layout: str, point: str, after: int
) -> None:
    names, changes = arguments("ties", (layout, layout, layout))
    plan = models.plan("ties", *names, **changes)
    options: dict[str, Any] = {"threads": 1}
    run(plan, tmp_path / "expected" / "out", **options)
    out = tmp_path / "out"
    kill_at(plan, out, point, after, **options)
    assert staging_path(out).exists() and not out.exists()
    report = run(plan, out, **options)
    assert (report.resumed > 0) is (point == "record"), "small matrices are journalled in batches"
    assert contents(out) == contents(tmp_path / "expected" / "out")


@pytest.mark.parametrize(
    "layouts", [(STACK, STACK, STACK), ("llama4", "llama4", "llama4"), (STACK, SEP, STACK)]
)
def test_memory_and_threads_change_no_byte(
    tmp_path: Path, models: Mixtures, layouts: tuple[str, str, str]
) -> None:
    names, changes = arguments("dare_ties", layouts)
    plan = models.plan("dare_ties", *names, **changes)
    found: list[dict[str, bytes]] = []
    for threads, memory, shard in ((1, "1GiB", "5GB"), (4, "1GiB", "5GB"), (2, "180MiB", "5GB")):
        out = tmp_path / f"{threads}-{memory}" / "out"
        run(plan, out, threads=threads, memory=memory, shard_size=shard)
        found.append(contents(out))
    assert found[0] == found[1] == found[2]
    run(plan, tmp_path / "shards", shard_size=20_000)
    same_bits(read(tmp_path / "shards"), read(tmp_path / "1-1GiB" / "out"))
    assert verify(tmp_path / "shards") == []


def test_stacks_of_many_tiles_are_written_in_any_order(tmp_path: Path) -> None:
    """Matrices longer than a tile, in halves of columns."""
    models = Mixtures(tmp_path)
    rng = np.random.default_rng(3)
    shapes = {"gate_up_proj": (2, 700, 1600), "down_proj": (2, 800, 700)}
    for name in ("a", "b"):
        tensors = {
            f"model.layers.0.feed_forward.experts.{n}": rng.standard_normal(s).astype(np.float32)
            for n, s in shapes.items()
        }
        models.write(name, tensors, model_type="llama4_text", num_hidden_layers=1)
    plan = models.plan("linear", "a", "b")
    run(plan, tmp_path / "out", threads=4)
    found, a, b = (read(tmp_path / n) for n in ("out", "a", "b"))
    for name, x in found.items():
        expected = (0.6 * a[name].astype(np.float64) + 0.7 * b[name]) / 1.3
        assert np.abs(x - expected).max() < 1e-6
    run(plan, tmp_path / "again", threads=1)
    same_bits(read(tmp_path / "again"), found)
    assert verify(tmp_path / "out") == []


# ---- what is told ----------------------------------------------------------------------------------


@pytest.fixture
def both(models: Mixtures) -> Iterator[Any]:
    yield compile_plan(models.plan("linear", "stacked/a", "separate/b"), threads=1)


def test_a_dry_run_counts_what_is_read(models: Mixtures, both: Any) -> None:
    size = sum(x.nbytes for x in mixtral(1).values())
    assert both.summary()["bytes_read"] == 2 * size
    assert both.report.dropped == () and both.report.partial == ()
    only = compile_plan(models.plan("linear", "stacked/a", "stacked/b"), threads=1).summary()
    assert only["bytes_read"] == 2 * size and only["dropped"] == [] and only["partial"] == []


def test_a_run_reports_whole_tensors(models: Mixtures, tmp_path: Path) -> None:
    report = run(models.plan("linear", "stacked/a", "stacked/b"), tmp_path / "out")
    count = len(stacked(mixtral(1)))
    assert (report.tensors, report.merged, report.copied) == (count, count, 0)
    size = sum(x.nbytes for x in mixtral(1).values())
    assert (report.bytes_read, report.bytes_written) == (2 * size, size)


def test_layers_left_out_of_a_stacked_model_are_told(models: Mixtures, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yml"
    parts = slices((models.root / "stacked" / "a", 0, 2))
    plan.write_text(json.dumps({"merge_method": "passthrough", "slices": parts}))
    dropped = compile_plan(plan).report.dropped
    assert {d.reason for d in dropped} == {"its layer is in no slice"}
    assert {d.tensor.split("[")[0] for d in dropped} == {n for n in stacked(mixtral(1)) if "layers.2." in n}


def test_a_stack_is_explained_expert_by_expert(models: Mixtures) -> None:
    compiled = compile_plan(models.plan("linear", "stacked/a", "stacked/b"), threads=1)
    text = explain(compiled, "model.layers.1.mlp.experts.gate_up_proj")
    assert "weight (" in text and "# " in text, "its parameters, with their lines"
    assert f"float32[{EXPERTS}, {2 * INNER}, {HIDDEN}]" in text
    assert f"a:model.layers.1.mlp.experts.gate_up_proj[rows {3 * INNER}:{4 * INNER}]" in text
    assert text.splitlines()[-1].startswith("return pieces(")


def test_a_matrix_from_a_stack_says_where_it_lies(both: Any) -> None:
    text = explain(both, "model.layers.1.block_sparse_moe.experts.1.w3.weight")
    assert f"a:model.layers.1.mlp.experts.gate_up_proj[rows {3 * INNER}:{4 * INNER}]" in text
    assert "b:model.layers.1.block_sparse_moe.experts.1.w3.weight" in text
    assert "weight (" in text


def test_asking_for_a_matrix_of_a_stacked_output_names_the_stack(models: Mixtures) -> None:
    compiled = compile_plan(models.plan("linear", "stacked/a", "stacked/b"), threads=1)
    with pytest.raises(PlanError) as caught:
        explain(compiled, "model.layers.1.block_sparse_moe.experts.1.w3.weight")
    assert "model.layers.1.mlp.experts.gate_up_proj" in str(caught.value)


# ---- filters ---------------------------------------------------------------------------------------

W1, W2, GATE = "experts.1.w1.weight", "experts.1.w2.weight", "gate.weight"


@pytest.mark.parametrize("layouts", [(SEP, SEP), (STACK, STACK), (STACK, SEP), (SEP, STACK)])
@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("mlp", (True, True, True)),
        ("block_sparse_moe", (True, True, True)),
        ("gate_up_proj", (True, False, False)),
        ("down_proj", (False, True, False)),
        ("experts.1.", (True, True, False)),
        ("experts.2.", (False, False, False)),
        (".w2.", (False, True, False)),
        ("mlp.gate.", (False, False, True)),
        ("self_attn", (False, False, False)),
    ],
)
@pytest.mark.parametrize("scope", ["shared", "each"])
def test_filters_may_use_either_spelling(
    models: Mixtures, layouts: tuple[str, str], text: str, met: tuple[bool, ...], scope: str
) -> None:
    a, b = (f"{layout}/{name}" for layout, name in zip(layouts, ("a", "b"), strict=True))
    setting = [{"filter": text, "value": 0.25}, {"value": 0.75}]
    if scope == "shared":
        plan = models.plan("slerp", b, base=a, parameters={"t": setting})
    else:
        plan = models.plan(
            "linear",
            a,
            b,
            models=[
                {"model": str(models.root / a), "parameters": {"weight": setting}},
                {"model": str(models.root / b), "parameters": {"weight": 1.0}},
            ],
        )
    found = {}
    compiled = compile_plan(plan, threads=1)
    for assignment in compiled.report.parameters:
        value = assignment.shared["t"] if scope == "shared" else assignment.each[0][1]["weight"]
        found |= dict.fromkeys(assignment.tensors, value)
    prefix = "model.layers.1.block_sparse_moe."
    assert tuple(found[prefix + name] == 0.25 for name in (W1, W2, GATE)) == met
    idle = any("matches no tensor" in note for note in compiled.report.notes)
    assert idle is (text == "self_attn")


@pytest.mark.parametrize("scope", ["shared", "each"])
@pytest.mark.parametrize("text", ["gate_up_proj", "down_proj", "feed_forward", "experts.2."])
def test_filters_see_the_names_of_stacks_that_have_no_other_form(
    models: Mixtures, text: str, scope: str
) -> None:
    setting = [{"filter": text, "value": 0.25}, {"value": 0.75}]
    a, b = str(models.root / "llama4/a"), str(models.root / "llama4/b")
    if scope == "shared":
        plan = models.plan("slerp", "llama4/b", base="llama4/a", parameters={"t": setting})
    else:
        plan = models.plan(
            "linear",
            "llama4/a",
            "llama4/b",
            models=[
                {"model": a, "parameters": {"weight": setting}},
                {"model": b, "parameters": {"weight": 1.0}},
            ],
        )
    compiled = compile_plan(plan, threads=1)
    values = {
        (x.shared["t"] if scope == "shared" else x.each[0][1]["weight"]): x.tensors
        for x in compiled.report.parameters
    }
    assert 0.25 in values, "the filter met nothing"
    assert not any("matches no tensor" in note for note in compiled.report.notes)
    assert len(values[0.25]) >= (3 if text == "experts.2." else EXPERTS)


def test_layers_count_as_they_did(models: Mixtures) -> None:
    compiled = compile_plan(models.plan("linear", "stacked/a", "separate/b"), threads=1)
    assert all(model.layers == LAYERS for model in compiled.inputs.values())
