"""Open checkpoints on the local disk: find the shards, read their headers and nothing else."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any

from mergegraph.checkpoint.index import CheckpointIndex, shorten, unique_keys
from mergegraph.checkpoint.layout import INDEX_FILE
from mergegraph.checkpoint.names import natural_key
from mergegraph.errors import CheckpointError, did_you_mean
from mergegraph.storage.headers import Headers, WeightMap, gathered, header_digest, read_shard, some_of

_JSON_LIMIT = 100_000_000
_SAMPLE = 4096
_SUFFIX = ".safetensors"
_INDEX_SUFFIX = ".safetensors.index.json"
_SINGLE_FILE = "model.safetensors"
_ADAPTER_FILE = "adapter_model.safetensors"
_NUMBERED = re.compile(r"(.*)-(\d{5,9})-of-(\d{5,9})\.safetensors", re.ASCII)
_OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz")

_SIDECAR_SUFFIXES = (
    *_OTHER_FORMATS,
    *(_SUFFIX, ".index.json", ".ggml", ".onnx_data", ".npy", ".pkl", ".pickle", ".tflite"),
    *(".mlmodel", ".ot", ".distcp", ".lock", ".tmp", ".incomplete"),
)
_SIDECAR_PREFIXES = (".", "readme", "optimizer", "scheduler", "rng_state", "training_args", "events.out")
_SIDECAR_NAMES = (
    *("config.json", "mergegraph.json", "mergekit_config.yml", "mergekit_moe_config.yml"),
    *("adapter_config.json", "trainer_state.json", "all_results.json", "train_results.json"),
    *("eval_results.json", "journal.jsonl"),
)


def open_checkpoint(ref_path: str, *, name: str, known: Headers | None = None) -> CheckpointIndex:
    """Index the checkpoint at `ref_path`: a directory, one safetensors file, or an index file.

    In a directory an index beats ``model.safetensors``, which beats other safetensors files, as
    it does for the usual loaders.

    Args:
        ref_path: where it is.
        name: the reference as the user wrote it.
        known: headers that were read before; those read now are added.

    Raises:
        CheckpointError: there is no complete, well-formed safetensors checkpoint there.
    """
    path = Path(ref_path).absolute()
    try:
        return _open(path, name, Headers() if known is None else known)
    except OSError as error:
        raise CheckpointError(
            f"cannot be read: {error.strerror or error}",
            path=str(error.filename or path),
            hint="check that it is there and that you may read it",
        ) from error


def _open(path: Path, name: str, known: Headers) -> CheckpointIndex:
    if path.is_dir():
        root, files, weight_map = _choose(path, known)
        whole = True
    elif path.is_file():
        root = path.parent
        files, weight_map = _single(path, known)
        # A lone file in a folder of downloads owns nothing around it; in a model folder it does.
        whole = (root / "config.json").is_file()
    else:
        raise _missing(path)
    shards = [read_shard(root, file, known) for file in files]
    tensors = gathered(root, shards, weight_map, known)
    index = CheckpointIndex(
        name=name,
        root=str(root),
        tensors=tensors,
        files={shard.entry.name: shard.entry for shard in shards},
        config=_read_config(root / "config.json") if whole else {},
        sidecars=_sidecars(root) if whole else (),
        like=known.indexes.get(id(tensors)),
    )
    known.indexes.setdefault(id(tensors), index)
    return index


def sample_digest(index: CheckpointIndex) -> str:
    """Digest of samples of every shard's contents: 64 blocks of 4 KiB spread over it, and its end.

    Cheap enough for planning. It tells fine-tunes of one base apart, whose headers are equal; it does not
    notice a change between the samples.
    """
    digest = blake2b(digest_size=16)
    for name, file in sorted(index.files.items()):
        try:
            with open(Path(index.root, name), "rb") as data:
                for block in range(65):
                    data.seek(min(file.size * block // 64, max(file.size - _SAMPLE, 0)))
                    digest.update(data.read(_SAMPLE))
        except OSError as error:
            reason = f"cannot be read: {error.strerror}"
            raise CheckpointError(reason, path=str(Path(index.root, name))) from error
    return digest.hexdigest()


def is_sidecar(name: str) -> bool:
    """Whether a file of this name belongs beside merged weights: tokenizer, licence, and so on.

    Weights in any format, training state and what a merge writes anew do not.
    """
    lower = name.lower()
    return not (
        lower in _SIDECAR_NAMES or lower.startswith(_SIDECAR_PREFIXES) or lower.endswith(_SIDECAR_SUFFIXES)
    )


def _missing(path: Path) -> CheckpointError:
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, siblings)
    return CheckpointError(
        "there is no such file or directory",
        path=str(path),
        hint=hint or "give a model directory or a .safetensors file",
    )


def _single(path: Path, known: Headers) -> tuple[list[str], WeightMap | None]:
    if path.name.endswith(_INDEX_SUFFIX):
        weight_map = _read_weight_map(path, known)
        return _files_of(weight_map), weight_map
    if path.suffix == _SUFFIX:
        return [path.name], None
    raise CheckpointError(
        "is not a .safetensors file", path=str(path), hint="give a model directory or a .safetensors file"
    )


def _choose(root: Path, known: Headers | None = None) -> tuple[Path, list[str], WeightMap | None]:
    """Decide which files of a directory are the checkpoint."""
    names = sorted(os.listdir(root))
    indexes = [name for name in names if name.endswith(_INDEX_SUFFIX)]
    if INDEX_FILE in indexes:
        indexes = [INDEX_FILE]
    elif _SINGLE_FILE in names:
        return root, [_SINGLE_FILE], None
    if len(indexes) > 1:
        raise CheckpointError(
            f"has several indexes ({some_of(indexes)}) and none is called {INDEX_FILE}",
            path=str(root),
            hint="give the path of the index to use",
        )
    if indexes:
        weight_map = _read_weight_map(root / indexes[0], Headers() if known is None else known)
        return root, _files_of(weight_map), weight_map
    files = [name for name in names if name.endswith(_SUFFIX) and not name.startswith(".")]
    files = [name for name in files if name != _ADAPTER_FILE] or files
    if not files:
        raise _no_weights(root, names)
    _check_numbering(root, files)
    return root, files, None


def _no_weights(root: Path, names: Sequence[str]) -> CheckpointError:
    others = [name for name in names if name.lower().endswith(_OTHER_FORMATS)]
    if others:
        return CheckpointError(
            f"has no safetensors files, only {some_of(others)}",
            path=str(root),
            hint="convert it first: load it with transformers, then save_pretrained to a new directory",
        )
    return CheckpointError(
        "has no .safetensors files",
        path=str(root),
        hint="give the directory that holds the weights",
    )


def _check_numbering(root: Path, files: Sequence[str]) -> None:
    """Without an index, only the ``-of-`` in their names tells whether shards are missing."""
    sets = Counter(match.group(1, 3) for match in map(_NUMBERED.fullmatch, files) if match)
    for (stem, count), present in sets.items():
        if present != int(count):
            raise CheckpointError(
                f"has {present} of the {int(count)} files named {stem}-*-of-{count}{_SUFFIX}",
                path=str(root),
                hint="fetch the missing files",
            )


def _read_weight_map(path: Path, known: Headers) -> WeightMap:
    raw = _read_small(path)
    key = header_digest(raw)  # fine-tunes of one model have equal index files as well
    files = known.weight_maps.get(key)
    if files is None:
        files = known.weight_maps[key] = _weight_map(raw, path)
    for name in dict.fromkeys(files.values()):
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise CheckpointError(
                f"names the file {shorten(name)}, outside its own directory",
                path=str(path),
                hint="do not trust this checkpoint",
            )
        if not name.endswith(_SUFFIX):
            raise CheckpointError(
                f"names {shorten(name)}, which is not a .safetensors file",
                path=str(path),
                hint="convert the checkpoint to safetensors",
            )
        if not (path.parent / name).is_file():
            raise CheckpointError(
                f"names {shorten(name)}, which is not there", path=str(path), hint="fetch the missing shard"
            )
    return WeightMap(path, files)


def _weight_map(raw: bytes, path: Path) -> dict[str, str]:
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=unique_keys)
        files = table["weight_map"]
        if not isinstance(files, dict) or not all(isinstance(v, str) for v in files.values()):
            raise ValueError("weight_map is not a map of tensor names to files")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = "there is no weight_map" if isinstance(error, KeyError | TypeError) else str(error)[:200]
        raise CheckpointError(
            f"is not a checkpoint index: {reason}", path=str(path), hint="fetch or export it again"
        ) from None
    return files


def _files_of(weight_map: WeightMap) -> list[str]:
    return sorted(dict.fromkeys(weight_map.files.values()), key=natural_key)


def _read_config(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(_read_small(path).decode("utf-8"))
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"is not a model config: {str(error)[:200]}", path=str(path), hint="fetch or export it again"
        ) from None
    return config


def _sidecars(root: Path) -> tuple[str, ...]:
    with os.scandir(root) as entries:
        return tuple(sorted(e.name for e in entries if is_sidecar(e.name) and e.is_file()))


def _read_small(path: Path) -> bytes:
    """Read a file that is small if it is what its name says."""
    if path.stat().st_size > _JSON_LIMIT:
        raise CheckpointError(
            f"is larger than {_JSON_LIMIT:,} bytes", path=str(path), hint="it cannot be what its name says"
        )
    return path.read_bytes()
