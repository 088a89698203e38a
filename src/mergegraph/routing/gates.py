"""Prompts → router rows of every layer, computed once and kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from mergegraph.errors import CheckpointError, PlanError, Problem, did_you_mean
from mergegraph.routing.artefact import artefact_path, load, store
from mergegraph.routing.embeddings import prompt_sums
from mergegraph.routing.prompts import GatePrompts, PromptEncoder, PromptTable
from mergegraph.routing.report import GateReport, Reporter
from mergegraph.routing.rows import RowOptions, normalise, rows_of
from mergegraph.routing.weights import Array, Weights
from mergegraph.runtime.devices import choose_devices
from mergegraph.version import VERSION

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class GateMode:
    """How a prompt becomes a vector.

    Attributes:
        source: what is looked at: the ``embedding``, a layer's ``hidden`` input, or its ``router``'s input.
        pooling: of which tokens: the ``last``, the ``mean`` or the ``sum`` of all.
    """

    source: str
    pooling: str


MODES = {
    "cheap_embed": GateMode("embedding", "sum"),
    "hidden": GateMode("hidden", "last"),
    "hidden_last": GateMode("hidden", "last"),
    "hidden_avg": GateMode("hidden", "mean"),
    "router_input": GateMode("router", "last"),
    "router_input_avg": GateMode("router", "mean"),
}
"""The gate modes that read prompts, by name."""


@dataclass(frozen=True, slots=True)
class GateRequest:
    """Everything that router rows depend on, besides the weights themselves.

    Attributes:
        base: a digest of the base model's contents (or of how it is computed).
        directory: its directory, with ``tokenizer.json`` and ``config.json``.
        layers: its number of layers.
        experts: the routed experts' prompts.
        mode: a key of `MODES`.
        shared: prompts of shared experts that have gates of their own; all of them, or none.
        experts_per_token: how many experts a token chooses, for the report.
        centre: subtract the mean of all experts before normalising.
        temperature: divides the rows.
    """

    base: str
    directory: Path
    layers: int
    experts: tuple[GatePrompts, ...]
    mode: str
    shared: tuple[GatePrompts, ...] = ()
    experts_per_token: int = 2
    centre: bool = False
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class GateArtefact:
    """Computed router rows.

    Attributes:
        path: the safetensors file that holds them: ``layers.{L}`` and perhaps ``shared.{L}``.
        report: what is to be said of them.
        cached: whether they were there already.
    """

    path: Path
    report: GateReport
    cached: bool


def gate_rows(
    request: GateRequest,
    weights: Weights,
    *,
    device: str = "cpu",
    cache: Path | None = None,
    progress: Progress | None = None,
) -> GateArtefact:
    """Return the router rows for `request`, from the cache if they were computed before.

    Args:
        request: what is wanted.
        weights: the base model; only read if the rows are not in the cache.
        device: where hidden states are computed: ``cpu``, ``cuda:0``, …
        cache: the directory to keep rows in, instead of the user's cache.
        progress: told the tokens that have passed a layer, and how many will.

    Raises:
        PlanError: the request makes no sense.
        CheckpointError: the base has no tokenizer, or is of a kind that cannot be run.
        MissingPackageError: the mode needs transformers.
        DeviceError: there is no such device.
        OutputError: the cache cannot be written.
    """
    _check(request)
    embedding = MODES[request.mode].source == "embedding"
    device = "cpu" if embedding else choose_devices(device)[0]
    encoder = PromptEncoder(request.directory)
    table = encoder.table((*request.experts, *request.shared))
    path = artefact_path(_key(request, table, device), cache)
    known = load(path)
    if known is not None:
        return GateArtefact(path, known, True)
    tensors, reporter = _compute(request, weights, table, device, path.parent, progress)
    notes = [] if encoder.bos else ["the tokenizer names no BOS token, so prompts have none"]
    tokens = sum(map(len, table.tokens))
    report = reporter.finish(request.mode, len(table.tokens), tokens, encoder.bos, notes)
    store(path, tensors, report)
    return GateArtefact(path, report, False)


def _compute(
    request: GateRequest,
    weights: Weights,
    table: PromptTable,
    device: str,
    scratch: Path,
    progress: Progress | None,
) -> tuple[dict[str, Array], Reporter]:
    mode = MODES[request.mode]
    count = len(request.experts)
    experts, shared = table.groups[:count], table.groups[count:]
    options = RowOptions(mode.source == "embedding", request.centre, request.temperature)
    labels = [e.label for e in request.experts]
    reporter = Reporter(labels, experts, request.experts_per_token, centred=request.centre)
    tensors: dict[str, Array] = {}
    if mode.source == "embedding":
        found = _embeddings(request, weights, table)
    else:
        found = _states(request, weights, table, device, scratch, progress)
    for layer, (statistics, probes) in enumerate(found):
        if not np.isfinite(statistics).all():
            raise CheckpointError(
                f"the prompts' {mode.source} states in layer {layer} are not finite",
                path=str(request.directory),
                hint="the base model's weights are damaged, or overflow in the dtype that they are stored in",
            )
        rows = rows_of(statistics, experts, options, competing=True)
        reporter.add(rows, probes)
        tensors[f"layers.{layer}"] = rows
        if shared:
            tensors[f"shared.{layer}"] = rows_of(statistics, shared, options, competing=False)
    return tensors, reporter


def _embeddings(request: GateRequest, weights: Weights, table: PromptTable) -> Iterator[tuple[Array, Array]]:
    """The same for every layer; what routers will see is stood for by embeddings of the usual length."""
    sums = prompt_sums(weights, table, str(request.directory))
    probes = normalise(sums) * math.sqrt(sums.shape[1])
    for _ in range(request.layers):
        yield sums, probes


def _states(
    request: GateRequest,
    weights: Weights,
    table: PromptTable,
    device: str,
    scratch: Path,
    progress: Progress | None,
) -> Iterator[tuple[Array, Array]]:
    from mergegraph.routing.forward import StreamedDecoder  # loads torch

    mode = MODES[request.mode]
    decoder = StreamedDecoder(weights, request.directory, device)
    if decoder.layers != request.layers:
        raise CheckpointError(
            f"its config.json says {decoder.layers} layers, but {request.layers} are wanted",
            path=str(request.directory),
            hint="config.json and weights are of different models; fetch or export both again",
        )
    scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
    for states in decoder.run(table, mode.pooling, scratch, progress):
        yield (states.hidden if mode.source == "hidden" else states.router), states.router


def _check(request: GateRequest) -> None:
    """Refuse what plans are checked for too: whoever calls this without a plan is told as well."""
    problems = []
    if request.mode not in MODES:
        hint = did_you_mean(request.mode, MODES) or f"known are {', '.join(MODES)}"
        problems.append(Problem(f"gate_mode {request.mode!r} computes no rows from prompts", hint=hint))
    if not (request.temperature > 0 and math.isfinite(request.temperature)):
        problems.append(Problem(f"temperature is {request.temperature:g}", hint="give a number above 0"))
    if not request.experts:
        problems.append(Problem("there are no experts to make router rows for", hint="list at least one"))
    problems += [
        Problem(f"{e.label} has no positive prompts", hint=f"gate_mode {request.mode} needs some")
        for e in (*request.experts, *request.shared)
        if not e.positive
    ]
    if problems:
        raise PlanError(problems)


def _key(request: GateRequest, table: PromptTable, device: str) -> str:
    """Digest everything that the rows and the report depend on."""
    experts = [(e.label, g.positive, g.negative) for e, g in zip(request.experts, table.groups, strict=False)]
    config = request.directory / "config.json"
    facts = {
        "version": VERSION,
        "base": request.base,
        "config": blake2b(config.read_bytes()).hexdigest() if config.is_file() else None,
        "tokens": table.tokens,
        "experts": experts,
        "shared": [(g.positive, g.negative) for g in table.groups[len(experts) :]],
        "how": [request.mode, request.layers, request.centre, request.temperature],
        "chosen": request.experts_per_token,
        "device": device.partition(":")[0],
    }
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()
