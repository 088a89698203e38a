"""Random streams depend on seed, output tensor and model, and on nothing else."""

from __future__ import annotations

from mergegraph.compiler.seeds import stream_labels, stream_of


def test_a_stream_depends_on_seed_tensor_and_model() -> None:
    streams = {stream_of(seed, tensor, model) for seed in (0, 1) for tensor in "xy" for model in "ab"}
    assert len(streams) == 8
    assert stream_of(None, "x", "a") == stream_of(0, "x", "a")
    assert all(0 <= number < 2**24 and number.is_integer() for stream in streams for number in stream)


def test_moving_or_reordering_models_changes_no_label() -> None:
    assert stream_labels(["/x/a", "/x/b"]) == {"/x/a": "a", "/x/b": "b"}
    assert stream_labels(["/elsewhere/b/", "/y/a"]) == {"/elsewhere/b/": "b", "/y/a": "a"}


def test_models_of_one_name_still_have_streams_of_their_own() -> None:
    assert list(stream_labels(["/x/model", "/y/model", "/z/model"]).values()) == [
        "model",
        "model#2",
        "model#3",
    ]
