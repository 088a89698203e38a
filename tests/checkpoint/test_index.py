"""A header from a stranger is either exactly right, or refused with the file and a way out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from mergegraph.checkpoint.index import (
    HEADER_LIMIT,
    CheckpointIndex,
    FileEntry,
    TensorEntry,
    header_length,
    parse_header,
)
from mergegraph.errors import CheckpointError
from mergegraph.tensorspec import DType, TensorSpec

PATH = "/models/m/model.safetensors"


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def parse(header: Any, data: int) -> dict[str, TensorEntry]:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return parse_header(raw, "model.safetensors", 8 + len(raw) + data, PATH)


def refuses(header: Any, data: int, match: str) -> None:
    with pytest.raises(CheckpointError, match=match) as caught:
        parse(header, data)
    assert caught.value.path == PATH
    assert str(caught.value).startswith(PATH)
    assert caught.value.hint


def test_entries_have_absolute_offsets_in_header_order() -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "b": entry("BF16", [2, 3], [4, 16]),
        "a": entry("F32", [], [0, 4]),
    }
    raw = json.dumps(header).encode()
    start = 8 + len(raw)
    assert list(parse(header, 16).items()) == [
        ("b", TensorEntry(TensorSpec((2, 3), DType.BF16), "model.safetensors", start + 4, start + 16)),
        ("a", TensorEntry(TensorSpec((), DType.F32), "model.safetensors", start, start + 4)),
    ]


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({}, 0),
        (b"{}  \n   ", 0),
        ({"__metadata__": {}}, 0),
        ({"__metadata__": None}, 0),
        ({"": entry()}, 4),
        ({"a": entry(), "e": entry(shape=[0, 4], offsets=[4, 4])}, 4),
        ({"a": entry(), "e": entry(shape=[0, 4], offsets=[0, 0])}, 4),
        ({"f4": entry("F4", [2, 2], [0, 2])}, 2),
        ({"f6": entry("F6_E2M3", [4], [0, 3])}, 3),
        ({"a": entry() | {"comment": [1, None]}}, 4),
    ],
)
def test_unusual_headers_that_the_format_allows_are_read(header: Any, data: int) -> None:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    assert dict(deserialize(len(raw).to_bytes(8, "little") + raw + bytes(data))) == {
        name: {"dtype": e.spec.dtype.name, "shape": list(e.spec.shape), "data": bytes(e.end - e.begin)}
        for name, e in parse(header, data).items()
    }


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (b"", "unreadable header"),
        (b"{", "unreadable header"),
        (b"[]", "not a JSON object"),
        (b"\xff{}", "unreadable header"),
        (b"\xef\xbb\xbf{}", "unreadable header"),
        (b"{}\0\0", "unreadable header"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "unreadable header"),
        (b'{"a": {}, "a": {}}', "key 'a' appears twice"),
        (b'{"a": {"dtype": "F32", "dtype": "F16"}}', "key 'dtype' appears twice"),
        (b'{"\\ud800": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', "unreadable header"),
    ],
)
def test_a_header_that_is_not_one_json_object_is_refused(raw: bytes, match: str) -> None:
    refuses(raw, 4, match)


@pytest.mark.parametrize("metadata", [[], "pt", {"format": 1}, {"format": None}, {"a": {"b": "c"}}])
def test_metadata_that_does_not_map_strings_to_strings_is_refused(metadata: Any) -> None:
    refuses({"__metadata__": metadata}, 0, "__metadata__")


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (None, "needs dtype"),
        (7, "needs dtype"),
        ([], "needs dtype"),
        ({}, "needs dtype"),
        ({"dtype": "F32", "shape": [1]}, "needs dtype"),
        (entry(offsets=[0]), "needs dtype"),
        (entry(offsets=[0, 4, 8]), "needs dtype"),
        (entry(offsets=4), "needs dtype"),
        (entry(offsets="04"), "natural number"),
        (entry(offsets=[-4, 0]), "natural number"),
        (entry(offsets=[0.0, 4]), "natural number"),
        (entry(offsets=[False, 4]), "natural number"),
        (entry(shape=[-1]), "natural number"),
        (entry(shape=[1.0]), "natural number"),
        (entry(shape=[True]), "natural number"),
        (entry(shape=["1"]), "natural number"),
        (entry(shape=[[1]]), "natural number"),
        (entry(shape=1), "wrong type"),
        (entry(shape="1"), "wrong type"),
        (entry(shape={"1": 1}), "wrong type"),
        (entry(shape=None), "wrong type"),
        (entry(dtype=["F32"]), "wrong type"),
        (entry(dtype=None), "wrong type"),
        (entry(dtype="f32"), "unknown dtype 'f32' — known are BOOL"),
        (entry(dtype="rank"), "unknown dtype"),
        (entry(shape=[2**40, 2**40]), "impossibly large"),
        (entry(shape=[2**40, 2**40, 0], offsets=[0, 0]), "impossibly large"),
        (entry(shape=[10**300]), "impossibly large"),
        (entry(shape=[1] * 65), "impossibly large"),
        (entry(shape=[2]), "8 bytes, but has offsets"),
        (entry(offsets=[4, 0]), "4 bytes, but has offsets"),
        (entry("F4", [1], [0, 1]), "whole bytes"),
        (entry("F6_E3M2", [2], [0, 2]), "whole bytes"),
    ],
)
def test_a_tensor_that_makes_no_sense_is_refused(tensor: Any, match: str) -> None:
    refuses({"a": tensor}, 4, match)


@pytest.mark.parametrize(
    ("header", "data", "match"),
    [
        ({"a": entry(offsets=[4, 8])}, 8, "'a' leaves a hole before it"),
        ({"a": entry(), "b": entry(offsets=[8, 12])}, 12, "'b' leaves a hole before it"),
        ({"a": entry(), "b": entry()}, 4, "'b' overlaps the tensor before it"),
        ({"a": entry(shape=[2], offsets=[0, 8]), "b": entry(offsets=[4, 8])}, 8, "'b' overlaps"),
        ({"a": entry(shape=[2], offsets=[0, 8]), "b": entry(shape=[0], offsets=[4, 4])}, 8, "overlap"),
        ({"a": entry()}, 3, "truncated: 1 of 4 data bytes"),
        ({"a": entry()}, 0, "truncated: 4 of 4 data bytes"),
        ({"a": entry()}, 5, "1 bytes that belong to no tensor"),
        ({}, 1, "1 bytes that belong to no tensor"),
    ],
)
def test_tensors_must_tile_the_data_exactly(header: Any, data: int, match: str) -> None:
    refuses(header, data, match)


def test_a_hostile_name_cannot_flood_or_forge_the_message() -> None:
    with pytest.raises(CheckpointError) as caught:
        parse({"\x1b[31m\n" + "x" * 10_000: None}, 0)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("start", "size", "match"),
    [
        (b"", 0, "0 bytes long"),
        (b"\2\0\0", 3, "3 bytes long"),
        ((HEADER_LIMIT + 1).to_bytes(8, "little"), 10**12, "the format allows 100,000,000"),
        (b"\xff" * 8, 100, "the format allows 100,000,000"),
        ((93).to_bytes(8, "little"), 100, "header of 93 bytes, but the file has only 100"),
        (b"version https://git-lfs.github.com/spec/v1"[:8], 130, "Git LFS pointer.*git lfs pull"),
    ],
)
def test_a_length_that_cannot_be_right_is_refused(start: bytes, size: int, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        header_length(start, size, PATH)


def test_the_longest_header_that_fits_is_accepted() -> None:
    assert header_length((92).to_bytes(8, "little"), 100, PATH) == 92
    assert header_length(HEADER_LIMIT.to_bytes(8, "little"), HEADER_LIMIT + 8, PATH) == HEADER_LIMIT


_numbers = st.one_of(st.integers(-2, 9), st.sampled_from([2**63, 1.0, True, None, "1"]))
_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "BOOL", "X", 1]),
        "shape": st.lists(_numbers, max_size=2),
        "data_offsets": st.lists(_numbers, min_size=1, max_size=3),
    }
)


@given(st.dictionaries(st.sampled_from(["a", "b", "é"]), _entries, max_size=2), st.integers(0, 16))
def test_what_is_accepted_is_accepted_by_safetensors_and_nothing_but_typed_errors_escape(
    header: dict[str, Any], data: int
) -> None:
    raw = json.dumps(header).encode()
    try:
        dict(deserialize(len(raw).to_bytes(8, "little") + raw + bytes(data)))
        valid = True
    except SafetensorError:
        valid = False
    try:
        parse(header, data)
        accepted = True
    except CheckpointError:
        accepted = False
    assert accepted == valid


def index(digest: str = "d", begin: int = 8, name: str = "m") -> CheckpointIndex:
    tensor = TensorEntry(TensorSpec((1,), DType.F32), "f", begin, begin + 4)
    return CheckpointIndex(name, "/r", {"t": tensor}, {"f": FileEntry("f", 12, digest, "s")}, {})


def test_identity_follows_headers_not_names_or_places() -> None:
    assert index().identity == index(name="other").identity
    assert index().identity != index(digest="e").identity
    assert index().identity != index(begin=16).identity
    assert len(index().identity) == 32
