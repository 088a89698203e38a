"""The checkpoints that tests and the demo are made of are real ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mergegraph.testing import Llama, prepare_demo, write_checkpoint, write_llama
from mergegraph.testing.tiny import from_bfloat16, to_bfloat16

TINY = Llama(layers=2, hidden=16, intermediate=24, heads=4, kv_heads=2, vocab=40)


def load_all(directory: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in sorted(directory.glob("*.safetensors")) for k, v in load_file(path).items()}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_transformers_loads_every_tensor_and_invents_none(tmp_path: Path, dtype: str, tied: bool) -> None:
    shape = Llama(layers=2, hidden=16, intermediate=24, heads=4, kv_heads=2, vocab=40, tied=tied)
    write_llama(tmp_path, shape, dtype=dtype, shard_size=3000)

    model, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto", output_loading_info=True)

    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert (
        model.lm_head.weight.dtype
        == {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[dtype]
    )
    assert model.config.tie_word_embeddings is tied
    stored = load_all(tmp_path)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in stored.items())
    assert torch.isfinite(model(torch.tensor([[1, 5, 7]])).logits).all()


def test_a_sharded_checkpoint_has_an_index_of_every_tensor(tmp_path: Path) -> None:
    write_llama(tmp_path, TINY, shard_size=3000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files == sorted(set(index["weight_map"].values()))
    assert index["weight_map"].keys() == TINY.shapes().keys()
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in load_all(tmp_path).values())


def test_a_shard_is_byte_for_byte_what_safetensors_writes(tmp_path: Path) -> None:
    write_llama(tmp_path / "ours", TINY)
    tensors = load_file(tmp_path / "ours" / "model.safetensors")
    save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "ours" / "model.safetensors").read_bytes() == (
        tmp_path / "theirs.safetensors"
    ).read_bytes()


def test_weights_depend_on_the_seed_and_not_on_the_sharding(tmp_path: Path) -> None:
    one = load_all(write_llama(tmp_path / "one", TINY, seed=4))
    many = load_all(write_llama(tmp_path / "many", TINY, seed=4, shard_size=2000))
    other = load_all(write_llama(tmp_path / "other", TINY, seed=5))
    assert all(torch.equal(one[name], many[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_a_fine_tune_is_a_small_change_of_its_base(tmp_path: Path) -> None:
    base = write_llama(tmp_path / "base", TINY, seed=1, dtype="F32", shard_size=3000)
    tuned = write_llama(tmp_path / "tuned", TINY, seed=2, dtype="F32", finetune_of=base)
    before, after = load_all(base), load_all(tuned)
    for name in before:
        change = (after[name] - before[name]).std().item()
        assert 0.001 < change < 0.004, name


def test_the_tokenizer_round_trips_any_text(tmp_path: Path) -> None:
    write_llama(tmp_path, Llama(layers=1, hidden=8, intermediate=8, heads=2, kv_heads=1, vocab=300))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "Hello, wörld!\n\t→ 你好"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)


def test_a_tokenizer_never_exceeds_a_small_vocabulary(tmp_path: Path) -> None:
    write_llama(tmp_path, TINY)
    ids = AutoTokenizer.from_pretrained(tmp_path)("any text ÿ")["input_ids"]
    assert max(ids) < TINY.vocab


def test_given_arrays_are_stored_as_they_are(tmp_path: Path) -> None:
    tensors = {
        "z.f32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a.i64": np.arange(3),
        "m.bool": np.array([True, False]),
        "b.bf16": np.array([1.0, 1.00390625, np.nan, -np.inf], dtype=np.float32),
        "scalar": np.float64(2.5).reshape(()),
        "empty": np.zeros((0, 4), dtype=np.float16),
    }
    write_checkpoint(tmp_path, tensors, bfloat16=["b.bf16"], config={"model_type": "toy"})
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found["b.bf16"].dtype == torch.bfloat16
    for name in tensors.keys() - {"b.bf16"}:
        np.testing.assert_array_equal(found[name].numpy(), tensors[name])
        assert found[name].shape == tensors[name].shape
    assert json.loads((tmp_path / "config.json").read_text()) == {"model_type": "toy"}


def test_bfloat16_rounds_as_torch_does() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, dtype=np.uint32)
    values = np.concatenate(
        [bits.view(np.float32), np.float32([0, -0.0, np.inf, -np.inf, np.nan, 3.4028235e38])]
    )
    ours = from_bfloat16(to_bfloat16(values))
    theirs = torch.from_numpy(values).bfloat16().float().numpy()
    np.testing.assert_array_equal(ours, theirs)


def test_the_demo_makes_three_sharded_models_and_two_plans(tmp_path: Path) -> None:
    plans = prepare_demo(tmp_path / "demo", shape=TINY, shard_size=3000)
    assert [path.name for path in plans] == ["slerp.yml", "ties.yml"]
    for name in ("base", "chat", "code"):
        assert len(list((tmp_path / "demo" / name).glob("*.safetensors"))) > 1
    for plan in plans:
        assert f"model: {tmp_path}/demo/chat" in plan.read_text()
