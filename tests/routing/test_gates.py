"""One call from prompts to rows: computed once, kept, and refused with a reason where it makes no sense."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mergegraph.errors import CheckpointError, DeviceError, MissingPackageError, PlanError
from mergegraph.routing.artefact import read_rows
from mergegraph.routing.forward import StreamedDecoder
from mergegraph.routing.gates import MODES, GateArtefact, GateRequest, gate_rows
from mergegraph.routing.prompts import GatePrompts, PromptEncoder
from mergegraph.routing.weights import Array
from tests.routing.scenario import EXPERTS, LAYERS, SHAPE, SHARED, request_for, weights_of

EMBEDDING = "model.embed_tokens.weight"


def compute(request: GateRequest) -> tuple[GateArtefact, list[tuple[str, int, int | None]]]:
    with weights_of(request.directory) as weights:
        return gate_rows(request, weights), weights.reads


def rows(found: GateArtefact, layer: int, name: str = "layers") -> Array:
    return read_rows(found.path, f"{name}.{layer}")


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_a_unit_row_per_expert_and_layer(base: Path, mode: str) -> None:
    found, _ = compute(request_for(base, mode))
    for layer in range(LAYERS):
        assert rows(found, layer).shape == (len(EXPERTS), SHAPE.hidden)
        np.testing.assert_allclose(np.linalg.norm(rows(found, layer), axis=1), 1, rtol=1e-6)
    report = found.report
    assert (report.mode, report.experts, report.bos) == (mode, ("poet", "coder", "counter"), "<s>")
    assert len(report.layers) == LAYERS
    assert report.prompts == 6, "a prompt of several experts counts once"


def test_rows_are_computed_once(base: Path) -> None:
    first, reads = compute(request_for(base, "hidden"))
    second, no_reads = compute(request_for(base, "hidden"))
    assert (first.cached, second.cached) == (False, True)
    assert reads and not no_reads
    assert (second.path, second.report) == (first.path, first.report)


def test_equal_requests_give_equal_bytes(base: Path, tmp_path: Path) -> None:
    with weights_of(base) as weights:
        paths = [gate_rows(request_for(base, "hidden"), weights, cache=tmp_path / x).path for x in "ab"]
    assert paths[0] != paths[1]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_whatever_rows_depend_on_has_a_place_of_its_own(base: Path) -> None:
    request = request_for(base, "cheap_embed")
    others = [
        replace(request, base="another"),
        replace(request, mode="hidden"),
        replace(request, centre=True),
        replace(request, temperature=2.0),
        replace(request, experts_per_token=1),
        replace(request, experts=EXPERTS[::-1]),
        replace(request, experts=(replace(EXPERTS[0], negative=()), *EXPERTS[1:])),
        replace(request, shared=SHARED),
    ]
    paths = [compute(r)[0].path for r in (request, *others)]
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**settings, "bos_token": None}))
    paths.append(compute(request)[0].path)
    assert len(dict.fromkeys(paths)) == len(paths)


def test_damaged_rows_are_computed_again(base: Path) -> None:
    first, _ = compute(request_for(base, "cheap_embed"))
    whole = first.path.read_bytes()
    first.path.write_bytes(whole[:-1])
    second, reads = compute(request_for(base, "cheap_embed"))
    assert not second.cached and reads
    assert second.path.read_bytes() == whole


def test_hidden_gates_read_each_layer_once_and_neither_head_nor_last_norm(base: Path) -> None:
    _, reads = compute(request_for(base, "hidden"))
    embedding = [read for read in reads if read[0] == EMBEDDING]
    layers = [name for name, _, count in reads if name != EMBEDDING and count is None]
    tokens = PromptEncoder(base).table(EXPERTS).vocabulary
    assert sum(count or 0 for _, _, count in embedding) == tokens.size < SHAPE.vocab
    assert sorted(layers) == sorted(name for name in SHAPE.shapes() if ".layers." in name)
    assert len(reads) == len(embedding) + len(layers)


def test_only_one_layer_is_in_memory_at_a_time(base: Path) -> None:
    table = PromptEncoder(base).table(EXPERTS)
    with weights_of(base) as weights:
        decoder = StreamedDecoder(weights, base, "cpu")
        held: list[list[int]] = []

        def look(done: int, total: int) -> None:
            layers = decoder._model.layers
            full = [i for i, layer in enumerate(layers) if any(not p.is_meta for p in layer.parameters())]
            held.append(full)

        for _ in decoder.run(table, "last", base, look):
            pass
    assert held == [[layer] for layer in range(LAYERS)]


def test_progress_counts_tokens_through_layers(base: Path) -> None:
    seen: list[tuple[int, int]] = []
    with weights_of(base) as weights:
        found = gate_rows(
            request_for(base, "hidden"), weights, progress=lambda done, total: seen.append((done, total))
        )
    total = found.report.tokens * LAYERS
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_centred_rows_and_temperature_reach_the_rows(base: Path) -> None:
    plain, _ = compute(request_for(base, "hidden"))
    options = replace(request_for(base, "hidden"), experts=EXPERTS[:2], centre=True, temperature=2.0)
    centred, _ = compute(options)
    for layer in range(LAYERS):
        np.testing.assert_allclose(rows(centred, layer)[0], -rows(centred, layer)[1], atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(rows(centred, layer), axis=1), 0.5, rtol=1e-6)
        assert not np.allclose(rows(centred, layer)[0] * 2, rows(plain, layer)[0], atol=1e-2)


def test_shared_experts_get_rows_of_their_own_and_change_no_others(base: Path) -> None:
    alone, _ = compute(request_for(base, "router_input"))
    found, _ = compute(replace(request_for(base, "router_input"), shared=SHARED))
    for layer in range(LAYERS):
        assert rows(found, layer, "shared").shape == (1, SHAPE.hidden)
        # More prompts make other batches, which may be summed in another order.
        np.testing.assert_allclose(rows(found, layer), rows(alone, layer), atol=1e-5)


def test_equal_prompts_are_reported_as_dependent_rows(base: Path) -> None:
    same = (GatePrompts("x", ("one",)), GatePrompts("y", ("one",)))
    found, _ = compute(request_for(base, "cheap_embed", same))
    assert found.report.layers[0].condition is None
    assert found.report.layers[0].worst == (0, 1, 1.0)
    assert "up to infinite" in found.report.notes[0]


def test_a_tokenizer_without_bos_is_noted(base: Path) -> None:
    (base / "tokenizer_config.json").unlink()
    found, _ = compute(request_for(base, "cheap_embed"))
    assert found.report.bos is None
    assert found.report.notes[0] == "the tokenizer names no BOS token, so prompts have none"


def test_everything_that_makes_no_sense_is_refused_at_once(base: Path) -> None:
    request = replace(request_for(base, "hiden", (GatePrompts("x", ()),)), temperature=0.0)
    with pytest.raises(PlanError) as caught:
        compute(request)
    messages = "\n".join(map(str, caught.value.problems))
    assert "did you mean 'hidden'" in messages
    assert "temperature is 0" in messages
    assert "x has no positive prompts" in messages


def test_a_config_of_another_depth_is_refused(base: Path) -> None:
    with pytest.raises(CheckpointError, match="3 layers, but 2 are wanted"):
        compute(replace(request_for(base, "hidden"), layers=2))


def test_a_config_of_another_width_is_refused(base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "intermediate_size": 64}))
    with pytest.raises(CheckpointError, match=r"mlp\.gate_proj\.weight is float32\[48, 32\]; .* \[64, 32\]"):
        compute(request_for(base, "hidden"))


@pytest.mark.parametrize("change", [{"model_type": "nonsense"}, {"num_attention_heads": "four"}])
def test_a_config_that_transformers_cannot_build_is_refused(base: Path, change: dict[str, str]) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=r"cannot be run layer by layer.*use the gate_mode cheap_embed"):
        compute(request_for(base, "hidden"))


def test_without_transformers_the_extra_to_install_is_named(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'mergegraph\[moe\]'"):
        compute(request_for(base, "hidden"))


def test_a_device_that_is_not_there_is_refused(base: Path) -> None:
    with weights_of(base) as weights, pytest.raises(DeviceError):
        gate_rows(request_for(base, "hidden"), weights, device="cuda:99")


def test_weights_that_are_not_finite_are_refused(base: Path) -> None:
    with weights_of(base) as weights:
        entry = weights._reader._indexes["base"].tensors["model.layers.1.mlp.down_proj.weight"]
        path = base / entry.file
    raw = bytearray(path.read_bytes())
    raw[entry.begin : entry.end] = np.full(entry.spec.numel, np.nan, np.float32).tobytes()
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="layer 2 are not finite"):
        compute(request_for(base, "hidden"))
