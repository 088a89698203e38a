"""Checkpoints of a hub are planned from headers, fetched whole or not at all, and refused with advice.

The hub here is a real HTTP server on this machine, which redirects weights to "another" host as hubs do.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import huggingface_hub.utils
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save

from mergegraph.checkpoint.index import CheckpointIndex
from mergegraph.errors import CheckpointError, DiskFullError, HubError, MergeGraphError
from mergegraph.storage import hub
from mergegraph.storage.local import open_checkpoint
from mergegraph.storage.reader import Reader

REPO = "tiny/model"
COMMIT = "c0ffee" + "0" * 34
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SIDECARS = ("LICENSE", "tokenizer.json")
NEEDED = ("config.json", "model.safetensors.index.json", *SIDECARS, *SHARDS)


@dataclass
class Repo:
    files: Mapping[str, bytes]
    gated: bool = False
    broken: str | None = None  # a file whose contents the storage fails to give
    ranges: bool = True


@dataclass
class Hub:
    """The repositories of a server, and what it was asked for."""

    repos: dict[str, Repo]
    port: int = 0
    answer: int | None = None  # a status for everything
    log: list[str] = field(default_factory=list)
    sent: int = 0
    stop: Callable[[], None] = lambda: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def asked(self, pattern: str) -> list[str]:
        return [line for line in self.log if re.search(pattern, line)]

    def forget(self) -> None:
        self.log.clear()
        self.sent = 0


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.log.append(f"{self.command} {path}")
        if self.hub.answer:
            self.reply(self.hub.answer, b"<html>a portal</html>")
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.model(match[1], match[2] or "main")
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(self.hub.repos[match[1]], *match.group(2, 3))
        elif match := re.fullmatch(r"/storage/([^/]+/[^/]+)/(.+)", path):
            self.store(self.hub.repos[match[1]], match[2])

    def model(self, name: str, revision: str) -> None:
        if name not in self.hub.repos:
            return self.refuse(404, "RepoNotFound")
        if revision not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        siblings = []
        for file, data in self.hub.repos[name].files.items():
            entry: dict[str, object] = {
                "rfilename": file,
                "size": len(data),
                "blobId": sha1(data).hexdigest(),
            }
            if file.endswith((".safetensors", ".bin")):
                entry["lfs"] = {"size": len(data), "sha256": sha256(data).hexdigest(), "pointerSize": 130}
            siblings.append(entry)
        return self.reply(200, json.dumps({"id": name, "sha": COMMIT, "siblings": siblings}).encode())

    def resolve(self, repo: Repo, revision: str, file: str) -> None:
        if repo.gated:
            return self.refuse(403, "GatedRepo")
        data = repo.files[file]
        commit = {"X-Repo-Commit": COMMIT}
        if not file.endswith((".safetensors", ".bin")):
            return self.part(repo, data, commit | {"ETag": f'"{sha1(data).hexdigest()}"'})
        name = next(name for name, other in self.hub.repos.items() if other is repo)
        where = f"http://localhost:{self.hub.port}/storage/{name}/{file}"
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{sha256(data).hexdigest()}"'}
        return self.reply(302, b"", commit | linked | {"Location": where})

    def store(self, repo: Repo, file: str) -> None:
        if file == repo.broken:
            return self.refuse(500, "")
        return self.part(repo, repo.files[file], {"ETag": '"of the storage"'})

    def part(self, repo: Repo, data: bytes, headers: Mapping[str, str]) -> None:
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if match is None or not repo.ranges:
            return self.reply(200, data, headers)
        begin, end = int(match[1]), int(match[2] or len(data) - 1) + 1
        place = {"Content-Range": f"bytes {begin}-{end - 1}/{len(data)}"}
        return self.reply(206, data[begin:end], dict(headers) | place)

    def refuse(self, status: int, code: str) -> None:
        self.reply(status, b"{}", {"X-Error-Code": code})

    def reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.hub.sent += len(body)
            try:
                self.wfile.write(body)
            except ConnectionError:
                self.close_connection = True  # the reader has had enough


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Two shards of 5 MB, and everything else that repositories have."""
    rng = np.random.default_rng(0)
    first = {f"h.{i}.w": rng.random((250, 1000), dtype=np.float32) for i in range(5)}
    second = {f"h.{i}.w": rng.random((250, 1000), dtype=np.float32) for i in range(5, 10)}
    weight_map = dict.fromkeys(first, SHARDS[0]) | dict.fromkeys(second, SHARDS[1])
    return {
        ".gitattributes": b"*.safetensors filter=lfs",
        "LICENSE": b"free",
        "README.md": b"# A model",
        "config.json": b'{"model_type": "tiny"}',
        SHARDS[0]: save(first, metadata={"format": "pt"}),
        SHARDS[1]: save(second, metadata={"format": "pt"}),
        "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": weight_map}).encode(),
        "onnx/model.onnx": b"not wanted",
        "pytorch_model.bin": b"not wanted either",
        "tokenizer.json": b"{}",
    }


@pytest.fixture
def server(files: Mapping[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub with one repository, and an empty cache to go with it."""
    state = Hub({REPO: Repo(files)})
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": state}))
    state.port = http.server_port
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def stop() -> None:
        http.shutdown()
        thread.join()
        http.server_close()

    state.stop = stop
    for name in ("HF_TOKEN", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    # The library reads its environment when it is first imported, which was long ago.
    monkeypatch.setattr(constants, "ENDPOINT", state.url)
    template = state.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    forget_connections()
    yield state
    forget_connections()
    if thread.is_alive():
        stop()


def forget_connections() -> None:
    library: object = huggingface_hub.utils
    getattr(library, "close_session", getattr(library, "reset_sessions", lambda: None))()


def plan(revision: str | None = None, repo: str = REPO) -> CheckpointIndex:
    return hub.open_hub_checkpoint(repo, revision, name=f"{repo}@{revision}" if revision else repo)


def refused(revision: str | None = None, repo: str = REPO) -> str:
    with pytest.raises(MergeGraphError) as caught:
        plan(revision, repo)
    assert caught.value.hint
    return f"{type(caught.value).__name__}: {caught.value}"


def stored(tmp_path: Path) -> list[str]:
    """Names of the files in the cache that hold data, complete or not."""
    return sorted(p.name for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size)


def written(root: Path, files: Mapping[str, bytes]) -> Path:
    root.mkdir()
    for name, data in files.items():
        if "/" not in name:
            (root / name).write_bytes(data)
    return root


def test_planning_transfers_headers_and_no_weights(
    server: Hub, files: Mapping[str, bytes], tmp_path: Path
) -> None:
    index = plan()
    assert sum(map(len, files.values())) > 10_000_000
    assert server.sent < 200_000
    assert not server.asked(r"\.bin|README|tokenizer|onnx")
    assert index.root == ""
    assert index.revision == COMMIT
    assert index.files[SHARDS[0]].stamp == sha256(files[SHARDS[0]]).hexdigest()
    assert stored(tmp_path) == []


def test_a_remote_index_says_what_a_local_one_says(
    server: Hub, files: Mapping[str, bytes], tmp_path: Path
) -> None:
    remote = plan()
    local = open_checkpoint(str(written(tmp_path / "copy", files)), name=REPO)
    assert remote.tensors == local.tensors
    assert list(remote.tensors) == list(local.tensors)
    assert remote.identity == local.identity
    assert remote.config == local.config == {"model_type": "tiny"}
    assert remote.sidecars == local.sidecars == SIDECARS


def test_fetching_brings_exactly_what_a_merge_needs(server: Hub, files: Mapping[str, bytes]) -> None:
    parts: list[int] = []
    planned = plan()
    index = hub.fetch(planned, parts.append)
    root = Path(index.root)
    assert sorted(os.listdir(root)) == sorted(NEEDED)
    assert all((root / name).read_bytes() == files[name] for name in NEEDED)
    assert sum(parts) == sum(len(files[name]) for name in NEEDED)
    assert min(parts) > 0
    assert not server.asked(r"\.bin|README|onnx")
    assert index.identity == planned.identity
    assert index.revision == COMMIT
    assert all(file.stamp.startswith("mtime:") for file in index.files.values())


def test_fetched_tensors_can_be_read(server: Hub) -> None:
    index = hub.fetch(plan())
    entry = index.tensors["h.7.w"]
    data = np.empty(entry.spec.shape, dtype=np.float32)
    with Reader({"m": index}) as reader:
        reader.read_into("m", "h.7.w", 0, data)
    rng = np.random.default_rng(0)
    assert np.array_equal([rng.random((250, 1000), dtype=np.float32) for _ in range(8)][7], data)


def test_a_second_run_asks_only_which_commit_it_is(server: Hub) -> None:
    first = hub.fetch(plan())
    server.forget()
    second = plan()
    assert server.log == [f"GET /api/models/{REPO}"]
    assert (second.root, second.files, second.tensors) == (first.root, first.files, first.tensors)
    assert hub.fetch(second) is second
    assert len(server.log) == 1


def test_what_the_cache_holds_is_not_fetched_again(server: Hub, files: Mapping[str, bytes]) -> None:
    planned = plan()
    root = Path(hub.fetch(planned).root)
    (root / SHARDS[1]).resolve().unlink()
    server.forget()
    parts: list[int] = []
    assert plan().root == ""
    assert server.sent < 200_000
    index = hub.fetch(planned, parts.append)
    assert [line for line in server.asked("GET /storage") if SHARDS[0] in line] == []
    assert (Path(index.root) / SHARDS[1]).read_bytes() == files[SHARDS[1]]
    assert sum(parts) == sum(len(files[name]) for name in NEEDED)


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_offline_the_cache_is_used_without_a_request(
    server: Hub, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    fetched = hub.fetch(plan())
    server.forget()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    index = plan(revision)
    assert (index.root, index.files, index.revision) == (fetched.root, fetched.files, COMMIT)
    assert index.sidecars == SIDECARS
    assert server.log == []


def test_offline_what_is_not_cached_is_an_error(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan()
    root = hub.fetch(planned).root
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "tiny/other: is not in the cache, and HF_HUB_OFFLINE is set" in refused(repo="tiny/other")
    assert "is not in the cache" in refused("v2")
    Path(root, SHARDS[0]).unlink()
    assert "cached copy cannot be used" in (text := refused())
    assert SHARDS[0] in text
    assert "hf download tiny/model" in text
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        hub.fetch(planned)


def test_a_wrong_name_is_said_to_be_wrong_or_private(server: Hub) -> None:
    text = refused(repo="tiny/modle")
    assert text.startswith(f"HubError: tiny/modle: there is no such model on {server.url}")
    assert "check the spelling" in text
    assert "hf auth login" in text


def test_a_gated_model_says_where_to_ask(server: Hub, files: Mapping[str, bytes]) -> None:
    server.repos["meta/gated"] = Repo(files, gated=True)
    text = refused(repo="meta/gated")
    assert "meta/gated: is gated" in text
    assert f"ask for it at {server.url}/meta/gated" in text
    assert "hf auth login" in text


def test_a_missing_revision_is_named(server: Hub) -> None:
    assert "tiny/model@v9: there is no such revision" in refused("v9")


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (401, "access was refused"),
        (403, "access was refused"),
        (429, "limits your requests"),
        (503, "answered"),
    ],
)
def test_other_refusals_are_explained(server: Hub, status: int, text: str) -> None:
    server.answer = status
    message = refused()
    assert message.startswith("HubError: tiny/model: ")
    assert text in message or (status == 401 and "there is no such model" in message)


def test_a_server_that_is_no_hub_is_told_apart(server: Hub) -> None:
    server.answer = 200
    assert "does not answer like a model hub" in (text := refused())
    assert "HF_ENDPOINT" in text


def test_a_name_that_no_hub_allows_is_refused(server: Hub) -> None:
    assert refused(repo="a/b/c").startswith("HubError: a/b/c: ")
    assert server.log == []


def test_a_hub_that_is_not_there_is_an_error(server: Hub) -> None:
    server.stop()
    text = refused()
    assert f"tiny/model: cannot be fetched from {server.url}: " in text
    assert "refused" in text
    assert "check the network" in text


def test_a_hub_that_goes_away_after_planning_leaves_nothing_behind(server: Hub, tmp_path: Path) -> None:
    planned = plan()
    server.stop()
    with pytest.raises(HubError, match=r"tiny/model: cannot be fetched .*check the network"):
        hub.fetch(planned)
    assert stored(tmp_path) == []


def test_a_failed_download_is_taken_up_again(server: Hub, files: Mapping[str, bytes], tmp_path: Path) -> None:
    planned = plan()
    server.repos[REPO].broken = SHARDS[1]
    with pytest.raises(HubError, match=r"answered 500"):
        hub.fetch(planned)
    assert not [name for name in stored(tmp_path) if name.endswith(".incomplete")]
    server.repos[REPO].broken = None
    root = Path(hub.fetch(planned).root)
    assert all((root / name).read_bytes() == files[name] for name in NEEDED)


def test_an_interrupted_callback_stops_the_downloads(server: Hub, tmp_path: Path) -> None:
    def interrupt(n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.fetch(plan(), interrupt)
    assert not [name for name in stored(tmp_path) if name.endswith(".incomplete")]


def test_weights_that_are_not_the_planned_ones_are_refused(server: Hub, files: Mapping[str, bytes]) -> None:
    planned = plan()
    changed = files[SHARDS[0]].replace(b'"h.0.w"', b'"h.9.x"', 1)
    server.repos[REPO] = Repo({**files, SHARDS[0]: changed})
    with pytest.raises(HubError, match="is not the file that was planned with"):
        hub.fetch(planned)


def test_a_full_disk_is_found_before_the_download(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan()
    server.forget()
    monkeypatch.setattr(hub, "free_bytes", lambda path: 1_000_000)
    with pytest.raises(DiskFullError, match=r"10\.00 MB needed, 1\.00 MB free — .*HF_HOME"):
        hub.fetch(planned)
    assert server.log == []
    assert stored(tmp_path) == []


def test_an_index_from_elsewhere_cannot_be_fetched(server: Hub) -> None:
    with pytest.raises(TypeError, match="was not opened on the hub"):
        hub.fetch(CheckpointIndex("m", "", {}, {}, {}))


def test_only_pickled_weights_get_the_same_advice_as_locally(server: Hub, files: Mapping[str, bytes]) -> None:
    wanted = ("config.json", "pytorch_model.bin")
    server.repos[REPO] = Repo({name: files[name] for name in wanted})
    text = refused()
    assert text.startswith(f"CheckpointError: tiny/model@{COMMIT[:12]}: has no safetensors files, only")
    assert "convert it first" in text
    assert not server.asked(r"\.bin")


def test_a_single_file_with_a_long_header_takes_two_reads(server: Hub) -> None:
    names = [f"a.rather.long.name.of.a.tensor.{i}" for i in range(1000)]
    data = save({name: np.ones(1000, dtype=np.float32) for name in names})
    server.repos[REPO] = Repo({"model.safetensors": data})
    index = plan()
    assert len(index.tensors) == 1000
    assert index.config == {}
    assert len(server.asked("GET /storage")) == 2
    assert server.sent < 200_000


def test_a_server_without_ranges_is_not_read_to_the_end(server: Hub, files: Mapping[str, bytes]) -> None:
    server.repos[REPO] = Repo(files, ranges=False)
    assert len(plan().tensors) == 10
    data = save({f"a.rather.long.name.of.a.tensor.{i}": np.ones(1, dtype=np.float32) for i in range(1000)})
    server.repos[REPO] = Repo({"model.safetensors": data}, ranges=False)
    assert "range requests are not supported" in refused()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"../evil.json": b"{}"}, "lists the file '../evil.json'"),
        ({"/etc/evil.json": b"{}"}, "lists the file"),
        ({"config.json": b"[]"}, r"tiny/model@c0ffee000000/config.json: is not a model config"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"w": "../w.safetensors"}}'},
            r"tiny/model@c0ffee000000/model.safetensors.index.json: names the file .* outside",
        ),
        ({SHARDS[0]: b"short"}, r"tiny/model@c0ffee000000/model-00001-of-00002.safetensors: is 5 bytes"),
        ({SHARDS[0]: b""}, "is 0 bytes long"),
        ({SHARDS[0]: b"\xff" * 9}, "claims a header"),
    ],
)
def test_hostile_repositories_are_refused(
    server: Hub, files: Mapping[str, bytes], changes: Mapping[str, bytes], match: str
) -> None:
    server.repos[REPO] = Repo({**files, **changes})
    with pytest.raises(CheckpointError, match=match) as caught:
        plan()
    assert "mergegraph-" not in str(caught.value)


def test_the_environment_decides_which_hub_and_which_cache(
    server: Hub, files: Mapping[str, bytes], tmp_path: Path
) -> None:
    code = (
        "from mergegraph.storage import hub\n"
        f"print(hub.fetch(hub.open_hub_checkpoint({REPO!r}, None, name='m')).root)"
    )
    ours = ("HF_", "TRANSFORMERS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    extra = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1,localhost"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, **extra}, capture_output=True, text=True, check=True
    )
    root = Path(done.stdout.strip())
    assert root == tmp_path / "home" / "hub" / "models--tiny--model" / "snapshots" / COMMIT
    assert (root / SHARDS[0]).read_bytes() == files[SHARDS[0]]


@pytest.mark.parametrize("text", ["mistralai/Mistral-7B-v0.1", "a/b", "Qwen/Qwen2.5-0.5B", "0x/y_z"])
def test_ids_are_recognised(text: str) -> None:
    assert hub.looks_like_repo(text)


@pytest.mark.parametrize(
    "text",
    [
        *("", "gpt2", "/a/b", "./a/b", "../b", "a/b/c", "a/", "~/b", "a b/c", "a/b@main", "a\\b", "C:/b"),
        *("a/model.safetensors", "a/plan.yml", "a/b--c", "a/b..c", ".a/b", "é/b", "a/b\n"),
    ],
)
def test_paths_and_files_are_not_taken_for_ids(text: str) -> None:
    assert not hub.looks_like_repo(text)


def test_a_small_file_can_be_read_before_anything_is_fetched(server: Hub) -> None:
    index = hub.open_hub_checkpoint(REPO, None, name=REPO)
    server.forget()
    assert hub.read_sidecar(index, "tokenizer.json") == b"{}"
    assert len(server.asked("GET")) == 1
    assert server.sent == 2
