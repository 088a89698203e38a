"""A byte-level toy tokenizer: valid, loadable, and as small as its vocabulary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_SPECIAL = ("<unk>", "<s>", "</s>")


def write_tokenizer(directory: Path, vocab: int) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` with at most `vocab` entries.

    The vocabulary is three special tokens and one token for each byte; what does not fit into
    `vocab` is read as ``<unk>``.
    """
    tokens = [*_SPECIAL, *_byte_alphabet()][:vocab]
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    for name, value in (("tokenizer.json", _tokenizer(tokens)), ("tokenizer_config.json", settings)):
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        (directory / name).write_text(text, encoding="utf-8")


def _tokenizer(tokens: list[str]) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, **plain, "special": True} for i, t in enumerate(_SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [],
        },
    }


def _byte_alphabet() -> list[str]:
    """One printable character for each byte: itself if printable, else one from U+0100 on."""
    printable = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
    shifted = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]
