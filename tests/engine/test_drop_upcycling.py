"""Drop-upcycling: which neurons are drawn anew, from what, and that nothing else is touched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mergegraph import run
from mergegraph.storage.publish import staging_path
from mergegraph.testing import Llama, write_llama
from tests.engine.mixtures import Array, Tensors, read, same_bits, separate
from tests.engine.process import kill_at
from tests.engine.scenario import contents

LAYERS, HIDDEN, INNER, EXPERTS = 2, 48, 250, 3
SHAPE = Llama(layers=LAYERS, hidden=HIDDEN, intermediate=INNER, heads=4, kv_heads=2, vocab=64)
ROLES = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose values are shifted, so that means tell something."""
    return write_llama(tmp_path_factory.mktemp("dense") / "model", SHAPE, seed=1, dtype="F32")


def plan(model: Path, at: Path, **more: Any) -> Path:
    wanted = {"surgery": "upcycle", "model": str(model), "experts": EXPERTS, "method": "drop", "seed": 7}
    at.mkdir(parents=True, exist_ok=True)
    path = at / "plan.yml"
    path.write_text(json.dumps({**wanted, **more}))
    return path


def upcycled(model: Path, at: Path, options: dict[str, Any] | None = None, **more: Any) -> Tensors:
    run(plan(model, at, **more), at / "out", **(options or {}))
    return read(at / "out")


def neurons(x: Array, role: str) -> Array:
    """A matrix with a row for each neuron."""
    return x.T if role == "w2" else x


def drawn(tensors: Tensors, dense: Tensors, layer: int, expert: int, role: str) -> Array:
    """Which neurons of an expert's matrix have changed; those must have changed throughout."""
    new = neurons(tensors[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{role}.weight"], role)
    old = neurons(dense[f"model.layers.{layer}.mlp.{ROLES[role]}.weight"], role)
    same = new == old
    assert (same.all(axis=1) | ~same.any(axis=1)).all(), "a neuron is kept, or drawn anew as a whole"
    return ~same.all(axis=1)


PLACES = [(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]


@pytest.mark.parametrize("ratio", [0.5, 0.3, 0.002, 0.0021, 0.01, 1.0])
def test_exactly_the_stated_share_of_neurons_is_drawn_anew(model: Path, tmp_path: Path, ratio: float) -> None:
    found, dense = upcycled(model, tmp_path, ratio=ratio), read(model)
    for layer, expert in PLACES:
        chosen = drawn(found, dense, layer, expert, "w1")
        assert chosen.sum() == round(ratio * INNER)
        assert (drawn(found, dense, layer, expert, "w3") == chosen).all(), "gate and up agree"
        assert (drawn(found, dense, layer, expert, "w2") == chosen).all(), "so does down"


def test_every_expert_of_every_layer_draws_other_neurons(model: Path, tmp_path: Path) -> None:
    found, dense = upcycled(model, tmp_path), read(model)
    chosen = {place: drawn(found, dense, *place, "w1") for place in PLACES}
    for one in PLACES:
        for other in PLACES:
            if one < other:
                both = (chosen[one] & chosen[other]).sum()
                assert 0.3 * INNER / 2 < both < 0.7 * INNER / 2, "as far apart as chance has it"


def test_new_values_have_mean_and_deviation_of_what_they_replace(tmp_path: Path) -> None:
    from mergegraph.testing import write_checkpoint

    shape = Llama(layers=1, hidden=96, intermediate=400, heads=4, kv_heads=2, vocab=32)
    random = np.random.default_rng(5)
    means = {"gate_proj": 0.5, "up_proj": -1.0, "down_proj": 0.25}
    tensors = {}
    for name, size in shape.shapes().items():
        x = random.standard_normal(size)
        role = next((r for r in means if r in name), None)
        if role is not None:  # every neuron has a mean of its own
            own = np.arange(400) / 400 + means[role]
            x = 0.1 * x + (own if role == "down_proj" else own[:, None])
        tensors[name] = x.astype(np.float32)
    model = write_checkpoint(tmp_path / "model", tensors, config=shape.config("F32"))
    found = upcycled(model, tmp_path)
    for expert in range(EXPERTS):
        for role, dense in ROLES.items():
            old = neurons(tensors[f"model.layers.0.mlp.{dense}.weight"], role)
            new = neurons(found[f"model.layers.0.block_sparse_moe.experts.{expert}.{role}.weight"], role)
            chosen = (new != old).all(axis=1)
            replaced, values = old[chosen].astype(np.float64), new[chosen].astype(np.float64)
            error = replaced.std() / np.sqrt(values.size)
            assert abs(values.mean() - replaced.mean()) < 4 * error
            assert abs(values.std() - replaced.std()) < 4 * error
            # The replaced neurons' own means are gone: values are independent of their neuron.
            assert values.mean(axis=1).std() < 0.2 * replaced.mean(axis=1).std()
            standard = (values.ravel() - values.mean()) / values.std()
            assert abs((standard**3).mean()) < 0.1 and abs((standard**4).mean() - 3) < 0.2, "normal"


def test_matrices_do_not_get_equal_values(model: Path, tmp_path: Path) -> None:
    found, dense = upcycled(model, tmp_path), read(model)
    new = {}
    for layer, expert in PLACES:
        for role in ROLES:
            name = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{role}.weight"
            chosen = drawn(found, dense, layer, expert, role)
            values = neurons(found[name], role)[chosen].ravel()
            new[layer, expert, role] = ((values - values.mean()) / values.std())[:2000]
    listed = np.stack(list(new.values()))
    correlations = np.corrcoef(listed) - np.eye(len(listed))
    assert np.abs(correlations).max() < 0.15


def test_all_but_the_experts_is_copied(model: Path, tmp_path: Path) -> None:
    found, dense = upcycled(model, tmp_path), read(model)
    for name, x in dense.items():
        if ".mlp." not in name:
            assert found[name].tobytes() == x.tobytes()


def test_seeds_decide_which_neurons(model: Path, tmp_path: Path) -> None:
    first = upcycled(model, tmp_path / "a", seed=7)
    again = upcycled(model, tmp_path / "b", options={"seed": 7}, seed=1)
    other = upcycled(model, tmp_path / "c", seed=8)
    same_bits(first, again)
    dense = read(model)
    assert (drawn(first, dense, 0, 0, "w1") != drawn(other, dense, 0, 0, "w1")).any()


def test_more_experts_leave_the_first_ones_as_they_are(model: Path, tmp_path: Path) -> None:
    few, more = upcycled(model, tmp_path / "a"), upcycled(model, tmp_path / "b", experts=EXPERTS + 2)
    same_bits(
        {n: x for n, x in few.items() if ".gate." not in n},
        {n: x for n, x in more.items() if n in few and ".gate." not in n},
    )


@pytest.mark.parametrize("architecture", ["mixtral", "granitemoe"])
def test_stacked_experts_draw_the_same_neurons(model: Path, tmp_path: Path, architecture: str) -> None:
    """In whichever tensor a matrix lies, its expert's neurons are the same."""
    apart, dense = upcycled(model, tmp_path / "a"), read(model)
    layout = {"expert_layout": "stacked"}
    found = upcycled(model, tmp_path / "b", architecture=architecture, **layout)
    names = {
        "block_sparse_moe.input_linear.weight": "mlp.experts.gate_up_proj",
        "block_sparse_moe.output_linear.weight": "mlp.experts.down_proj",
    }
    renamed = {}
    for name, x in found.items():
        layer = name.split("block_sparse_moe", 1)[0]
        renamed[layer + names[name.removeprefix(layer)] if name.removeprefix(layer) in names else name] = x
    matrices = separate(renamed)
    for layer, expert in PLACES:
        wanted = drawn(apart, dense, layer, expert, "w1")
        for role in ROLES:
            assert (drawn(matrices, dense, layer, expert, role) == wanted).all()


def test_parts_of_a_copy_draw_from_their_own_neurons(model: Path, tmp_path: Path) -> None:
    found = upcycled(model, tmp_path, experts=4, granularity=2, ratio=0.2)
    dense = read(model)
    for layer in range(LAYERS):
        gate = dense[f"model.layers.{layer}.mlp.gate_proj.weight"]
        down = dense[f"model.layers.{layer}.mlp.down_proj.weight"]
        for expert in range(4):
            half = slice(expert % 2 * INNER // 2, (expert % 2 + 1) * INNER // 2)
            prefix = f"model.layers.{layer}.block_sparse_moe.experts.{expert}."
            kept = (found[prefix + "w1.weight"] == gate[half]).all(axis=1)
            assert (~kept).sum() == round(0.2 * INNER / 2)
            assert (found[prefix + "w2.weight"] == 2 * down[:, half]).all(axis=0).tolist() == kept.tolist()


def test_noise_comes_on_top(model: Path, tmp_path: Path) -> None:
    plain = upcycled(model, tmp_path / "a")
    noisy = upcycled(model, tmp_path / "b", noise_scale=0.001)
    for name, x in plain.items():
        if ".experts." in name:
            assert 0.0005 < (noisy[name] - x).std() < 0.002


# ---- however it is run -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices of several tiles and chunks."""
    shape = Llama(layers=1, hidden=320, intermediate=1100, heads=4, kv_heads=2, vocab=64)
    return write_llama(tmp_path_factory.mktemp("large") / "model", shape, seed=1, dtype="F32")


def test_threads_tiles_and_memory_change_no_byte(large: Path, tmp_path: Path) -> None:
    found = []
    for i, (threads, memory) in enumerate(((1, "1GiB"), (4, "1GiB"), (2, "160MiB"))):
        path = plan(large, tmp_path / str(i))
        run(path, tmp_path / str(i) / "out", threads=threads, memory=memory)
        found.append(read(tmp_path / str(i) / "out"))
    same_bits(found[0], found[1])
    same_bits(found[0], found[2])


def test_a_killed_run_goes_on_to_the_same_bytes(large: Path, tmp_path: Path) -> None:
    path = plan(large, tmp_path, expert_layout="stacked")
    run(path, tmp_path / "expected" / "out", threads=1)
    out = tmp_path / "out"
    kill_at(path, out, "record", 2, threads=1)
    assert staging_path(out).exists() and not out.exists()
    run(path, out, threads=1)
    assert contents(out) == contents(tmp_path / "expected" / "out")
