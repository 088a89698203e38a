"""Running a model layer by layer gives the bits that transformers gives for the whole of it.

Each family is made by `save_pretrained` and loaded by `from_pretrained`; what is expected is
`output_hidden_states` of that model, and what a hook sees its MLPs be given.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from mergegraph.errors import CheckpointError
from mergegraph.routing import forward
from mergegraph.routing.forward import StreamedDecoder
from mergegraph.routing.prompts import PromptGroup, PromptTable
from mergegraph.routing.weights import CheckpointWeights
from mergegraph.storage.local import open_checkpoint
from mergegraph.storage.reader import Reader

LAYERS = 4
COMMON: dict[str, object] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WIDE = {**COMMON, "head_dim": 16}
WINDOW = {**COMMON, "sliding_window": 4}
SLIDING = {**WIDE, "sliding_window": 4, "query_pre_attn_scalar": 16}
QWEN2 = {**WINDOW, "use_sliding_window": True, "max_window_layers": 2}
GRANITE = {**COMMON, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.3}
QWEN3_5 = {
    **{**WIDE, "linear_num_key_heads": 2, "linear_num_value_heads": 2},
    **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
}

FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaConfig", {**COMMON, "tie_word_embeddings": False}),
    "llama tied": ("LlamaConfig", {**COMMON, "tie_word_embeddings": True}),
    "llama with biases": ("LlamaConfig", {**COMMON, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", WINDOW),
    "qwen2": ("Qwen2Config", QWEN2),
    "qwen3": ("Qwen3Config", WIDE),
    "gemma": ("GemmaConfig", WIDE),
    "gemma2": ("Gemma2Config", SLIDING),
    "gemma3": ("Gemma3TextConfig", SLIDING),
    "gemma4": ("Gemma4TextConfig", {**SLIDING, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}),
    "phi3": ("Phi3Config", COMMON),
    "olmo2": ("Olmo2Config", COMMON),
    "granite": ("GraniteConfig", GRANITE),
    "cohere2": ("Cohere2Config", WINDOW),
    "ernie4_5": ("Ernie4_5Config", COMMON),
    "glm4": ("Glm4Config", {**WIDE, "partial_rotary_factor": 0.5}),
    "smollm3": ("SmolLM3Config", COMMON),
    "qwen3_5": ("Qwen3_5TextConfig", QWEN3_5),
}
PROMPTS = (
    (1, 5, 9, 13, 17, 21, 25, 29, 33, 40),
    (1, 46, 3),
    (1, 60, 61, 62, 7, 7, 7),
    (1, 46, 3, 90, 95, 2, 8, 11, 12, 13, 14),
)
TABLE = PromptTable(PROMPTS, (PromptGroup((0, 1), ()), PromptGroup((2, 3), ())))


def save(family: str, dtype: torch.dtype, directory: Path) -> Path:
    """Write a random model of the family: norms, biases and all."""
    name, settings = FAMILIES[family]
    torch.manual_seed(7)
    loader: type = transformers.AutoModelForCausalLM
    model = loader.from_config(getattr(transformers, name)(**settings), dtype=dtype)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class Whole:
    """What the whole model gives, with padding, in the batches it was run in."""

    hidden: list[Tensor]
    router: list[Tensor]


def run_whole(directory: Path, dtype: torch.dtype, ids: Tensor, mask: Tensor) -> Whole:
    loader: type = transformers.AutoModelForCausalLM
    model = loader.from_pretrained(directory, dtype=dtype).eval()
    router: list[Tensor] = []
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda _, args: router.append(args[0]))
    with torch.no_grad():
        out = model.model(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    return Whole(list(out.hidden_states[:-1]), router)


def run_streamed(directory: Path, pooling: str) -> list[forward.LayerStates]:
    index = open_checkpoint(str(directory), name="base")
    with Reader({"base": index}) as reader:
        decoder = StreamedDecoder(CheckpointWeights(index, reader, "base"), directory, "cpu")
        return list(decoder.run(TABLE, pooling, directory))


def padded(order: list[int]) -> tuple[Tensor, Tensor]:
    width = max(len(PROMPTS[i]) for i in order)
    ids = torch.tensor([list(PROMPTS[i]) + [0] * (width - len(PROMPTS[i])) for i in order])
    mask = torch.tensor([[1] * len(PROMPTS[i]) + [0] * (width - len(PROMPTS[i])) for i in order])
    return ids, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_layer_sees_the_bits_that_the_whole_model_shows_it(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    directory = save(family, dtype, tmp_path)
    order = sorted(range(len(PROMPTS)), key=lambda i: len(PROMPTS[i]))
    whole = run_whole(directory, dtype, *padded(order))
    for pooling in ("last", "mean"):
        streamed = run_streamed(directory, pooling)
        assert [states.layer for states in streamed] == list(range(LAYERS))
        for states, hidden, router in zip(streamed, whole.hidden, whole.router, strict=True):
            for got, expected in ((states.hidden, hidden), (states.router, router)):
                for row, prompt in enumerate(order):
                    real = expected[row, : len(PROMPTS[prompt])].float()
                    wanted = real[-1] if pooling == "last" else real.mean(dim=0)
                    assert np.array_equal(got[prompt], wanted.numpy()), (states.layer, prompt)


def test_batches_and_a_file_for_the_states_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts that run alone are not padded, so the same sums may be formed in another order."""
    directory = save("llama", torch.float32, tmp_path)
    together = run_streamed(directory, "mean")
    monkeypatch.setattr(forward, "BATCH_TOKENS", 1)
    monkeypatch.setattr(forward, "STATE_BYTES", 0)
    alone = run_streamed(directory, "mean")
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.hidden, b.hidden, atol=1e-5)
        np.testing.assert_allclose(a.router, b.router, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("MixtralConfig", {**COMMON, "num_local_experts": 4}, "dense base model"),
        ("GPT2Config", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4}, "embed_tokens"),
    ],
)
def test_other_kinds_of_models_are_refused(
    name: str, settings: dict[str, object], reason: str, tmp_path: Path
) -> None:
    loader: type = transformers.AutoModelForCausalLM
    loader.from_config(getattr(transformers, name)(**settings)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=reason):
        run_streamed(tmp_path, "last")
